"""Read local files row by row as dictionaries: JSON, JSON lines, CSV and Parquet, plain or compressed."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from lpsel.data.size_limits import VALUE_BYTES, check_expansion, too_long
from lpsel.data.text_files import CHUNK_BYTES, COMPRESSIONS, chunks, lines, not_utf8
from lpsel.errors import UnusableRow, UserError, first_line
from lpsel.redact import printable

PARQUET_ROWS = 256  # rows converted to dictionaries at a time
DECODER = json.JSONDecoder()
NOT_SPACE = re.compile(r"[^ \t\n\r]")
LONGEST_SYMBOL = 16  # maximum characters of a JSON token that a chunk can split, such as -Infinity or an escape
DELIMITERS = ",;\t|"  # CSV delimiters to detect
ONE_LIST = "name the file .json if it is one list"
HINT_BY_BEGINNING = {b"[": ONE_LIST, b"[{": ONE_LIST, b"{": "write every object in one line, as with `jq -c .`"}
EXCEL = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # a first line with the delimiter
QUOTED = re.compile(r'"[^"]*("|$)')


class Numbered(NamedTuple):
    """A row, or the error for an invalid one, with its line or row number in the file, counted from 1."""

    number: int
    row: dict[str, Any] | UnusableRow


class Part(NamedTuple):
    """A file of a dataset, or an entire dataset that is not local; `unit` is what row numbers count (line or row)."""

    location: str
    unit: str
    rows: Iterator[Numbered]

    def at(self, number: int) -> str:
        return f"{self.location}, {self.unit} {number}"


def valid_rows(numbered: Iterable[Numbered]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows with their numbers; raise the error of the first invalid one."""
    for number, row in numbered:
        if isinstance(row, UnusableRow):
            raise row
        yield number, row


class Reader(NamedTuple):
    """Reads a file format; `unit` is what `Numbered.number` counts (line or row)."""

    read: Callable[[Path, str], Iterator[Numbered]]
    unit: str


def reader_of(path: str) -> Reader | None:
    """Return the reader for a file name; None for an unknown extension."""
    name = Path(path).name.lower()
    for extension in COMPRESSIONS:
        name = name.removesuffix(extension)
    kind = Path(name).suffix
    if kind == ".parquet" and not path.lower().endswith(kind):  # Parquet has its own compression
        return None
    return READERS.get(kind)


def _json_lines(path: Path, split: str) -> Iterator[Numbered]:
    for number, line in lines(path):
        if not (line := line.strip()):
            continue
        try:
            text = line.decode()
            row, end = DECODER.raw_decode(text)  # faster than json.loads
            if end < len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except UnicodeDecodeError as error:
            yield Numbered(number, not_utf8(path, number, error))
        except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
            problem, hint = f"not a valid JSON object ({first_line(error)})", "fix or remove the line"
            if number == 1:
                hint = HINT_BY_BEGINNING.get(line[:2], hint)
            yield Numbered(number, UnusableRow(f"{path}, line {number}", None, problem, hint, kind="invalid JSON"))
        else:
            yield Numbered(number, row if type(row) is dict else _no_object(row, f"{path}, line {number}", number == 1))


def _csv(path: Path, split: str) -> Iterator[Numbered]:
    csv.field_size_limit(VALUE_BYTES)
    errors: list[UnusableRow] = []  # in lines of the current row
    texts = _texts(path, errors)
    beginning: list[str] = []  # blank lines, and the first line of the header
    delimiter, first_text = "", ""
    for first_text in texts:
        if not delimiter and (separator := EXCEL.fullmatch(first_text)):
            delimiter, first_text = separator[1], "\n"
        beginning.append(first_text)
        if first_text.strip():
            break
    if errors:
        raise errors[0]
    delimiter = delimiter or delimiter_of(first_text)
    line = 1  # where the current row begins
    try:
        reader = csv.reader(chain(beginning, texts), strict=True, delimiter=delimiter)
        header = next((fields for fields in reader if "".join(fields).strip()), [])
        _check_columns(header, path)
        line, width = reader.line_num + 1, len(header)
        for fields in reader:
            if errors:
                yield Numbered(line, errors[0])
                errors.clear()
            elif len(fields) == width:
                yield Numbered(line, dict(zip(header, fields, strict=True)))
            elif len(fields) > 1 or "".join(fields).strip():  # not a blank line
                problem = f"{len(fields)} fields, but the header has {width}"
                hint = f"quote fields that contain {delimiter!r} or line breaks"
                kind = "fields unlike the header's"
                yield Numbered(line, UnusableRow(f"{path}, line {line}", None, problem, hint, kind=kind))
            line = reader.line_num + 1
    except csv.Error as error:
        if "\r" in first_text.rstrip("\r\n"):
            problem, hint = "its lines end with a carriage return only", "convert the file: tr '\\r' '\\n'"
            raise UserError(path, None, problem, hint) from None
        raise UserError(f"{path}, line {line}", None, f"not valid CSV ({error})", "fix or remove the row") from None


def delimiter_of(header: str) -> str:
    """Detect the delimiter of a CSV file from its header."""
    return max(DELIMITERS, key=QUOTED.sub("", header).count)


def _texts(path: Path, errors: list[UnusableRow]) -> Iterator[str]:
    """Yield the lines of a file; add an error to `errors` for lines that are not UTF-8."""
    for number, line in lines(path):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            errors.append(not_utf8(path, number, error))
            yield line.decode(errors="replace")


