"""The table of scores that selection rules rank by.

N rows, E recorded columns (0 = before training, then one after each epoch), D dimensions of an embedding, Q
examples of the user's task

Missing values, everywhere between the forward pass and `selected`:
- A row without a supervised token has no record: null in files, NaN in arrays. `to_arrow` and `from_arrow` convert.
- A record that is not a finite number is infinity in files and arrays (`as_records`), so that it is not mistaken for a
  missing one.
- A metric that either leaves undefined, or that divides by zero, is NaN.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from lpsel.data.content_ids import fingerprint
from lpsel.errors import UserError

log = logging.getLogger(__name__)

CONTENT_ID = re.compile(r"[0-9a-f]{32}")


def as_records(losses: ArrayLike) -> NDArray[np.float64]:
    """Losses of rows that have one, float64: infinity in place of NaN and of both infinities."""
    return np.nan_to_num(np.asarray(losses, np.float64), nan=np.inf, posinf=np.inf, neginf=np.inf)


def to_arrow(values_N: NDArray[np.float64]) -> pa.Array:
    """A column of numbers, null in place of NaN."""
    return pa.array(values_N, pa.float64(), mask=np.isnan(values_N))


def from_arrow(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers as float64 (N,), NaN in place of null."""
    return column.cast(pa.float64(), safe=False).to_numpy()  # integers above 2**53 are rounded


@dataclass(frozen=True)
class ScoreTable:
    """What is known about every row of a dataset.

    Attributes:
        index: row number in the dataset, int64 (N,).
        id: content ids, an Arrow array of N strings, or None where there are none. A sequence of str is accepted too.
        prompt_tokens: tokens of the prompt that are fed, int32 (N,).
        response_tokens: response tokens that are supervised, int32 (N,).
        truncated: whether something was cut off, bool (N,).
        nll: mean NLL per supervised token in nats, float64 (E, N). E is 0 without a scorer.
        cluster: int32 (N,), or None where rows are not clustered.
        ppl: perplexities, float64 (E, N), where the file has these instead of NLLs: exp(log(ppl)) can separate rows
            that tie.
        tokens_known: False where token counts are placeholders, because the file had none.
        columns: other numbers that a rule ranks by, float64 (N,) each.
        vectors: embeddings, float32 (N, D), or None where no rule uses them.
        query_vectors: those of the examples of the user's task, float32 (Q, D).
        empty_answer: whether the row has no answer but white space, bool (N,), or None where the texts are not known.
        unusable: the kind of every row that was skipped, an Arrow array of N texts, null for the others; None for none.
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
    query_vectors: NDArray[np.float32] | None = None
    empty_answer: NDArray[np.bool_] | None = None
    unusable: pa.Array | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not isinstance(self.id, pa.Array):
            object.__setattr__(self, "id", pa.array(self.id, pa.large_string()))
        n = len(self.index)
        columns = (self.prompt_tokens, self.response_tokens, self.truncated, self.id, self.cluster, self.vectors)
        of_text = (self.empty_answer, self.unusable)
        assert all(len(column) == n for column in (*columns, *of_text, *self.columns.values()) if column is not None)
        assert self.nll.ndim == 2
        assert self.nll.shape[1] == n
        assert self.ppl is None or self.ppl.shape == self.nll.shape

    def __len__(self) -> int:
        return len(self.index)

    @property
    def epochs(self) -> int:
        """Recorded epochs, without the pass before training."""
        return max(len(self.nll) - 1, 0)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which rows are not unusable, bool (N,)."""
        all_N = np.ones(len(self), np.bool_)
        return all_N if self.unusable is None else self.unusable.is_null().to_numpy(zero_copy_only=False)

    @property
    def has_content_ids(self) -> bool:
        """Whether `id` holds hashes of the rows' contents, not ids of the user's own."""
        return self.id is not None and CONTENT_ID.fullmatch(self.id[0].as_py() or "") is not None

    def first_epochs(self, epochs: int) -> "ScoreTable":
        """The same table with the pass before training and at most `epochs` epochs."""
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
            empty_answer=None if self.empty_answer is None else self.empty_answer[order],
            unusable=None if self.unusable is None else self.unusable.take(pa.array(order)),
        )

    def fingerprint(self) -> str | None:
        """The fingerprint of a dataset with these content ids in this order; None for ids of the user's own."""
        if not self.has_content_ids:
            return None
        same_length = pc.all(pc.equal(pc.binary_length(self.id), len(self.id[0].as_py()))).as_py()
        return fingerprint(self.id.cast(pa.large_string())) if same_length else None

    def of_dataset(self, ids: Sequence[str] | pa.Array, name: str) -> "ScoreTable":
        """The same scores in the order of the dataset and with its content ids.

        Rows are matched by content id, the first of several with the same content with the first. Ids of the user's
        own are not compared.

        Args:
            ids: content id of every row of the dataset, in its order.
            name: of the dataset, for messages.

        Raises:
            UserError: another number of rows, or a row with another content id.
        """
        ids = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        scored = self.fingerprint()
        prints = "" if scored is None else f" (fingerprint {scored[:12]}, of {name} {fingerprint(ids)[:12]})"
        if len(self) != len(ids) or self.index[0] != 0 or self.index[-1] != len(ids) - 1:
            found = f"have {len(self)} rows, index {self.index.min()} to {self.index.max()}"
            hint = "score these rows (leave scores= out), or name the dataset that was scored"
            raise UserError("scores", None, f"{found}; dataset {name} has {len(ids)}, index from 0{prints}", hint)
        if not self.has_content_ids:
            log.info("Scores: without content ids; that row i belongs to row i of dataset %s is taken on trust", name)
            return replace(self, id=ids)
        if self.id.equals(ids):
            return replace(self, id=ids)
        order = np.empty(len(self), np.int64)
        order[pc.sort_indices(ids).to_numpy()] = pc.sort_indices(self.id).to_numpy()
        differs = pc.not_equal(self.id.take(pa.array(order)), ids)
        if pc.any(differs).as_py():
            unknown = pc.invert(pc.is_in(ids, value_set=self.id))
            row = pc.index(unknown if pc.any(unknown).as_py() else differs, True).as_py()
            raise UserError(
                "scores",
                None,
                f"row {row} of dataset {name}, with id {ids[row]}, has none: these are scores of other rows{prints}",
                "score these rows (leave scores= out), name the dataset that was scored, or remove the column id if "
                "its values are your own",
            )
        log.info("Scores: in another order than dataset %s; matched by content id", name)
        return replace(self.take(order), index=np.arange(len(self)), id=ids)
