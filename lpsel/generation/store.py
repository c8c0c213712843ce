"""Answers that are kept: one JSON-lines file for a model with its settings, a line for a prompt."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpsel.errors import UserError
from lpsel.generation.sampling import Generation
from lpsel.integrity import open_line, sealed_line
from lpsel.storage import digest, sync

log = logging.getLogger(__name__)

FORMAT = 2  # counted up when the same model, prompt and settings would give another answer


class KeptAnswers:
    """The answers of one model under one setting, by what it was asked.

    Every append is on disk when it returns, so that a run that is killed goes on where it stopped; half a line, as a
    crash may leave, counts as no answer. A line that has changed since it was written counts as none either, and is
    told of.

    Attributes:
        path: `generations/KEY.jsonl`. Its first line says what KEY stands for. Deleting it forgets the answers.
    """

    def __init__(self, cache_dir: Path, identity: Mapping[str, Any]) -> None:
        """`identity` holds all that the answers depend on but the prompt, and no secrets."""
        self.identity = {"format": FORMAT, **identity}
        self.path = cache_dir / "generations" / f"{digest(self.identity)[:32]}.jsonl"

    @contextmanager
    def mine(self) -> Iterator[None]:
        """Only one process at a time asks this model with these settings; others wait, and find its answers.

        Raises:
            UserError: the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("Waiting for another process that asks the same model (%s)", self.path)
                lock.acquire()
        except OSError as error:
            raise UserError(
                f"cache_dir={self.path.parent.parent}: cannot be written ({error.strerror}); give cache_dir=FOLDER."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> dict[str, Generation]:
        """Every answer there is, by the digest of what was asked."""
        if not self.path.is_file():
            return {}
        found, damaged = {}, 0
        for line in self.path.read_bytes().split(b"\n")[1:-1]:  # behind the first, whole ones
            try:
                answer = open_line(line)
                asked = answer.pop("asked")
                found[asked] = Generation(**answer)
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            log.warning("%s: lines that are not whole: %s; what they held is asked again", self.path, damaged)
        return found

    def append(self, answers: Mapping[str, Generation]) -> None:
        """Add answers, on disk when this returns."""
        lines = b"".join(sealed_line({"asked": asked, **asdict(answer)}) for asked, answer in answers.items())
        new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell() == 0:
                lines = sealed_line({"answers_of": self.identity}) + lines
            else:
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)
