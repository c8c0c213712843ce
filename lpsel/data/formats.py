"""Local files as dictionaries, one row at a time: JSON, JSON lines, CSV and Parquet, plain or compressed."""

import codecs
import csv
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple

from fsspec.compression import compr

from lpsel.data.size_limits import VALUE_BYTES, check_expansion, too_long
from lpsel.errors import UserError, first_line, printable_line

CHUNK_BYTES = 1 << 18
PARQUET_ROWS = 256  # that are dictionaries at a time
MAX_DEPTH = 100  # of nested values in a JSON list
NESTING = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}


class Numbered(NamedTuple):
    """A row and where it begins in its file: the line or the number of the row, counted from 1."""

    number: int
    row: dict[str, Any]


class Reader(NamedTuple):
    """How to read a kind of file; `unit` is what `Numbered.number` counts."""

    read: Callable[[Path, str], Iterator[Numbered]]
    unit: str


def reader_of(path: str) -> Reader | None:
    """The reader for a file by its name; None for an unknown extension."""
    name = Path(path).name.lower()
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    kind = Path(name).suffix
    if kind == ".parquet" and not path.lower().endswith(kind):  # Parquet is compressed inside
        return None
    return READERS.get(kind)


def _json_lines(path: Path, split: str) -> Iterator[Numbered]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
            problem = f"not a valid JSON object ({first_line(error)})"
            raise UserError(f"{path}, line {number}", None, problem, "fix or remove the line") from None
        yield Numbered(number, _object(row, f"{path}, line {number}"))


def _csv(path: Path, split: str) -> Iterator[Numbered]:
    csv.field_size_limit(VALUE_BYTES)
    lines = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    begins = 1
    try:
        for fields in lines:
            if not header:
                header = fields
                _check_columns(header, path)
            elif fields and len(fields) != len(header):
                problem = f"{len(fields)} fields, but the header has {len(header)}"
                hint = "quote fields that contain commas or line breaks"
                raise UserError(f"{path}, line {begins}", None, problem, hint)
            elif fields:
                yield Numbered(begins, dict(zip(header, fields, strict=True)))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {begins}", None, f"not valid CSV ({error})", "fix or remove the row") from None


def _parquet(path: Path, split: str) -> Iterator[Numbered]:
    import pyarrow.parquet as pq

    from lpsel.data.parquet import batches, parquet_errors

    number = 0
    path.open("rb").close()  # Arrow's own error would not name the file
    with parquet_errors(path):
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            check_expansion(path, sum(group.total_byte_size for group in groups))
            _check_columns(file.schema_arrow.names, path)
        for batch in batches(path):
            for start in range(0, len(batch), PARQUET_ROWS):
                for row in batch.slice(start, PARQUET_ROWS).to_pylist():
                    number += 1
                    yield Numbered(number, row)


def _check_columns(names: Sequence[str], path: Path) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(path, None, f"{names.count(repeated)} columns are named {repeated!r}", "rename all but one")


def _json(path: Path, split: str) -> Iterator[Numbered]:
    """A list of objects, or an object with such a list under "data" or the name of the split."""
    import ijson

    text = _JsonText(path)
    events = ijson.basic_parse(text, buf_size=CHUNK_BYTES)
    try:
        opening, _ = next(events)
        if opening == "start_map":
            _enter_list(events, path, {"data", split})
        elif opening != "start_array":
            raise UserError(path, None, 'must be a list of objects, or {"data": [...]}', "write it as JSON lines")
        for value in _values(events, text):
            row = _object(value, text.location)
            yield Numbered(text.row, row)
            text.row, text.unread = text.row + 1, 0
        for _ in events:  # the parser rejects text after the list
            text.unread = 0
    except UserError:
        raise
    except (ijson.JSONError, ValueError, SystemError) as error:  # SystemError: a number with thousands of digits
        problem = f"not valid JSON ({printable_line(error)})"
        raise UserError(text.location, None, problem, "fix the file or write it again") from None


