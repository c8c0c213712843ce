"""Metrics as a CSV file in the run folder (`tracker=csv`)."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpsel.tracking.base import Tracker


class CSVTracker(Tracker):
    """Writes metrics.csv through Lightning's CSVLogger. Artifacts stay where they are: result.json names them."""

    def __init__(self) -> None:
        self._logger: Any = None

    def start(self, job: str, config: dict[str, Any], run_dir: Path) -> None:
        self.run_dir = run_dir

    def logger(self) -> Any:
        if self._logger is None:
            from lightning.pytorch.loggers import CSVLogger

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
                self._logger = CSVLogger(self.run_dir, name="", version="")
                _ = self._logger.experiment
        return self._logger

    def log(self, metrics: Mapping[str, float]) -> None:
        self.logger().log_metrics(dict(metrics))

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self._logger is not None:
            self._logger.save()
        return None
