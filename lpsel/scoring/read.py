"""Read scores from a scores folder, a Parquet or CSV table, the arrays released with the paper, or another tool.

N rows, E recorded columns (0 = before training, then one after each epoch)
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.data.size_limits import check_expansion
from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, unseal
from lpsel.redact import printable
from lpsel.scoring.csv_scores import read_csv
from lpsel.scoring.external import read_external
from lpsel.scoring.npz import SUFFIX, read_npz
from lpsel.scoring.store import FORMAT, MANIFEST
from lpsel.scoring.store import SCORES as SCORES_FILE
from lpsel.scoring.table import ScoreTable, from_arrow

RECORDED = re.compile(r"(nll|ppl)_(0|[1-9][0-9]*)")
OPTIONAL = ("index", "id", "prompt_tokens", "response_tokens", "truncated", "cluster", "unusable")
TEXTS = ("string", "large_string", "string_view")  # Arrow types, also as the value type of a dictionary
MINIMUM = {"nll": (0, "losses"), "ppl": (1, "perplexities")}
ROUNDING = 1e-3  # how far rounding may put a record below the minimum
FILES = "use a scores folder, or a .parquet, .csv, .tsv or .npz file"


def read_scores(
    path: str | Path,
    key: str | None = None,
    columns: Collection[str] = (),
    clusters: bool = True,
    rows: Callable[[], int] = lambda: 0,
) -> ScoreTable:
    """Read a scores folder, a Parquet or CSV table of scores, or a .npz of perplexities, sorted by `index`.

    A table needs the columns nll_0 .. nll_n or ppl_0 .. ppl_n (nll takes precedence), or one of `columns`. Without
    `index`, rows are numbered from 0. Without `response_tokens`, a row counts as having none if its first record is
    null, or if its NLL is exactly 0 in every record, as in the paper's released perplexities (all 1 for such rows). A
    .npz contains arrays of perplexities, (E, N) each, and optionally `cluster`, (N,). From files of other tools
    (`lpsel.scoring.external`), only `columns` are read.

    Args:
        key: name of the array to read if a .npz has several.
        columns: other columns to read if the table has them; `ppl_X` is used in place of a missing `nll_X`.
        clusters: whether to read the column `cluster`.
        rows: returns the number of rows in the dataset, 0 if unknown; called for files of other tools that contain only
            some of them, and for a single CSV column that ends with empty lines, which may be rows without a value.

    Raises:
        UserError: the file or array does not exist, epochs are missing, a column has the wrong type, or the contents of
            a scores folder do not match its manifest.
    """
    file = Path(str(path)).expanduser()
    is_scores_folder = file.is_dir() and (file / SCORES_FILE).is_file()
    table = None if is_scores_folder else read_external(file, rows)
    expected = None  # fingerprint of the rows
    if table is None:
        file, expected = _check_folder(path)
    if key is not None and file.suffix != SUFFIX:
        raise UserError("scores_key", key, f"names an array of a .npz file, but {file.name} is not one", "remove it")
    if table is None:
        table = read_npz(file, key) if file.suffix == SUFFIX else read_table(file, columns, rows)
    scores = _sorted(_Columns(table, file).scores(columns, clusters), file)
    if expected is not None and (actual := scores.fingerprint()) != expected:
        fingerprints = f"{str(actual)[:12]}, but its {MANIFEST} belongs to rows with {str(expected)[:12]}"
        hint = f"restore the {MANIFEST} that belongs to it, or score again"
        raise UserError("scores", file, f"its rows have fingerprint {fingerprints}", hint)
    return scores


def cluster_codes(values: Any) -> NDArray[np.int32]:
    """Encode clusters as int32 (N,): integers are kept, other values are numbered from 0 in sorted order.

    Args:
        values: a sequence or an Arrow array, without nulls.
    """
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if pa.types.is_integer(array.type) and len(array) and abs(array.to_numpy()).max() <= np.iinfo(np.int32).max:
        return array.to_numpy().astype(np.int32)
    encoded = array.dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int32)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)]


def _check_folder(path: str | Path) -> tuple[Path, str | None]:
    """Return the file to read and, for a scores folder, the fingerprint of its rows."""
    file = Path(str(path)).expanduser()
    in_folder = file.is_dir()
    file = file / SCORES_FILE if in_folder else file
    manifest = file.with_name(MANIFEST)
    if in_folder and file.is_file() and not manifest.is_file():
        problem = f"has no {MANIFEST}, which is written last, so it is not complete"
        raise UserError("scores", path, problem, f"score again, or use {file} if that is your own table")
    if file.name != SCORES_FILE or not manifest.exists():
        return file, None
    try:
        return file, unseal(manifest, FORMAT).get("dataset_fingerprint")
    except Damaged as damage:
        hint = f"delete {file.parent} and score again, or rename {file.name} if it is your own table"
        raise UserError("scores", damage.name, damage.problem, hint) from None


def read_table(file: Path, columns: Collection[str] = (), rows: Callable[[], int] = lambda: 0) -> pa.Table:
    """Read the columns of the scores format and `columns` from a Parquet or CSV file; `rows` as in `read_scores`.

    Raises:
        UserError: the file does not exist, cannot be read, or has two columns with the same name.
    """
    if not file.is_file():
        raise UserError("scores", file, "no such file", FILES)
    file.open("rb").close()  # Arrow's own error would not name the file
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as parquet:
                groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
                check_expansion(file, sum(group.total_byte_size for group in groups), f"scores={file}")
                return parquet.read(columns=_used_columns(parquet.schema_arrow.names, columns, file))
        if suffix in (".csv", ".tsv"):
            table = read_csv(file, rows)
            return table.select(_used_columns(table.column_names, columns, file))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError("scores", file, f"cannot be read ({printable_line(error)})", "use a complete file") from error
    raise UserError("scores", file, "unknown file type", FILES)


def _used_columns(names: list[str], columns: Collection[str], file: Path) -> list[str]:
    """Return those of a file's columns that are in the scores format or `columns`; all names if none has scores."""
    requested = {*columns, *map(_as_perplexity, columns)}
    used = [name for name in names if name in OPTIONAL or RECORDED.fullmatch(name) or name in requested]
    for name in used:
        if used.count(name) > 1:
            raise UserError("scores", file, f"has {used.count(name)} columns {name}", "keep one of them")
    return used if set(used).difference(OPTIONAL) else names  # all names, for the error message