def _enter_list(events: Iterator[tuple[str, Any]], path: Path, names: set[str]) -> None:
    """Read up to the start of the first list with one of these names in the object."""
    depth, name = 1, None
    for event, value in events:
        if depth == 1 and event == "map_key":
            name = value
        elif depth == 1 and event == "start_array" and name in names:
            return
        depth += NESTING.get(event, 0)
        if not depth:
            break
    problem = f"no list named {' or '.join(sorted(names))}"
    raise UserError(path, None, problem, "name the file .jsonl if it has one object per line")


def _values(events: Iterator[tuple[str, Any]], text: "_JsonText") -> Iterator[Any]:
    """The values of the list that has just started."""
    from ijson.common import ObjectBuilder

    builder, depth = ObjectBuilder(), 0
    for event, value in events:
        if not depth and event == "end_array":
            return
        builder.event(event, float(value) if isinstance(value, Decimal) else value)
        depth += NESTING.get(event, 0)
        if depth > MAX_DEPTH:
            problem = f"a value is nested more than {MAX_DEPTH} levels deep"
            raise UserError(text.location, None, problem, "flatten or remove it")
        if not depth:
            yield builder.value
            builder = ObjectBuilder()


class _JsonText:
    """A file for ijson, without a byte order mark, with the row that is being read and the bytes read for it."""

    def __init__(self, path: Path) -> None:
        self.path, self.row, self.unread = path, 1, 0
        self._chunks = _chunks(path)

    @property
    def location(self) -> str:
        return f"{self.path}, row {self.row}"

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        chunk = next((text for text in self._chunks if text), "").encode()
        self.unread += len(chunk)
        if self.unread > VALUE_BYTES + CHUNK_BYTES:
            raise too_long(self.location)
        return chunk


def _object(row: Any, location: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        problem = f"a row must be a JSON object, found a {type(row).__name__}"
        raise UserError(location, None, problem, 'write it as {"instruction": ..., "output": ...}')
    return row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, split at line feeds only."""
    number = total = 0
    with _readable(path) as file:
        while line := file.readline(VALUE_BYTES + 1):
            number += 1
            total += len(line)
            if len(line) > VALUE_BYTES:
                raise too_long(f"{path}, line {number}")
            if _compressed(path):
                check_expansion(path, total)
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None


def _chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, total = 1, 0
    with _readable(path) as file:
        try:
            while block := file.read(CHUNK_BYTES):
                total += len(block)
                if _compressed(path):
                    check_expansion(path, total)
                text = decoder.decode(block)
                line += text.count("\n")
                yield text
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, line + error.object[: error.start].count(b"\n"), error) from None


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    hint = "convert the file: iconv -f ENCODING -t UTF-8"
    return UserError(f"{path}, line {line}", None, f"not UTF-8 ({error.reason})", hint)


@contextmanager
def _readable(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed content of a file."""
    with path.open("rb") as packed:
        try:
            yield COMPRESSIONS.get(path.suffix.lower(), lambda plain: plain)(packed)
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            problem = f"not readable to its end ({first_line(error)})"
            raise UserError(path, None, problem, "download or compress it again") from None


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def _zstandard(packed: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa  # the package zstandard, which fsspec uses, accepts half a frame

    return io.BufferedReader(pa.CompressedInputStream(packed, "zstd"), CHUNK_BYTES)


COMPRESSIONS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".xz": compr["xz"],
    ".gz": compr["gzip"],
    ".zst": _zstandard,
}
READERS = {
    ".json": Reader(_json, "row"),
    ".jsonl": Reader(_json_lines, "line"),
    ".csv": Reader(_csv, "line"),
    ".parquet": Reader(_parquet, "row"),
}
ENDINGS = ".json, .jsonl, .csv (each also .xz, .gz, .zst) or .parquet"
