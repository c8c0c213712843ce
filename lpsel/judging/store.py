"""Judgements that are kept: one folder a judge, one line a judgement, on disk before the next is asked for."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lpsel.errors import UserError
from lpsel.integrity import open_line, sealed_line
from lpsel.judging.judge import NO_REFERENCE, TOO_LONG, UNREADABLE, Judge, Judgement, Order, Pair, preference_of
from lpsel.storage import digest, sync, write_json

log = logging.getLogger(__name__)

FORMAT = 2  # of kept judgements
JUDGEMENTS = "judgements.jsonl"
FINAL = (UNREADABLE, TOO_LONG, NO_REFERENCE)


class Store:
    """What one judge has said, by question: request, first answer, second answer.

    A line holds the verdict on the answers as they were shown, so that it serves a comparison with the models swapped
    as well. Failures that may pass, as a server's, are written down but asked again.

    Attributes:
        path: of the file, JSON lines.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JUDGEMENTS
        self._file: BinaryIO | None = None
        self._known: dict[str, dict[str, Any]] = {}

    @classmethod
    @contextmanager
    def of(cls, judge: Judge, cache_dir: Path) -> Iterator["Store"]:
        """The judge's own store, opened for this process alone: another one waits, then finds what this one asked.

        Raises:
            UserError: a line in the middle of the file cannot be read, or has changed since it was written.
        """
        identity = {"format": FORMAT, **judge.identity()}
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", judge.name).strip(".-")[-60:]
        folder = cache_dir / "judgements" / f"{name}-{digest(identity)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("Another run is asking this judge; waiting until it is done (%s)", folder)
            lock.acquire()
        store = cls(folder)
        try:
            write_json(folder / "judge.json", identity)
            store._known = _read(store.path)
            with store.path.open("ab") as store._file:
                sync(folder)
                yield store
        finally:
            lock.release()

    def find(self, pair: Pair, order: Order) -> Judgement | None:
        """What the judge said of a pair in an order, if it has been asked."""
        line = self._known.get(question(pair, order))
        if line is None or (line["verdict"] is None and line["failure"] not in FINAL):
            return None
        return Judgement(
            id=pair.id,
            order=order,
            preference=None if line["verdict"] is None else preference_of(line["verdict"], order),
            **{field: line[field] for field in ("raw", "prompt_tokens", "completion_tokens", "attempts", "failure")},
        )

    def keep(self, pair: Pair, judgement: Judgement) -> None:
        """Write a judgement and return once it is on disk. Calls must not overlap."""
        said = judgement._asdict()
        preference, order = said.pop("preference"), said.pop("order")
        key = question(pair, order)
        line = {"question": key, "verdict": None if preference is None else preference_of(preference, order), **said}
        assert self._file is not None, "a store is written inside `with Store.of(...)`"
        self._file.write(sealed_line(line))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._known[key] = line


def question(pair: Pair, order: Order) -> str:
    """Names what a judge is asked: the same for the same texts shown in the same order."""
    return digest([pair.prompt, *pair.shown(order), pair.reference])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of every question. A line that a killed process left unfinished is cut off."""
    if not path.exists():
        return {}
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + 1 if whole else 0)
    known = {}
    for number, text in enumerate(whole.splitlines() if whole else [], start=1):
        try:
            line = open_line(text)
            known[line["question"]] = line
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: line {number} is not as it was written; delete that line to have it judged again."
            ) from error
    return known
