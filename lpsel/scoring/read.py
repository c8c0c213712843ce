"""Scores from a file: a scores folder, a Parquet or CSV table, or the arrays that were released with the paper.

N rows, E recorded columns (0 = before training, then one after each epoch)
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.data.size_limits import check_archive, check_expansion
from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, unseal
from lpsel.scoring.npz import UNREADABLE
from lpsel.scoring.store import FORMAT, MANIFEST
from lpsel.scoring.store import SCORES as SCORES_FILE
from lpsel.scoring.table import ScoreTable

RECORDED = re.compile(r"(nll|ppl)_(0|[1-9][0-9]*)")
OPTIONAL = ("index", "id", "prompt_tokens", "response_tokens", "truncated", "cluster")
INT32_MAX = 2**31 - 1
LEAST = {"nll": (0, "losses"), "ppl": (1, "perplexities")}
ROUNDING = 1e-3  # that a record may be below the least


def read_scores(
    path: str | Path, key: str | None = None, columns: Collection[str] = (), clusters: bool = True
) -> ScoreTable:
    """Read a scores folder, a Parquet or CSV table of scores, or an .npz of perplexities, sorted by its `index`.

    Needed of a table are the columns nll_0 .. nll_n or ppl_0 .. ppl_n, or one of `columns`; where both are there, nll
    counts. Without `index`, rows count from 0. Without `response_tokens`, a row is taken to have none where its first
    record is null, or where its NLL is exactly 0 in every record, which is how the paper's released perplexities (all
    1) show such rows.

    A scores folder is read by its manifest: its file must be as it was written, and its rows those of the data set
    that the manifest names.

    An .npz has arrays of perplexities, (E, N) each, as released, and may have `cluster`, (N,).

    Args:
        key: the name of the array in an .npz that has several.
        columns: other columns to keep where the table has them; `ppl_X` stands in for `nll_X`.
        clusters: whether to look at the column `cluster`.

    Raises:
        UserError: no such file, no or missing epochs, a column that is not of the kind it must be, no such array.
    """
    file = Path(str(path)).expanduser()
    if file.is_dir():
        file = file / SCORES_FILE
        if file.is_file() and not file.with_name(MANIFEST).is_file():
            raise UserError(
                f"scores={path}: has no {MANIFEST}, which is written last, so it is not complete; score again, or name "
                f"{file} where that is a table of your own."
            )
    manifest = _manifest(file)
    if not file.is_file():
        raise UserError(f"scores={path}: no such file. Name a scores folder, or a .parquet, .csv or .npz file.")
    file.open("rb").close()  # Arrow's own error would not name the file
    if key is not None and file.suffix != ".npz":
        raise UserError(f"scores_key={key}: names an array of an .npz file, {file.name} is none. Leave it out.")
    table = _read_arrays(file, key) if file.suffix == ".npz" else _read(file, columns)
    reader = _Columns(table, file)

    kind, epochs = _recorded(table.column_names, file, optional=any(name in columns for name in table.column_names))
    records_EN = reader.records(kind, epochs)
    ppl, nll = (records_EN, np.log(records_EN)) if kind == "ppl" else (None, records_EN)
    n = nll.shape[1]
    supervised = ~np.isnan(nll[0]) & (nll != 0).any(axis=0) if len(nll) else np.ones(n, np.bool_)

    scores = ScoreTable(
        index=reader.integers("index", np.int64) if "index" in table.column_names else np.arange(n),
        id=reader.ids(),
        prompt_tokens=reader.integers("prompt_tokens", np.int32, default=np.zeros(n, np.int32)),
        response_tokens=reader.integers("response_tokens", np.int32, default=supervised.astype(np.int32)),
        truncated=reader.flags("truncated"),
        nll=nll,
        cluster=reader.clusters() if clusters else None,
        ppl=ppl,
        tokens_known={"prompt_tokens", "response_tokens"} <= set(table.column_names),
        columns={name: column for name in columns if (column := reader.further(name)) is not None},
    )
    scores = _sorted(scores, file)
    scored, found = manifest.get("dataset_fingerprint"), scores.fingerprint()
    if scored not in (None, found):
        raise UserError(
            f"scores={file}: its rows have fingerprint {str(found)[:12]}, {MANIFEST} beside it is of rows with "
            f"{str(scored)[:12]}. Put the manifest back that belongs to it, or score again."
        )
    return scores


def _manifest(file: Path) -> dict[str, Any]:
    """The manifest beside the file of a scores folder; of any other file none."""
    manifest = file.with_name(MANIFEST)
    if file.name != SCORES_FILE or not manifest.exists():
        return {}
    try:
        return unseal(manifest, FORMAT)
    except Damaged as damage:
        hint = f"delete {file.parent} and score again, or rename {file.name} if it is your own table"
        raise UserError("scores", damage.name, damage.problem, hint) from None


def cluster_codes(values: Any) -> NDArray[np.int32]:
    """Number the values of an Arrow array in their sorted order, from 0, int32 (N,)."""
    encoded = pa.array(values).dictionary_encode() if not isinstance(values, pa.Array) else values.dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int32)
    place[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy(zero_copy_only=False)]


def _read(file: Path, columns: Collection[str]) -> pa.Table:
    further = {form for name in columns for form in (name, _as_perplexity(name))}

    def wanted(names: list[str]) -> list[str]:
        found = [name for name in names if name in OPTIONAL or RECORDED.fullmatch(name) or name in further]
        twice = next((name for name in found if found.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"scores={file}: has {found.count(twice)} columns {twice}. Keep one of them.")
        return found

    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as parquet:
                groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
                check_expansion(file, sum(group.total_byte_size for group in groups), f"scores={file}")
                return parquet.read(columns=wanted(parquet.schema_arrow.names))
        if file.suffix == ".csv":
            from pyarrow import csv

            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types={"id": pa.large_string()}))
            return table.select(wanted(table.column_names))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"scores={file}: cannot be read ({printable_line(error)}). Give a whole .parquet, .csv or .npz file."
        ) from error
    raise UserError(f"scores={file}: unknown kind of file. Give a .parquet, .csv or .npz file.")


def _read_arrays(file: Path, key: str | None) -> pa.Table:
    """The perplexities of one scorer, and `cluster` where it is there, as a table."""
    try:
        check_archive(file, f"scores={file}")
        with np.load(file, allow_pickle=False) as arrays:
            names = [name for name in arrays.files if name != "cluster"]
            listed = ", ".join(names) or "none"
            if key is None and len(names) != 1:
                raise UserError(f"scores={file}: has the arrays {listed}. Say which with scores_key=NAME.")
            if key is not None and key not in names:
                raise UserError(
                    f"scores_key={key}: no such array in {file.name}, which has {listed}. Name one of them."
                )
            key = names[0] if key is None else key
            ppl_EN = arrays[key]
            cluster = arrays["cluster"] if "cluster" in arrays.files else None
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"scores={file}: cannot be read ({printable_line(error)}). Give a whole .npz without pickles."
        ) from error
    if ppl_EN.ndim != 2 or ppl_EN.dtype.kind not in "fiu":
        raise UserError(
            f"scores={file}: array {key} is {ppl_EN.dtype} of shape {ppl_EN.shape}, must be perplexities (epochs + 1, "
            "rows): before training, then after each epoch."
        )
    columns = {f"ppl_{epoch}": ppl_N.astype(np.float64) for epoch, ppl_N in enumerate(ppl_EN)}
    if cluster is not None:
        if cluster.shape != ppl_EN.shape[1:]:
            raise UserError(f"scores={file}: cluster has shape {cluster.shape}, must be ({ppl_EN.shape[1]},).")
        columns["cluster"] = cluster
    return pa.table(columns)


def _as_perplexity(name: str) -> str:
    return name.replace("nll_", "ppl_", 1) if name.startswith("nll_") else name


def _recorded(names: list[str], file: Path, optional: bool) -> tuple[str, int]:
    """The kind of records a table has, nll or ppl, and the number of their columns; none where that is enough."""
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
    if optional:
        return "nll", 0
    raise UserError(
        f"scores={file}: has no column nll_0 (or ppl_0). Name the columns nll_0, nll_1, ... (mean NLL in nats before "
        "training, after epoch 1, ...) or ppl_0, ppl_1, ... (perplexity)."
    )


def _sorted(scores: ScoreTable, file: Path) -> ScoreTable:
    if len(scores) == 0:
        raise UserError(f"scores={file}: has no rows. Give a table with a row for every row of the data set.")
    if not (np.diff(scores.index) > 0).all():
        scores = scores.take(np.argsort(scores.index, kind="stable"))
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
            records_EN[epoch] = self._numbers(f"{kind}_{epoch}", "numbers, empty where a row has no supervised token")
        least, records = LEAST[kind]
        if (low_EN := records_EN < least - ROUNDING).any():
            epoch, row = np.argwhere(low_EN)[0]
            raise UserError(
                f"scores={self.file}: {kind}_{epoch} of row {row} is {records_EN[epoch, row]}, {records} are "
                f"{least} or more (a log-likelihood has the other sign). Leave it empty where the row has no "
                "supervised token."
            )
        return records_EN

    def further(self, name: str) -> NDArray[np.float64] | None:
        """A column that a rule asks for, or None; an NLL from its perplexity where only that is there."""
        if name in self.table.column_names:
            return self._numbers(name, "numbers, empty where a row has none")
        if (other := _as_perplexity(name)) in self.table.column_names:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.log(self._numbers(other, "perplexities, empty where a row has none"))
        return None

    def _numbers(self, name: str, must: str) -> NDArray[np.float64]:
        column = self.table[name]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or _empty(column)):
            raise self._wrong(name, column, must)
        return column.cast(pa.float64()).to_numpy()

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
