"""The table of scores that every rule ranks by, and how it is read from a file.

N rows, E recorded columns (0 = before training, then one after each epoch)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.errors import UserError

SCORES_FILE = "scores.parquet"  # in a scores folder
RECORDED = re.compile(r"(nll|ppl)_(0|[1-9][0-9]*)")
OPTIONAL = ("index", "id", "prompt_tokens", "response_tokens", "truncated", "cluster")
CONTENT_ID = re.compile(r"[0-9a-f]{32}")
INT32_MAX = 2**31 - 1


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

    def __post_init__(self) -> None:
        if self.id is not None and not isinstance(self.id, pa.Array):
            object.__setattr__(self, "id", pa.array(self.id, pa.large_string()))
        n = len(self.index)
        columns = (self.prompt_tokens, self.response_tokens, self.truncated, self.id, self.cluster)
        assert all(len(column) == n for column in columns if column is not None)
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

    def of_dataset(self, ids: Sequence[str], name: str) -> "ScoreTable":
        """The same table with the data set's content ids, once it is sure that it has the data set's rows.

        Ids that are not content ids (32 hexadecimal digits) are the user's own: they are not compared.

        Args:
            ids: content id of every row of the data set, in its order.
            name: what to call the data set in messages.

        Raises:
            UserError: another number of rows, or a row with another content id.
        """
        if len(self) != len(ids) or not np.array_equal(self.index, np.arange(len(ids))):
            raise UserError(
                f"scores: have {len(self)} rows, index {self.index.min()} to {self.index.max()}, data set {name} has "
                f"{len(ids)} from 0; score these rows (leave scores= out), or name the data set that was scored."
            )
        theirs = pa.array(ids, pa.large_string())
        if self.id is not None and CONTENT_ID.fullmatch(self.id[0].as_py()):
            differs = pc.not_equal(self.id, theirs)
            if pc.any(differs).as_py():
                row = pc.index(differs, True).as_py()
                raise UserError(
                    f"scores: row {row} has id {self.id[row]}, in data set {name} it is {theirs[row]}: scores of other "
                    "rows; score these (leave scores= out), or name the data set that was scored."
                )
        return replace(self, id=theirs)


def read_scores(path: str | Path) -> ScoreTable:
    """Read a scores folder, or a Parquet or CSV table of scores, sorted by its `index`.

    Needed are the columns nll_0 .. nll_n or ppl_0 .. ppl_n; where both are there, nll counts. Without `index`, rows
    count from 0. Without `response_tokens`, a row is taken to have none where its first record is null, or where its
    NLL is exactly 0 in every record, which is how the paper's released perplexities (all 1) show such rows.

    Raises:
        UserError: no such file, no or missing epochs, a column that is not of the kind it must be.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / SCORES_FILE
    if not file.is_file():
        raise UserError(f"scores={path}: no such file. Name a scores folder, or a .parquet or .csv table.")
    table = _read(file)
    columns = _Columns(table, file)

    ppl = None
    kind, epochs = _recorded(table.column_names, file)
    if kind == "nll":
        nll = columns.records("nll", epochs)
    else:
        ppl = columns.records("ppl", epochs)
        if (ppl <= 0).any():
            epoch, row = np.argwhere(ppl <= 0)[0]
            raise UserError(
                f"scores={file}: ppl_{epoch} of row {row} is {ppl[epoch, row]}, perplexities are above 0. "
                "Leave it empty where the row has no supervised token."
            )
        nll = np.log(ppl)
    n = nll.shape[1]
    supervised = ~np.isnan(nll[0]) & (nll != 0).any(axis=0)

    scores = ScoreTable(
        index=columns.integers("index", np.int64) if "index" in table.column_names else np.arange(n),
        id=columns.ids(),
        prompt_tokens=columns.integers("prompt_tokens", np.int32, default=np.zeros(n, np.int32)),
        response_tokens=columns.integers("response_tokens", np.int32, default=supervised.astype(np.int32)),
        truncated=columns.flags("truncated"),
        nll=nll,
        cluster=columns.clusters(),
        ppl=ppl,
        tokens_known={"prompt_tokens", "response_tokens"} <= set(table.column_names),
    )
    return _sorted(scores, file)


def cluster_codes(values: Any) -> NDArray[np.int32]:
    """Number the values of an Arrow array in their sorted order, from 0, int32 (N,)."""
    encoded = pa.array(values).dictionary_encode() if not isinstance(values, pa.Array) else values.dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int32)
    place[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy(zero_copy_only=False)]


def _read(file: Path) -> pa.Table:
    def wanted(names: list[str]) -> list[str]:
        return [name for name in names if name in OPTIONAL or RECORDED.fullmatch(name)]

    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as parquet:
                return parquet.read(columns=wanted(parquet.schema_arrow.names))
        if file.suffix == ".csv":
            from pyarrow import csv

            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types={"id": pa.large_string()}))
            return table.select(wanted(table.column_names))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"scores={file}: cannot be read ({reason}). Give a whole .parquet or .csv table.") from error
    raise UserError(f"scores={file}: unknown kind of file. Give a .parquet or .csv table.")


