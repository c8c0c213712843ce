"""Lightning's metrics on their way into a tracker."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lpsel.tracking.tracker import Tracker


class TrackerLogger(Logger):
    """A Lightning logger that hands numbers on; whatever else a logger may keep, the job itself tracks."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    @property
    def name(self) -> str:
        return "lpsel"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.tracker.log(metrics, step)

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """The configuration is tracked when the run starts."""
