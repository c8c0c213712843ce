"""Metrics as metrics.csv in the run folder (`tracker=csv`)."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpsel.tracking.tracker import Logged, Tracker


class CSVTracker(Tracker):
    """Writes numbers to metrics.csv with Lightning's CSVLogger; result.json has the paths of artifacts."""

    enabled = True

    def __init__(self) -> None:
        self._logger: Any = None

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        self.run_dir = run_dir

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if not numbers:
            return
        if self._logger is None:
            from lightning.pytorch.loggers import CSVLogger

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
                self._logger = CSVLogger(self.run_dir, name="", version="")
                _ = self._logger.experiment
        self._logger.log_metrics(numbers, step)

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self._logger is not None:
            self._logger.save()
        return None
