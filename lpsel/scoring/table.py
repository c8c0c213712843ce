"""The table of scores that every rule ranks by.

N rows, E recorded columns (0 = before training, then one after each epoch), D dimensions of an embedding
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.data.content_ids import fingerprint
from lpsel.errors import UserError

log = logging.getLogger(__name__)

CONTENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ScoreTable:
    """What is known of every row of a data set.

    Attributes:
        index: row number in the data set, int64 (N,).
        id: content ids, an Arrow array of N strings, or None where there are none. A sequence of str is taken too.
        prompt_tokens: tokens of the prompt that are fed, int32 (N,).
        response_tokens: response tokens that are supervised, int32 (N,).
        truncated: whether something was cut off, bool (N,).
        nll: mean NLL per supervised token in nats, float64 (E, N); NaN where there is none. E is 0 without a scorer.
        cluster: int32 (N,), or None where rows are not clustered.
        ppl: perplexities, float64 (E, N), where the file held these. Kept beside `nll`, since exp(log(ppl)) can
            split rows that tie.
        tokens_known: False where token counts are placeholders, because the file had none.
        columns: further numbers that a rule ranks by, float64 (N,) each, NaN where a row has none.
        vectors: embeddings, float32 (N, D), or None where no rule looks at them.
    """

    index: NDArray[np.int64]
    id: Any
    prompt_tokens: NDArray[np.int32]
    response_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    nll: NDArray[np.float64]
    cluster: NDArray[np.int32] | None = None
    ppl: NDArray[np.float64] | None = None
    tokens_known: bool = True
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    vectors: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not isinstance(self.id, pa.Array):
            object.__setattr__(self, "id", pa.array(self.id, pa.large_string()))
        n = len(self.index)
        columns = (self.prompt_tokens, self.response_tokens, self.truncated, self.id, self.cluster, self.vectors)
        assert all(len(column) == n for column in (*columns, *self.columns.values()) if column is not None)
        assert self.nll.ndim == 2
        assert self.nll.shape[1] == n
        assert self.ppl is None or self.ppl.shape == self.nll.shape

    def __len__(self) -> int:
        return len(self.index)

    @property
    def epochs(self) -> int:
        """Epochs recorded, without the pass before training."""
        return max(len(self.nll) - 1, 0)

    def first_epochs(self, epochs: int) -> "ScoreTable":
        """The same table with the pass before training and no more than `epochs` epochs."""
        return replace(self, nll=self.nll[: epochs + 1], ppl=None if self.ppl is None else self.ppl[: epochs + 1])

    def take(self, order: NDArray[np.int64]) -> "ScoreTable":
        """The rows at the positions `order`, in that order."""
        return replace(
            self,
            index=self.index[order],
            id=None if self.id is None else self.id.take(pa.array(order)),
            prompt_tokens=self.prompt_tokens[order],
            response_tokens=self.response_tokens[order],
            truncated=self.truncated[order],
            nll=self.nll[:, order],
            cluster=None if self.cluster is None else self.cluster[order],
            ppl=None if self.ppl is None else self.ppl[:, order],
            columns={name: column[order] for name, column in self.columns.items()},
            vectors=None if self.vectors is None else self.vectors[order],
        )

    def fingerprint(self) -> str | None:
        """Of a data set with these content ids in this order; None where ids are the user's own."""
        if self.id is None or not CONTENT_ID.fullmatch(self.id[0].as_py()):
            return None
        alike = pc.all(pc.equal(pc.binary_length(self.id), len(self.id[0].as_py()))).as_py()
        return fingerprint(self.id.cast(pa.large_string())) if alike else None

    def of_dataset(self, ids: Sequence[str] | pa.Array, name: str) -> "ScoreTable":
        """The same scores in the order of the data set and with its content ids.

        Content ids (32 hexadecimal digits) say whose scores they are, wherever they stand: rows are matched by them,
        the first of several with the same content with the first. Other ids are the user's own and are not compared.

        Args:
            ids: content id of every row of the data set, in its order.
            name: what to call the data set in messages.

        Raises:
            UserError: another number of rows, or a row with another content id.
        """
        theirs = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        prints = ""
        if (scored := self.fingerprint()) is not None:
            prints = f" (fingerprint {scored[:12]}, of {name} {fingerprint(theirs)[:12]})"
        if len(self) != len(ids) or self.index[0] != 0 or self.index[-1] != len(ids) - 1:
            raise UserError(
                f"scores: have {len(self)} rows, index {self.index.min()} to {self.index.max()}, data set {name} has "
                f"{len(ids)} from 0{prints}; score these rows (leave scores= out), or name the data set that was "
                "scored."
            )
        if self.id is None or not CONTENT_ID.fullmatch(self.id[0].as_py()) or self.id.equals(theirs):
            return replace(self, id=theirs)
        place = np.empty(len(self), np.int64)
        place[pc.sort_indices(theirs).to_numpy()] = pc.sort_indices(self.id).to_numpy()
        differs = pc.not_equal(self.id.take(pa.array(place)), theirs)
        if pc.any(differs).as_py():
            unknown = pc.invert(pc.is_in(theirs, value_set=self.id))
            row = pc.index(unknown if pc.any(unknown).as_py() else differs, True).as_py()
            raise UserError(
                f"scores: none with id {theirs[row]}, row {row} of data set {name}: scores of other rows{prints}; "
                "score these (leave scores= out), name the data set that was scored, or leave column id out if it is "
                "your own."
            )
        log.info("Scores: in another order than data set %s; matched by content id", name)
        return replace(self.take(place), index=np.arange(len(self)), id=theirs)