def _as_perplexity(name: str) -> str:
    return name.replace("nll_", "ppl_", 1) if name.startswith("nll_") else name


def _sorted(scores: ScoreTable, file: Path) -> ScoreTable:
    if len(scores) == 0:
        raise UserError("scores", file, "has no rows", "use a table with one row for every row of the dataset")
    if not (np.diff(scores.index) > 0).all():
        scores = scores.take(np.argsort(scores.index, kind="stable"))
        twice = np.flatnonzero(np.diff(scores.index) == 0)
        if len(twice):
            raise UserError("scores", file, f"has index {scores.index[twice[0]]} twice", "keep one row of each")
    return scores


class _Columns:
    """Converts the columns of a table to the arrays of a ScoreTable, with errors that name the column."""

    def __init__(self, table: pa.Table, file: Path) -> None:
        self.table, self.file, self.names = table, file, table.column_names

    def scores(self, columns: Collection[str], clusters: bool) -> ScoreTable:
        kind, n_records = self._recorded(optional=any(name in columns for name in self.names))
        records_EN = self._records(kind, n_records)
        nll_EN = np.log(records_EN) if kind == "ppl" else records_EN
        n = len(self.table)
        supervised_N = ~np.isnan(nll_EN[0]) & (nll_EN != 0).any(axis=0) if n_records else np.ones(n, np.bool_)
        truncated = self._valid("truncated", pa.types.is_boolean, "true or false in every row")
        ids = self._valid("id", _is_scalar, "an id in every row, or left out")
        cluster = None  # also if all are null, as in the selection.parquet of a run without clusters
        if clusters and "cluster" in self.names and self.table["cluster"].null_count < n:
            expected = "a number or a string in every row (or set cluster=none)"
            cluster = self._valid("cluster", lambda type_: not pa.types.is_nested(type_), expected)
        return ScoreTable(
            index=self._integers("index", np.arange(n)),
            id=None if ids is None else _one_array(ids.cast(pa.large_string())),
            prompt_tokens=self._integers("prompt_tokens", np.zeros(n, np.int32)),
            response_tokens=self._integers("response_tokens", supervised_N.astype(np.int32)),
            truncated=np.zeros(n, np.bool_) if truncated is None else truncated.to_numpy(),
            nll=nll_EN,
            cluster=None if cluster is None else cluster_codes(_one_array(cluster)),
            ppl=records_EN if kind == "ppl" else None,
            tokens_known={"prompt_tokens", "response_tokens"} <= set(self.names),
            columns={name: column for name in columns if (column := self._requested(name)) is not None},
            unusable=self._unusable(),
        )

    def _unusable(self) -> pa.Array | None:
        """Return the kinds of skipped rows, None if there are none. Empty CSV cells, read as "", count as null."""
        column = self.table["unusable"] if "unusable" in self.names else None
        if column is None or column.null_count == len(column):
            return None
        value_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if str(value_type) not in TEXTS:
            raise self._wrong("unusable", "a string where a row cannot be used, else empty")
        texts = _one_array(column.cast(pa.string()))
        kinds = pc.if_else(pc.equal(texts, ""), None, texts)
        return None if kinds.null_count == len(kinds) else kinds

    def _recorded(self, optional: bool) -> tuple[str, int]:
        """Return the kind of records, nll or ppl, and the number of their columns; 0 is allowed if `optional`."""
        matches = [match for match in map(RECORDED.fullmatch, self.names) if match]
        for kind in ("nll", "ppl"):
            epochs = sorted(int(match[2]) for match in matches if match[1] == kind)
            if epochs and epochs != list(range(len(epochs))):
                missing = next(epoch for epoch in range(epochs[-1]) if epoch not in epochs)
                problem = f"has {kind}_{epochs[-1]} but no {kind}_{missing}"
                raise UserError("scores", self.file, problem, f"add every epoch, from {kind}_0 (before training) on")
            if epochs:
                return kind, len(epochs)
        if optional:
            return "nll", 0
        hint = "name the columns nll_0, nll_1, ... (mean NLL in nats before training, after epoch 1, ...) or ppl_0, ..."
        if others := [name for name in self.names if name not in OPTIONAL]:
            hint += f", or set selection=score_column selection.column=NAME, of {printable(', '.join(others))}"
        raise UserError("scores", self.file, "has no column nll_0 (or ppl_0)", hint)

    def _records(self, kind: str, n_records: int) -> NDArray[np.float64]:
        records_EN = np.empty((n_records, len(self.table)))
        for epoch in range(n_records):
            records_EN[epoch] = self._numbers(f"{kind}_{epoch}", "numbers, empty where a row has no supervised token")
        minimum, plural = MINIMUM[kind]
        too_low = np.argwhere(records_EN < minimum - ROUNDING)
        if len(too_low):
            epoch, row = too_low[0]
            problem = f"{kind}_{epoch} of row {row} is {records_EN[epoch, row]}, {plural} are {minimum} or more"
            hint = "negate log-likelihoods, and leave a cell empty where a row has no supervised token"
            raise UserError("scores", self.file, problem, hint)
        return records_EN

    def _requested(self, name: str) -> NDArray[np.float64] | None:
        """Return a column that a rule ranks by, or None; `nll_X` is computed from `ppl_X` if it is missing."""
        if name in self.names:
            return self._numbers(name, "numbers, empty where a row has none")
        perplexity = _as_perplexity(name)
        if perplexity in self.names:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.log(self._numbers(perplexity, "perplexities, empty where a row has none"))
        return None

    def _numbers(self, name: str, expected: str) -> NDArray[np.float64]:
        column = self.table[name]
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
        if not any(is_kind(column.type) for is_kind in kinds) and column.null_count < len(column):
            raise self._wrong(name, expected, _first_text(column))
        return from_arrow(column)

    def _integers(self, name: str, default_N: NDArray[Any]) -> NDArray[Any]:
        column = self._valid(name, pa.types.is_integer, "an integer in every row")
        if column is None:
            return default_N
        values_N = column.to_numpy()
        if len(values_N) and not 0 <= values_N.min() <= values_N.max() <= np.iinfo(default_N.dtype).max:
            problem = f"column {name} has values from {values_N.min()} to {values_N.max()}, must be 0 or more"
            raise UserError("scores", self.file, problem)
        return values_N.astype(default_N.dtype)

    def _valid(self, name: str, is_valid: Callable[[Any], bool], expected: str) -> pa.ChunkedArray | None:
        """Return a column after checking its type and that it has no nulls, or None if the table does not have it."""
        if name not in self.names:
            return None
        column = self.table[name]
        if column.null_count or not is_valid(column.type):
            raise self._wrong(name, expected)
        return column

    def _wrong(self, name: str, expected: str, example: str = "") -> UserError:
        column = self.table[name]
        nulls = f" with {column.null_count} empty" if column.null_count else ""
        return UserError("scores", self.file, f"column {name} is {column.type}{nulls}{example}, must be {expected}")


def _is_scalar(type_: pa.DataType) -> bool:
    return not (pa.types.is_nested(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _first_text(column: pa.ChunkedArray) -> str:
    """Describe the first text in a column that is not a number, for messages; empty if there is none."""
    for row, value in enumerate(column.to_pylist() if str(column.type) in TEXTS else ()):
        try:
            float(value or "nan")
        except ValueError:
            return f" with {printable(value[:40])!r} in row {row}"
    return ""


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
