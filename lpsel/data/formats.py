"""Local files to dictionaries, one row at a time: JSON, JSON lines, CSV and Parquet, plain or compressed."""

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from lpsel.data.size_limits import VALUE_BYTES, check_expansion, lines_within, too_long
from lpsel.errors import UserError, first_line

CHUNK_BYTES = 1 << 18
PARQUET_ROWS = 256  # that are dictionaries at once
WHITESPACE = re.compile(r"[ \t\r\n]*")


class Numbered(NamedTuple):
    """A row and where it begins in its file: a line for text, a row for Parquet, counted from 1."""

    number: int
    row: dict[str, Any]


class Reader(NamedTuple):
    """How a kind of file is read, and what its rows are counted in."""

    read: Callable[[Path, str], Iterator[Numbered]]
    unit: str


def reader_of(path: str) -> Reader | None:
    """The reader that a file's name asks for, None where its extension is not known."""
    name = Path(path).name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
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
        except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
            reason = first_line(error)
            raise UserError(f"{path}, line {number}: not a whole JSON object ({reason}). Mend or remove it.") from None
        yield Numbered(number, _object(row, path, number))


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
                raise UserError(
                    f"{path}, line {begins}: {len(fields)} fields where the header has {len(header)}. "
                    "Quote fields that hold commas or line breaks."
                )
            elif fields:
                yield Numbered(begins, dict(zip(header, fields, strict=True)))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {begins}: not CSV ({error}). Mend or remove the row.") from None


def _parquet(path: Path, split: str) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lpsel.data.parquet import batches

    number = 0
    path.open("rb").close()  # Arrow's own error would not name the file
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            check_expansion(path, sum(group.total_byte_size for group in groups))
            _check_columns(file.schema_arrow.names, path)
        for batch in batches(path):
            for start in range(0, len(batch), PARQUET_ROWS):
                for row in batch.slice(start, PARQUET_ROWS).to_pylist():
                    number += 1
                    yield Numbered(number, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as Parquet ({first_line(error)}). Write it again.") from None


def _check_columns(names: Sequence[str], path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: has {names.count(twice)} columns {twice!r}; rename all but one.")


def _json(path: Path, split: str) -> Iterator[Numbered]:
    """An array of objects, or an object with such an array under "data" or the split's name."""
    text = _JsonText(path)
    opening = text.peek()
    if opening == "{":
        _enter_list(text, {"data", split})
    elif opening != "[":
        raise text.error('the file must be a list of objects, or {"data": [...]}')
    text.skip("[")
    if text.peek() == "]":
        return
    while True:
        text.peek()
        number = text.line
        yield Numbered(number, _object(text.value(), path, number))
        if text.peek() == "]":
            break
        text.skip(",")
    text.skip("]")
    if opening == "[" and text.peek():
        raise text.error("text after the list")


def _enter_list(text: "_JsonText", names: set[str]) -> None:
    text.skip("{")
    while text.peek() == '"':
        name = text.value()
        text.skip(":")
        if name in names and text.peek() == "[":
            return
        text.value()
        if text.peek() == ",":
            text.skip(",")
    raise text.error(f"no list under {' or '.join(sorted(names))}. If the file holds one object a line, call it .jsonl")


class _JsonText:
    """The unread part of a JSON file: values are parsed one at a time, never the whole file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 1
        self._chunks = _chunks(path)
        self._buffer = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            space = WHITESPACE.match(self._buffer, self._position)
            assert space is not None
            self._move(space.end())
            if space.end() < len(self._buffer):
                return self._buffer[space.end()]
            if not self._fill(1):
                return ""

    def skip(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.error(f"{character} expected, found {found or 'the end of the file'}")
        self._move(self._position + 1)

    def value(self) -> Any:
        self.peek()
        wanted = CHUNK_BYTES
        while True:
            failure = None
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
                failure = error
            if (len(self._buffer) if failure else end) - self._position > VALUE_BYTES:
                raise too_long(self.path, self.line)
            # A number that ends where the buffer does may go on in the next chunk.
            if failure is None and end < len(self._buffer):
                self._move(end)
                return value
            if not self._fill(wanted):
                if failure is not None:
                    raise self.error(f"not a whole JSON value, {first_line(failure).split(':')[0]}")
                self._move(end)
                return value
            wanted *= 2

    def error(self, what: str) -> UserError:
        return UserError(
            f"{self.path}, line {self.line}: not the JSON expected: {what}. Mend the file or write it again."
        )

    def _move(self, position: int) -> None:
        self.line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _fill(self, characters: int) -> bool:
        """Read on by at least so many characters, as far as there are; False at the end of the file."""
        new: list[str] = []
        for chunk in self._chunks:
            new.append(chunk)
            characters -= len(chunk)
            if characters <= 0:
                break
        self._buffer = self._buffer[self._position :] + "".join(new)
        self._position = 0
        return any(new)


def _object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f"{path}, line {number}: a row must be a JSON object such as "
            f'{{"instruction": ..., "output": ...}}, found a {type(row).__name__}.'
        )
    return row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, split at line feeds only."""
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(lines_within(file, path, _compressed(path)), 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error) from None
        except _damage() as error:
            raise _damaged(path, error) from None


def _chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line, total = 1, 0
    with _open(path) as file:
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
            line += error.object[: error.start].count(b"\n")
            raise _not_utf8(path, line, error) from None
        except _damage() as error:
            raise _damaged(path, error) from None


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path}, line {line}: not UTF-8 ({error.reason}). Convert the file: iconv -f ENCODING -t UTF-8.")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read to its end ({first_line(error)}). Fetch or compress it again.")


def _damage() -> tuple[type[Exception], ...]:
    return (EOFError, OSError, lzma.LZMAError, zlib.error)


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def _open(path: Path) -> IO[bytes]:
    return COMPRESSIONS.get(path.suffix.lower(), _open_plain)(path)


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_gzip(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb"))


def _open_xz(path: Path) -> IO[bytes]:
    return lzma.open(path, "rb")


def _open_zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa  # the package zstandard takes half a frame for a whole one

    return io.BufferedReader(pa.CompressedInputStream(path.open("rb"), "zstd"), CHUNK_BYTES)


COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {".xz": _open_xz, ".gz": _open_gzip, ".zst": _open_zstandard}
READERS = {
    ".json": Reader(_json, "line"),
    ".jsonl": Reader(_json_lines, "line"),
    ".csv": Reader(_csv, "line"),
    ".parquet": Reader(_parquet, "row"),
}
ENDINGS = ".json, .jsonl, .csv (each also .xz, .gz, .zst) or .parquet"
