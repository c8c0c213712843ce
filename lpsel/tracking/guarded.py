"""A tracker whose failures cost a warning and nothing else: what it follows took hours, the record of it did not."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpsel.errors import first_line
from lpsel.redact import redact
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.tracker import Logged, Tracker

log = logging.getLogger(__name__)


class Guarded(Tracker):
    """Another tracker, none of whose errors gets out once it has started; the first of each kind is a warning."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.keeps = tracker.keeps
        self.failed: set[str] = set()

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        self.tracker.start(job, config, run_dir, group)

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        self._try("log", values, step)

    def used(self, artifact: Artifact) -> None:
        self._try("used", artifact)

    def made(self, artifact: Artifact) -> None:
        self._try("made", artifact)

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        return self._try("finish", result)

    def _try(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self.tracker, what)(*arguments)
        except Exception as error:
            if what not in self.failed:
                log.warning("Tracking: %s failed (%s); the run goes on without", what, redact(first_line(error)))
            self.failed.add(what)
            return None
