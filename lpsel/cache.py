"""Content-addressed cache: an entry is a folder named by the digest of everything that its content depends on.

`CACHE_DIR/KIND/[LABEL-]DIGEST/` holds the entry's files and, written last, `manifest.json` with the key, the SHA-256 of
every file, and other metadata. Entries that grow line by line (model answers, judge verdicts) are a `Journal`.
"""

import fcntl
import glob
import json
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.integrity import Damaged, open_line, seal, sealed_line, unseal
from lpsel.storage import digest, file_names, finite, opened, read_dict, sync, write_json

log = logging.getLogger(__name__)

# Format versions, incremented when the same key would give different content.
FORMATS = {
    "answers": 3, "clusters": 3, "embeddings": 3, "scores": 1, "tiny_models": 1, "tokens": 8, "trained": 4,
    "verdicts": 3,
}  # fmt: skip
MANIFEST = "manifest.json"
KEY_DIGITS = 32  # hexadecimal digits of the digest in a folder's name
USERS = "users"  # folder with one file per run that lists the entries it used

_used: set[str] = set()  # digests of the entries that the current run has used


@cache
def warn_if_shared(cache_dir: Path) -> None:
    """Warn if other users can change the cache: its checksums detect accidents, not attacks."""
    status = cache_dir.stat()
    foreign = status.st_uid not in (0, os.getuid())
    if foreign or status.st_mode & stat.S_IWOTH:
        reason = "belongs to another user" if foreign else "can be written to by every user"
        log.warning("cache_dir=%s: %s, who can change scores and models; set it to a private folder", cache_dir, reason)


@contextmanager
def in_use(cache_dir: Path, run_dir: Path) -> Iterator[None]:
    """Context manager for a run that uses the cache: prevents deletion, and records the entries used at the end."""
    with opened(cache_dir) as folder:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(folder, fcntl.LOCK_SH)  # waits while entries are deleted
        _used.clear()
        yield
        if is_main_process():
            file = _user_file(cache_dir, run_dir)
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"run": str(run_dir), "entries": sorted(_used)})


def used_by(cache_dir: Path, run_dir: Path) -> list[Path]:
    """Folders of the entries that a finished run used and that still exist."""
    used = read_dict(_user_file(cache_dir, run_dir)).get("entries")
    return [folder for entry in used or () for folder in cache_dir.glob(f"*/*{glob.escape(str(entry))}")]


def _user_file(cache_dir: Path, run_dir: Path) -> Path:
    return cache_dir / USERS / f"{digest(str(run_dir))[:KEY_DIGITS]}.json"


@contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Context manager in which no run can use the cache; raises a UserError if one is using it."""
    with opened(cache_dir) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "a running command uses it"
            raise UserError("--dir", cache_dir, problem, "try again when it has ended") from None
        yield


@dataclass(frozen=True)
class Entry:
    """One entry of the cache, which may not exist yet."""

    kind: str  # a key of `FORMATS`
    key: Mapping[str, Any]  # everything that the content depends on, without secrets
    folder: Path  # folder of the entry

    @classmethod
    def of(cls, cache_dir: Path, kind: str, key: Mapping[str, Any], label: str = "") -> Self:
        """The entry for `key`; `label` makes the folder's name readable and does not identify the entry."""
        key = json.loads(json.dumps(finite(dict(key))))  # as read from the manifest
        name = digest({"format": FORMATS[kind], **key})[:KEY_DIGITS]
        if label:
            name = f"{file_names([label])[0]}-{name}"
        return cls(kind, key, Path(cache_dir).expanduser() / kind / name)

    @property
    def digest(self) -> str:
        """Digest at the end of the folder's name, which identifies the entry."""
        return self.folder.name[-KEY_DIGITS:]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the entry for this process; other processes wait."""
        _used.add(self.digest)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("Waiting for another process that writes %s", self.folder)
            lock.acquire()
        try:
            os.utime(self.folder / "lock")  # when the entry was last used, for `lpsel cache`
            yield
        finally:
            lock.release()

    def manifest(self) -> dict[str, Any]:
        """Read the manifest; raises `Damaged` if it is missing, its format or key differs, or a file has changed."""
        manifest = unseal(self.folder / MANIFEST, FORMATS[self.kind])
        if manifest.get("key") != self.key:
            raise Damaged(self.folder / MANIFEST, problem="belongs to another entry of the cache")
        return manifest

    def find(self) -> dict[str, Any] | None:
        """Read the manifest of a complete entry; None if it does not exist or, with a warning, is damaged."""
        if not (self.folder / MANIFEST).exists():
            return None
        try:
            return self.manifest()
        except Damaged as damage:
            log.warning("%s Rebuilding it.", damage)
            return None

    def commit(self, files: Collection[str], **recorded: Any) -> None:
        """Complete the entry by writing the manifest of the finished files in its folder."""
        seal(self.folder / MANIFEST, files, {"format": FORMATS[self.kind], "key": self.key, **recorded})


@dataclass(frozen=True)
class Journal(Entry):
    """An entry that grows line by line; each line has a checksum and is on disk when `append` returns."""

    @property
    def path(self) -> Path:
        """Path of the JSON lines file; its first line holds the key. Deleting the file clears the entry."""
        return self.folder / "journal.jsonl"

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all intact lines in order; damaged lines, such as a partial line after a crash, are skipped."""
        if not self.path.is_file():
            return
        damaged = 0
        with self.path.open("rb") as file:
            next(file, None)
            for line in file:
                try:
                    value = open_line(line)
                except ValueError:
                    damaged += line.endswith(b"\n")
                else:
                    yield value
        if damaged:
            log.warning("%s: skipped %s damaged lines; their content is requested again", self.path, damaged)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines and sync them to disk. Must be called inside `locked`, from one thread at a time."""
        data = b"".join(sealed_line(dict(line)) for line in lines)
        new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell() == 0:
                data = sealed_line({"format": FORMATS[self.kind], "key": self.key}) + data
            else:
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == b"\n" else b"\n" + data  # after a partial line
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.folder)
