"""Atomic writes (temporary file, sync to disk, rename), JSON and hashes."""

import csv
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

from lpsel.errors import UserError

TABLE_ROWS = 10_000  # rows converted at a time
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def check_writable(option: str, folder: Path) -> None:
    """Create the folder that an option names, and raise a UserError unless files can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        hint = f"set {option} to a folder that you can write to"
        raise UserError(option, folder, f"not writable ({error.strerror})", hint) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` with a binary file that replaces `path` once it is on disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically; lone surrogates in text, which UTF-8 cannot encode, become question marks."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    write_atomically(path, lambda file: file.write(data))


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Context manager that yields an empty folder, which replaces `path` once everything in it is on disk.

    The old folder is renamed first and deleted last, and is restored if a writer was killed in between. Callers must
    check that it contains no files of the user (`lpsel.output_folder`).
    """
    _recover(path)
    unique = secrets.token_hex(4)
    temporary, old = path.with_name(f".{path.name}.{unique}.tmp"), path.with_name(f".{path.name}.{unique}.old")
    temporary.mkdir(parents=True)
    locks = [_lock(temporary)]
    try:
        yield temporary
        for inside in temporary.rglob("*"):
            sync(inside)
        sync(temporary)
        if path.is_dir():
            locks.append(_lock(path))
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            if os.path.lexists(old):
                old.replace(path)
            raise
        sync(path.parent)
        _remove(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for lock in locks:
            if lock is not None:
                os.close(lock)


def _recover(path: Path) -> None:
    """Restore `path` from the folder that a killed writer renamed, if any, and delete what killed writers left."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.*"):
        if abandoned.suffix not in (".tmp", ".old"):
            continue
        lock = _lock(abandoned)
        if lock is None:  # its writer is still running
            continue
        if abandoned.suffix == ".old" and not os.path.lexists(path):
            abandoned.replace(path)
        else:
            _remove(abandoned)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Delete a folder, or a link to a folder but not its target."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """Lock a folder; returns a descriptor that holds the lock until it is closed, or None if it is not available."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # another process has deleted it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another process, or the file system has no locks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file or folder, and yield its descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk: a rename alone does not survive a power failure."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file; raises an OSError, or a ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_dict(path: Path) -> dict[str, Any]:
    """Read a dict from a JSON file; empty if the file does not exist or is not a JSON object."""
    try:
        value = read_json(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def open_as(folder: Path, like: str) -> None:
    """Give the weights in a folder the permissions of the file `like`, since safetensors creates private files."""
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / like).stat().st_mode)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write strict JSON; numbers that are not finite become null."""
    write_file(path, _json(value, indent=2, allow_nan=False) + b"\n")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write strict JSON lines, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.writelines(map(json_line, rows)))


def write_table(path: Path, rows: Iterable[dict[str, Any]], types: Mapping[str, Any]) -> None:
    """Write a Parquet file in blocks, with the columns of the first row; columns not in `types` are strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remaining = iter(rows)
    first = next(remaining)
    remaining = chain([first], remaining)
    schema = pa.schema([(name, types.get(name, "string")) for name in first])

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            while block := list(islice(remaining, TABLE_ROWS)):
                writer.write_table(pa.Table.from_pylist(finite(block), schema=schema))

    write_atomically(path, write)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with the columns of the first row, safe to open in a spreadsheet.

    Text that looks like a formula gets a leading quote (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        formulas = {name: f"'{v}" for name, v in row.items() if isinstance(v, str) and v.startswith(FORMULA_STARTS)}
        writer.writerow({**row, **formulas})
    write_file(path, text.getvalue())


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None, and NumPy scalars and paths by plain types."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def utf8(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_line(value: Any) -> bytes:
    """Encode a value as one line of strict JSON in UTF-8."""
    return _json(value, default=str) + b"\n"


def _json(value: Any, **options: Any) -> bytes:
    """Encode JSON in UTF-8; lone surrogates, which UTF-8 cannot encode, stay escaped."""
    plain = finite(value)
    try:
        return json.dumps(plain, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(plain, **options).encode()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the machine."""
    return hashlib.sha256(_json(value, sort_keys=True)).hexdigest()


def distinct(names: Sequence[str]) -> list[str]:
    """Make names unique, ignoring case, by appending a number to repeated ones."""
    taken: set[str] = set()
    unique_names = []
    for name in names:
        candidates = chain([name], (f"{name}-{number}" for number in count(2)))
        unique = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(unique.lower())
        unique_names.append(unique)
    return unique_names


def file_names(names: Sequence[str]) -> list[str]:
    """Convert names to unique file names, without a suffix, that are valid on every file system."""
    return distinct([re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "model" for name in names])