def _recorded(names: list[str], file: Path) -> tuple[str, int]:
    """The kind of records a table has, nll or ppl, and the number of their columns."""
    for kind in ("nll", "ppl"):
        found = sorted(int(m[2]) for name in names if (m := RECORDED.fullmatch(name)) and m[1] == kind)
        if found and found != list(range(len(found))):
            missing = next(epoch for epoch in range(found[-1]) if epoch not in found)
            raise UserError(
                f"scores={file}: has {kind}_{found[-1]} and no {kind}_{missing}. Give every epoch, from {kind}_0 "
                "(before training) on."
            )
        if found:
            return kind, len(found)
    raise UserError(
        f"scores={file}: has no column nll_0 (or ppl_0). Name the columns nll_0, nll_1, ... (mean NLL in nats before "
        "training, after epoch 1, ...) or ppl_0, ppl_1, ... (perplexity)."
    )


def _sorted(scores: ScoreTable, file: Path) -> ScoreTable:
    step = np.diff(scores.index)
    if len(scores) == 0:
        raise UserError(f"scores={file}: has no rows. Give a table with a row for every row of the data set.")
    if not (step > 0).all():
        order = np.argsort(scores.index, kind="stable")
        scores = replace(
            scores,
            index=scores.index[order],
            id=None if scores.id is None else scores.id.take(pa.array(order)),
            prompt_tokens=scores.prompt_tokens[order],
            response_tokens=scores.response_tokens[order],
            truncated=scores.truncated[order],
            nll=scores.nll[:, order],
            cluster=None if scores.cluster is None else scores.cluster[order],
            ppl=None if scores.ppl is None else scores.ppl[:, order],
        )
        twice = np.flatnonzero(np.diff(scores.index) == 0)
        if len(twice):
            raise UserError(f"scores={file}: index {scores.index[twice[0]]} stands there twice. Keep one row of each.")
    return scores


class _Columns:
    """Columns of a table as arrays, or a message that names the column."""

    def __init__(self, table: pa.Table, file: Path) -> None:
        self.table, self.file = table, file

    def records(self, kind: str, epochs: int) -> NDArray[np.float64]:
        records_EN = np.empty((epochs, len(self.table)))
        for epoch in range(epochs):
            name = f"{kind}_{epoch}"
            column = self.table[name]
            if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or _empty(column)):
                raise self._wrong(name, column, "numbers, empty where a row has no supervised token")
            records_EN[epoch] = column.cast(pa.float64()).to_numpy()
        return records_EN

    def integers(self, name: str, dtype: Any, default: NDArray[Any] | None = None) -> NDArray[Any]:
        if name not in self.table.column_names:
            assert default is not None
            return default
        column = self.table[name]
        if not pa.types.is_integer(column.type) or column.null_count:
            raise self._wrong(name, column, "a whole number in every row")
        values = column.to_numpy()
        if len(values) and not 0 <= values.min() <= values.max() <= np.iinfo(dtype).max:
            raise UserError(
                f"scores={self.file}: column {name} holds {values.min()} to {values.max()}, must be 0 or more."
            )
        return values.astype(dtype)

    def flags(self, name: str) -> NDArray[np.bool_]:
        if name not in self.table.column_names:
            return np.zeros(len(self.table), np.bool_)
        column = self.table[name]
        if not pa.types.is_boolean(column.type) or column.null_count:
            raise self._wrong(name, column, "true or false in every row")
        return column.to_numpy()

    def ids(self) -> pa.Array | None:
        if "id" not in self.table.column_names:
            return None
        column = self.table["id"]
        if column.null_count:
            raise self._wrong("id", column, "there in every row, or left out as a column")
        return _whole(column.cast(pa.large_string()))

    def clusters(self) -> NDArray[np.int32] | None:
        """Whole numbers as they are, the values of any other column numbered in sorted order."""
        if "cluster" not in self.table.column_names:
            return None
        column = self.table["cluster"]
        if column.null_count or pa.types.is_nested(column.type):
            raise self._wrong("cluster", column, "a number or a text in every row (or say cluster=none)")
        if pa.types.is_integer(column.type) and len(column) and abs(column.to_numpy()).max() <= INT32_MAX:
            return column.to_numpy().astype(np.int32)
        return cluster_codes(_whole(column))

    def _wrong(self, name: str, column: pa.ChunkedArray, must: str) -> UserError:
        nulls = f" with {column.null_count} empty" if column.null_count else ""
        return UserError(f"scores={self.file}: column {name} is {column.type}{nulls}, must be {must}.")


def _empty(column: pa.ChunkedArray) -> bool:
    return column.null_count == len(column)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
