"""What a tracker is asked to do; this one does none of it (`tracker=none`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from lpsel.tracking.artifacts import Artifact


@dataclass(frozen=True)
class Distribution:
    """How numbers are distributed; those that are not finite are left out."""

    values: ArrayLike


@dataclass(frozen=True)
class Rows:
    """A table to look at: numbers and texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """A PNG file."""

    path: Path


Logged = float | Distribution | Rows | Picture


class Tracker:
    """Keeps nothing.

    Attributes:
        keeps: whether what is logged is kept at all; where not, a trainer need not collect it.
    """

    keeps: bool = False

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        """Begin the run of a command ("train", "select", "evaluate") with its configuration.

        A run in the same folder that has not come to its end is gone on with. `group` is that of a job which belongs
        to a sweep.

        Raises:
            UserError: it cannot be started as asked.
        """

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        """Record values; `step` is the optimiser's, counted from the start of a fit."""

    def used(self, artifact: Artifact) -> None:
        """Link a parent: something that what this run makes comes from, new or made by an earlier run."""

    def made(self, artifact: Artifact) -> None:
        """Keep something this run made."""

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        """End the run with its result, or with None where it failed. Returns a line for the user, if there is one."""
        return None
