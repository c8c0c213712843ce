"""Files that say what they are: a manifest with a format and the SHA-256 of each file, lines with a check of their own.

What is read was whole when it was written, and is the same now; anything else is an error that names the file.
"""

import hashlib
import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from lpsel import __version__
from lpsel.errors import UserError, printable_line
from lpsel.storage import json_line, read_json, sha256_of, write_json

CHECK = "check"  # of a line: the beginning of its SHA-256
CHECK_DIGITS = 16


class Damaged(UserError):
    """A file is not what its manifest says; `name` is the file. The caller knows what to do about it."""

    def with_hint(self, hint: str) -> UserError:
        """The error for the user."""
        return UserError(self.name, self.value, self.problem, hint)


def seal(manifest: Path, files: Collection[str], described: dict[str, Any]) -> None:
    """Write the manifest of finished files beside it: `described`, and the SHA-256 of each."""
    hashes = {name: sha256_of(manifest.parent / name) for name in files}
    write_json(manifest, described | {"sha256": hashes})


def unseal(manifest: Path, file_format: int) -> dict[str, Any]:
    """What a manifest says, once its files are known to be as it says.

    Each file is read through for its SHA-256, in a process once, and again where its size, times or inode changed.

    Args:
        file_format: the one this version reads.

    Raises:
        Damaged: a manifest that cannot be read or of another format, a file that is missing or has changed.
    """
    said = check_format(manifest, file_format)
    hashes = said.get("sha256")
    if not isinstance(hashes, dict) or not hashes:
        raise Damaged(manifest, problem="names no file with its SHA-256")
    check_files(manifest.parent, hashes)
    return said


def check_format(file: Path, file_format: int) -> dict[str, Any]:
    """The contents of a JSON file of a known format.

    Raises:
        Damaged: it cannot be read, or is of another format.
    """
    try:
        said = read_json(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable_line(error)
        raise Damaged(file, problem=f"cannot be read ({reason})") from None
    found = said.get("format") if isinstance(said, dict) else None
    if found != file_format or isinstance(found, bool):
        named = "no format" if found is None else f"format {printable_line(ValueError(found))}"
        raise Damaged(file, problem=f"has {named}, lpsel {__version__} reads format {file_format}")
    return said


def check_files(folder: Path, hashes: dict[str, str]) -> None:
    """See that files, by their path in a folder, are there and have these SHA-256.

    Raises:
        Damaged: names the first that is not.
    """
    for name, expected in hashes.items():
        file = folder / name
        try:
            found = sha256_once(file)
        except FileNotFoundError:
            raise Damaged(file, problem="does not exist any more") from None
        except OSError as error:
            raise Damaged(file, problem=f"cannot be read ({error.strerror})") from None
        if found != expected:
            sums = f"SHA-256 {found[:12]}, was {str(expected)[:12]}"
            raise Damaged(file, problem=f"has changed since it was written ({sums})")


def sha256_once(file: Path) -> str:
    """SHA-256 of a file; it is read again only where its size, times or inode have changed since.

    Raises:
        OSError: it cannot be read.
    """
    about = file.stat()
    return _sha256(file.resolve(), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


@lru_cache(maxsize=1024)
def _sha256(file: Path, *_state: int) -> str:
    return sha256_of(file)


def sealed_line(value: dict[str, Any]) -> bytes:
    """A line of JSON that `open_line` knows to be whole."""
    return json_line({**value, CHECK: _check(value)})


def open_line(line: bytes) -> dict[str, Any]:
    """The value of a line that `sealed_line` wrote.

    Raises:
        ValueError: half a line, or one that has changed.
    """
    value = json.loads(line)
    if not isinstance(value, dict) or value.pop(CHECK, None) != _check(value):
        raise ValueError("has changed since it was written")
    return value


def _check(value: dict[str, Any]) -> str:
    return hashlib.sha256(json_line(value)).hexdigest()[:CHECK_DIGITS]
