"""Integrity checks: manifests with a format version and the SHA-256 of each file, and lines with checksums.

Files that are incomplete or have changed since they were written raise an error that names the file.
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

CHECK = "check"  # key of a line's checksum, the first digits of its SHA-256
CHECK_DIGITS = 16


class Damaged(UserError):
    """Raised if a file differs from its manifest. The error names the file; the caller adds the hint."""

    def with_hint(self, hint: str) -> UserError:
        return UserError(self.name, None, self.problem, hint)


def seal(manifest: Path, files: Collection[str], described: dict[str, Any]) -> None:
    """Write the manifest of the finished files in its folder: `described`, and the SHA-256 of each file."""
    hashes = {name: sha256_of(manifest.parent / name) for name in files}
    write_json(manifest, described | {"sha256": hashes})


def unseal(manifest: Path, file_format: int) -> dict[str, Any]:
    """Read a manifest and verify the hashes of its files.

    Raises:
        Damaged: the manifest is not readable or has a different format, or a file is missing or has changed.
    """
    contents = check_format(manifest, file_format)
    hashes = contents.get("sha256")
    if not isinstance(hashes, dict) or not hashes:
        raise Damaged(manifest, problem="has no hashes of files")
    check_files(manifest.parent, hashes)
    return contents


def check_format(file: Path, file_format: int) -> dict[str, Any]:
    """Read a JSON file; raises `Damaged` if it is not readable or has a different format version."""
    try:
        contents = read_json(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable_line(error)
        raise Damaged(file, problem=f"not readable ({reason})") from None
    actual = contents.get("format") if isinstance(contents, dict) else None
    if actual != file_format or isinstance(actual, bool):
        described = "no format" if actual is None else f"format {printable_line(ValueError(actual))}"
        raise Damaged(file, problem=f"has {described}, lpsel {__version__} reads format {file_format}")
    return contents


def check_files(folder: Path, hashes: dict[str, str]) -> None:
    """Raise `Damaged` for the first file in a folder that is missing or whose SHA-256 differs."""
    for name, expected in hashes.items():
        file = folder / name
        try:
            actual = sha256_once(file)
        except FileNotFoundError:
            raise Damaged(file, problem="no longer exists") from None
        except OSError as error:
            raise Damaged(file, problem=f"not readable ({error.strerror})") from None
        if actual != expected:
            hashes_differ = f"SHA-256 {actual[:12]}, was {str(expected)[:12]}"
            raise Damaged(file, problem=f"has changed since it was written ({hashes_differ})")


def sha256_once(file: Path) -> str:
    """SHA-256 of a file, cached until its size, times or inode change."""
    stat = file.stat()
    return _sha256(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=1024)
def _sha256(file: Path, *_state: int) -> str:
    return sha256_of(file)


def sealed_line(value: dict[str, Any]) -> bytes:
    """Encode a value as a line of JSON with a checksum, for `open_line`."""
    return json_line({**value, CHECK: _checksum(value)})


def open_line(line: bytes) -> dict[str, Any]:
    """Decode a line written by `sealed_line`; raises a ValueError if it is incomplete or has changed."""
    value = json.loads(line)
    if not isinstance(value, dict) or value.pop(CHECK, None) != _checksum(value):
        raise ValueError("has changed since it was written")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json_line(value)).hexdigest()[:CHECK_DIGITS]
