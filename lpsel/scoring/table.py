"""The table of scores that selection rules rank by.

N rows, E recorded columns (0 = before training, then one after each epoch), D embedding dimensions, Q examples of the
user's task

Missing values are handled in the same way everywhere from the forward pass to `selected`:
- A row without a supervised token has no record: null in files, NaN in arrays. `to_arrow` and `from_arrow` convert.
- A record that is not finite is stored as infinity in files and arrays (`as_records`), to distinguish it from a missing
  record.
- A metric that is undefined for one of these reasons, or because of a division by zero, is NaN.
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
    """Convert the losses of rows with a record to float64, with NaN and -inf replaced by inf."""
    return np.nan_to_num(np.asarray(losses, np.float64), nan=np.inf, posinf=np.inf, neginf=np.inf)


def to_arrow(values_N: NDArray[np.float64]) -> pa.Array:
    """Convert float64 (N,) to an Arrow column, with null in place of NaN."""
    return pa.array(values_N, pa.float64(), mask=np.isnan(values_N))


def from_arrow(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Convert an Arrow column of numbers to float64 (N,), with NaN in place of null."""
    return column.cast(pa.float64(), safe=False).to_numpy()  # integers above 2**53 are rounded


@dataclass(frozen=True)
class ScoreTable:
    """Scores and other properties of every row of a dataset.

    Attributes:
        index: row number in the dataset, int64 (N,).
        id: content ids, an Arrow array of N strings (or a sequence of str), or None if there are none.
        prompt_tokens: number of prompt tokens fed to the model, int32 (N,).
        response_tokens: number of supervised response tokens, int32 (N,).
        truncated: whether the row was truncated, bool (N,).
        nll: mean NLL per supervised token in nats, float64 (E, N). E is 0 without a scorer.
        cluster: cluster of each row, int32 (N,), or None if rows are not clustered.
        ppl: perplexities, float64 (E, N), if the file contains them instead of NLLs: exp(log(ppl)) can break ties
            between rows.
        tokens_known: False if the file has no token counts and those here are placeholders.
        columns: other numbers that a rule ranks by, float64 (N,) each.
        vectors: embeddings, float32 (N, D), or None if no rule uses them.
        query_vectors: embeddings of the examples of the user's task, float32 (Q, D).
        empty_answer: whether the answer is empty or only white space, bool (N,), or None if texts are unavailable.
        unusable: why each skipped row is unusable, an Arrow array of N strings with null for other rows, or None if all
            rows are usable.
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
        required = (self.prompt_tokens, self.response_tokens, self.truncated, *self.columns.values())
        optional = (self.id, self.cluster, self.vectors, self.empty_answer, self.unusable)
        assert all(len(column) == n for column in required)
        assert all(column is None or len(column) == n for column in optional)
        assert self.nll.ndim == 2
        assert self.nll.shape[1] == n
        assert self.ppl is None or self.ppl.shape == self.nll.shape

    def __len__(self) -> int:
        return len(self.index)

    @property
    def epochs(self) -> int:
        """Number of recorded epochs, excluding the pass before training."""
        return max(len(self.nll) - 1, 0)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Mask of usable rows, bool (N,)."""
        all_N = np.ones(len(self), np.bool_)
        return all_N if self.unusable is None else self.unusable.is_null().to_numpy(zero_copy_only=False)

    @property
    def has_content_ids(self) -> bool:
        """Whether `id` contains hashes of the rows' contents rather than the user's ids."""
        return self.id is not None and CONTENT_ID.fullmatch(self.id[0].as_py() or "") is not None

    def first_epochs(self, epochs: int) -> "ScoreTable":
        """Return the table with the pass before training and at most `epochs` epochs."""
        return replace(self, nll=self.nll[: epochs + 1], ppl=None if self.ppl is None else self.ppl[: epochs + 1])

    def take(self, order: NDArray[np.int64]) -> "ScoreTable":
        """Return the rows at positions `order`, in that order."""
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
        """Return the fingerprint of a dataset with these content ids in this order, or None for the user's ids."""
        if not self.has_content_ids:
            return None
        same_length = pc.all(pc.equal(pc.binary_length(self.id), len(self.id[0].as_py()))).as_py()
        return fingerprint(self.id.cast(pa.large_string())) if same_length else None

    def of_dataset(self, ids: Sequence[str] | pa.Array, name: str) -> "ScoreTable":
        """Return the scores in the order of a dataset, with the dataset's content ids.

        Rows are matched by content id; duplicates are matched in order. The user's ids are not compared.

        Args:
            ids: content ids of the dataset's rows, in order.
            name: name of the dataset, for messages.

        Raises:
            UserError: the number of rows or the content id of a row differs.
        """
        ids = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        scored = self.fingerprint()
        prints = "" if scored is None else f" (fingerprint {scored[:12]}, of {name} {fingerprint(ids)[:12]})"
        if len(self) != len(ids) or self.index[0] != 0 or self.index[-1] != len(ids) - 1:
            scores = f"have {len(self)} rows, index {self.index.min()} to {self.index.max()}"
            hint = "score these rows (leave scores= out), or name the dataset that was scored"
            raise UserError("scores", None, f"{scores}; dataset {name} has {len(ids)}, index from 0{prints}", hint)
        if not self.has_content_ids:
            log.info("Scores: no content ids, so row i is assumed to be row i of dataset %s", name)
            return replace(self, id=ids)
        if self.id.equals(ids):
            return replace(self, id=ids)
        order = np.empty(len(self), np.int64)  # position in this table of each row of the dataset
        order[pc.sort_indices(ids).to_numpy()] = pc.sort_indices(self.id).to_numpy()
        differs = pc.not_equal(self.id.take(pa.array(order)), ids)
        if pc.any(differs).as_py():
            unknown = pc.invert(pc.is_in(ids, value_set=self.id))
            row = pc.index(unknown if pc.any(unknown).as_py() else differs, True).as_py()
            raise UserError(
                "scores",
                None,
                f"row {row} of dataset {name}, with id {ids[row]}, has no score: the scores are for other rows{prints}",
                "score these rows (leave scores= out), name the dataset that was scored, or remove the column id if "
                "its values are your own",
            )
        log.info("Scores: the order differs from dataset %s; rows are matched by content id", name)
        return replace(self.take(order), index=np.arange(len(self)), id=ids)
