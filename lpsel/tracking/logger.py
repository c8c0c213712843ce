"""Lightning logger that forwards metrics to a tracker."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lpsel.tracking.tracker import Tracker


class TrackerLogger(Logger):
    """Forward metrics to a tracker, which records hyperparameters when it starts."""

    name = "lpsel"
    version = ""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.tracker.log(metrics, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass
