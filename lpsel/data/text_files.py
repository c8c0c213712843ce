"""Read text files, plain or compressed, as numbered lines or in chunks."""

import codecs
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import IO

from fsspec.compression import compr

from lpsel.data.size_limits import VALUE_BYTES, check_expansion, too_long
from lpsel.errors import UnusableRow, UserError, first_line

CHUNK_BYTES = 1 << 18
HEAD_BYTES = 4096  # bytes to detect UTF-16 and UTF-32 from
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
MAGIC = {  # extensions, and how the content of such files begins
    ".gz": b"\x1f\x8b\x08",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".zip": b"PK\x03\x04",
    ".parquet": b"PAR1\x15",
}
WIDE = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines including line ends, split at line feeds only, without a byte order mark.

    Raises:
        UserError: the file is damaged, a decompression bomb, in UTF-16 or UTF-32, or has a line of more than 64 MiB.
    """
    for number, line in enumerate(_pieces(path, methodcaller("readline", VALUE_BYTES + 1)), start=1):
        if len(line) > VALUE_BYTES:
            raise too_long(f"{path}, line {number}")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def chunks(path: Path) -> Iterator[str]:
    """Yield the text in chunks of at most CHUNK_BYTES, without a byte order mark.

    Raises:
        UserError: the file is damaged, a decompression bomb, or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    try:
        for block in _pieces(path, methodcaller("read", CHUNK_BYTES)):
            text = decoder.decode(block)
            line += text.count("\n")
            yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(path, line + error.object[: error.start].count(b"\n"), error) from None


def _pieces(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """Yield what `read` returns for the decompressed file, until that is empty."""
    decompress = COMPRESSIONS.get(path.suffix.lower())
    total = 0
    with path.open("rb") as packed:
        try:
            content = decompress(packed) if decompress else packed
            for piece in iter(partial(read, content), b""):
                if not total:
                    _check_text(path, piece)
                total += len(piece)
                if decompress:
                    check_expansion(path, total)
                yield piece
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            problem = f"cannot be read to the end ({first_line(error)})"
            raise UserError(path, None, problem, "download or compress it again") from None


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UnusableRow:
    """Return the error for a line that is not UTF-8, with the encoding that it probably has."""
    start = error.object.rfind(b"\n", 0, error.start) + 1
    encoding = _encoding(error.object[start:].partition(b"\n")[0])
    problem = f"not UTF-8 ({error.reason})" + (f", but valid as {encoding}" if encoding else "")
    hint = f"convert the file: iconv -f {encoding or 'ENCODING'} -t UTF-8"
    return UnusableRow(f"{path}, line {line}", None, problem, hint, kind="not UTF-8")


def _encoding(line: bytes) -> str | None:
    """Guess the encoding of a line, with its name in iconv; None if it is not text."""
    from charset_normalizer import from_bytes  # takes 10 ms to import

    if not re.search(rb"[\x80-\xff]{3}", line) and _is_text(line, "cp1252"):  # accented characters among ASCII letters
        return "CP1252"
    best = from_bytes(line).best()
    if best is None or best.encoding.startswith("utf") or not _is_text(line, best.encoding):
        return None
    return best.encoding.upper().replace("_", "-")


def _is_text(content: bytes, encoding: str) -> bool:
    try:
        return not CONTROL.search(content.decode(encoding))
    except UnicodeDecodeError:
        return False


def _check_text(path: Path, beginning: bytes) -> None:
    """Reject a binary file, or one in UTF-16 or UTF-32, detected from its first line or block."""
    for kind, magic in MAGIC.items():
        if beginning.startswith(magic):
            hint = f"name it {path.name}{kind}" if kind in COMPRESSIONS else f"its name should end in {kind}"
            if path.suffix.lower() in COMPRESSIONS:
                hint = "decompress it first"
            raise UserError(path, None, f"not text, but the content of a {kind} file", hint)
    encoding = _wide_encoding(beginning[: min(len(beginning), HEAD_BYTES) // 2 * 2])
    if encoding is not None:
        hint = f"convert the file: iconv -f {encoding} -t UTF-8"
        raise UserError(f"{path}, line 1", None, f"not UTF-8, but {encoding}", hint)


def _wide_encoding(head: bytes) -> str | None:
    """Detect UTF-16 and UTF-32 from an even number of bytes; None for other encodings."""
    for encoding, marks in WIDE.items():
        if head.startswith(marks):
            return encoding
    if 4 * head.count(0) > len(head):  # every second byte of ASCII
        likely = "UTF-16LE" if head[1::2].count(0) > head[::2].count(0) else "UTF-16BE"
        return likely if _is_text(head, likely) else None
    return None


def _zstandard(packed: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa  # the zstandard package, which fsspec uses, accepts truncated frames

    return io.BufferedReader(pa.CompressedInputStream(packed, "zstd"), CHUNK_BYTES)


COMPRESSIONS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".xz": compr["xz"],
    ".gz": compr["gzip"],
    ".zst": _zstandard,
}