def _parquet(path: Path, split: str) -> Iterator[Numbered]:
    import pyarrow.parquet as pq

    from lpsel.data.parquet import batches, dictionaries, parquet_errors

    numbers = count(1)
    path.open("rb").close()  # Arrow's error would not name the file
    with parquet_errors(path):
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            check_expansion(path, sum(group.total_byte_size for group in groups))
            _check_columns(file.schema_arrow.names, path)
        for batch in batches(path):
            for start in range(0, len(batch), PARQUET_ROWS):
                for row in dictionaries(batch.slice(start, PARQUET_ROWS)):
                    yield Numbered(next(numbers), row)


def _check_columns(names: Sequence[str], path: Path) -> None:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(path, None, f"{names.count(repeated)} columns are named {repeated!r}", "rename all but one")


def _json(path: Path, split: str) -> Iterator[Numbered]:
    """Read a list of objects, or an object with such a list under "data" or the name of the split."""
    text = _JsonText(path)
    if text.skip("["):
        yield from text.rows()
    elif text.skip("{"):
        yield from _rows_in_object(text, {"data", split})
    else:
        raise UserError(path, None, 'must be a list of objects, or {"data": [...]}', "write it as JSON lines")
    text.expect("")


def _rows_in_object(text: "_JsonText", names: set[str]) -> Iterator[Numbered]:
    """Yield the rows of the first list with one of the names; raise a UserError if there is none."""
    found, other_lists = False, list[str]()
    for _ in text.items("}"):
        name = text.value()
        text.expect(":")
        if not text.skip("["):
            text.value()
        elif found or name not in names:
            other_lists.append(str(name))
            for _ in text.items("]"):
                text.value()
        else:
            found = True
            yield from text.rows()
    if not found:
        problem = f"no list named {' or '.join(sorted(names))}"
        hint = "name the file .jsonl if it has one object per line"
        if other_lists and text.skip(""):  # the object is the entire file
            problem += f", only {printable(', '.join(other_lists))}"
            hint = f"set dataset.split to the list of rows, or {hint}"
        raise UserError(text.path, None, problem, hint)


class _JsonText:
    """An incremental parser of a JSON file, with only the current value in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.row = path, 1
        self._chunks = chunks(path)
        self._text, self._position = "", 0

    def rows(self) -> Iterator[Numbered]:
        """Yield the objects of a list, after its opening bracket."""
        for _ in self.items("]"):
            row = self.value()
            yield Numbered(self.row, row if isinstance(row, dict) else _no_object(row, self._location))
            self.row += 1

    def items(self, end: str) -> Iterator[None]:
        """Yield before every item of a list or object, after its opening bracket and up to `end`."""
        if self.skip(end):
            return
        yield
        while not self.skip(end):
            self.expect(",")
            yield

    def skip(self, symbol: str) -> bool:
        """Consume `symbol` if it is next after white space; return whether it was. "" matches the end of the text."""
        found = self._next() == symbol
        self._position += len(symbol) if found else 0
        return found

    def expect(self, symbol: str) -> None:
        if not self.skip(symbol):
            raise self._invalid(f"Expecting {symbol!r}" if symbol else "Extra data")

    def value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or error.pos > len(self._text) - LONGEST_SYMBOL
                if not incomplete or not self._read_more():
                    raise self._invalid(error.msg) from None
            except (ValueError, RecursionError) as error:  # ValueError: a number with thousands of digits
                raise self._invalid(first_line(error)) from None
            else:
                if end <= len(self._text) - LONGEST_SYMBOL or not self._read_more():  # may continue
                    self._position = end
                    return value

    def _next(self) -> str:
        """Skip white space and return the next character without consuming it; empty at the end of the text."""
        while (found := NOT_SPACE.search(self._text, self._position)) is None:
            self._position = len(self._text)
            if not self._read_more():
                return ""
        self._position = found.start()
        return found[0]

    @property
    def _location(self) -> str:
        return f"{self.path}, row {self.row}"

    def _invalid(self, problem: str) -> UserError:
        return UserError(self._location, None, f"not valid JSON ({problem})", "fix the file or write it again")

    def _read_more(self) -> bool:
        """Read as much again as is buffered, so that a long value is decoded only a few times; False at the end."""
        rest = self._text[self._position :]
        if len(rest) > VALUE_BYTES:
            raise too_long(self._location)
        chunks = list(islice(self._chunks, len(rest) // CHUNK_BYTES + 1))
        if chunks:
            self._text, self._position = "".join([rest, *chunks]), 0
        return bool(chunks)


def _no_object(row: Any, location: str, may_be_file: bool = False) -> UnusableRow:
    problem = f"a row must be a JSON object, found a {type(row).__name__}"
    is_file = may_be_file and isinstance(row, list)
    hint = ONE_LIST if is_file else 'write it as {"instruction": ..., "output": ...}'
    return UnusableRow(location, None, problem, hint, kind="a row that is not an object")


READERS = {
    ".json": Reader(_json, "row"),
    ".jsonl": Reader(_json_lines, "line"),
    ".ndjson": Reader(_json_lines, "line"),
    ".csv": Reader(_csv, "line"),
    ".tsv": Reader(_csv, "line"),
    ".parquet": Reader(_parquet, "row"),
}
ENDINGS = ".json, .jsonl, .ndjson, .csv, .tsv (each also .xz, .gz, .zst) or .parquet"
