"""Interface of experiment trackers, and a wrapper that keeps tracking errors from stopping a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from lpsel.errors import first_line
from lpsel.tracking.artifacts import Artifact

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distribution:
    """Numbers to show as a histogram, without those that are not finite."""

    values: ArrayLike


@dataclass(frozen=True)
class Rows:
    """A table of numbers and texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


Logged = float | Distribution | Rows | Path  # the path of a PNG file, or of an HTML page that needs no other file


class Tracker:
    """Interface of all trackers; the base class ignores everything (`tracker=none`)."""

    enabled: bool = False  # whether logged values are stored; if not, they need not be computed

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        """Start the run of a command ("train", "select", "evaluate") with its configuration.

        An unfinished run in the same folder is resumed. `group` is the name of a sweep.

        Raises:
            UserError: the run cannot be started with these settings.
        """

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        """Log values; `step` counts optimizer steps from the start of a fit."""

    def use_artifact(self, artifact: Artifact) -> None:
        """Record an input of the run, whether new or created by an earlier run."""

    def log_artifact(self, artifact: Artifact) -> None:
        """Record an output of the run."""

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        """End the run with its result, or with None if it failed. Returns a line for the user, or None."""
        return None


class SafeTracker(Tracker):
    """Wrap a tracker so that, once it has started, errors are logged as warnings, once per method."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.enabled = tracker.enabled
        self.failed: set[str] = set()

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        self.tracker.start(job, config, run_dir, group)

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        self._call("log", values, step)

    def use_artifact(self, artifact: Artifact) -> None:
        self._call("use_artifact", artifact)

    def log_artifact(self, artifact: Artifact) -> None:
        self._call("log_artifact", artifact)

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        return self._call("finish", result)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.tracker, method)(*arguments)
        except Exception as error:
            if method not in self.failed:
                log.warning("Tracking: %s failed (%s); the run continues", method, first_line(error))
            self.failed.add(method)
            return None
