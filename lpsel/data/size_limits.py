"""What a file may hold at most, so that a small one cannot fill the memory or keep a run reading for ever."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lpsel.errors import UserError

MIB = 1 << 20
VALUE_BYTES = 64 * MIB  # of a line, or a value of a JSON list: thousands of times a long row
EXPANDED_BYTES = 256 * MIB  # up to here a file may be packed as tightly as it likes
RATIO = 200  # of a file's content to its size above that; text compresses about 4 times, very repetitive text 50


def check_expansion(path: Path, expanded: int, named: str = "") -> None:
    """See that what is inside a compressed file bears a relation to its size.

    Args:
        expanded: bytes so far, or as the file announces.
        named: what to call the file in the message.

    Raises:
        UserError: it is a decompression bomb, or as good as one.
    """
    if expanded > EXPANDED_BYTES and expanded > RATIO * (packed := path.stat().st_size):
        raise UserError(
            f"{named or path}: {packed:,} bytes expand to {expanded:,} or more, above {RATIO} times the file. Where "
            "that is meant, unpack it yourself and give it uncompressed."
        )


def check_archive(path: Path, named: str) -> None:
    """The same for the members of a ZIP archive, .npz for one, by the sizes it announces.

    Raises:
        UserError: as `check_expansion`.
    """
    with zipfile.ZipFile(path) as archive:
        check_expansion(path, sum(member.file_size for member in archive.infolist()), named)


def lines_within(file: IO[bytes], path: Path, compressed: bool) -> Iterator[bytes]:
    """The lines of a binary file with their line ends.

    Raises:
        UserError: a line of more than VALUE_BYTES, or a file that expands beyond measure.
    """
    number = total = 0
    while line := file.readline(VALUE_BYTES + 1):
        number += 1
        total += len(line)
        if len(line) > VALUE_BYTES:
            raise too_long(path, number)
        if compressed:
            check_expansion(path, total)
        yield line


def too_long(path: Path, line: int) -> UserError:
    return UserError(f"{path}, line {line}: a value of more than {VALUE_BYTES // MIB} MiB. Split or remove it.")
