"""What a tracker is asked to do; this one does none of it (`tracker=none`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Artifact:
    """Something a run made or used: scores, a subset, a model or an evaluation.

    Attributes:
        kind: scores, subset, model or evaluation.
        name: the same for the same content, so that one run's output is another's input.
        path: a file or a folder.
        by_reference: keep the address and checksums only, for what is too large to copy.
    """

    kind: str
    name: str
    path: Path
    by_reference: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


class Tracker:
    """Keeps nothing."""

    def start(self, job: str, config: dict[str, Any], run_dir: Path) -> None:
        """Begin the run of a command ("train", "select", "evaluate") with its configuration."""

    def logger(self) -> Any:
        """The Lightning logger that writes into this run, or False for none."""
        return False

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record numbers."""

    def histogram(self, name: str, values: ArrayLike) -> None:
        """Record how finite `values` are distributed."""

    def used(self, artifact: Artifact) -> None:
        """Link a parent: something that what this run makes comes from, new or made by an earlier run."""

    def made(self, artifact: Artifact) -> None:
        """Keep something this run made."""

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        """End the run with its result, or with None where it failed. Returns a line for the user, if there is one."""
        return None
