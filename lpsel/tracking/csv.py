"""CSV tracker: writes metrics to metrics.csv in the run folder (`tracker=csv`)."""

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpsel.tracking.tracker import Logged, Tracker


class CSVTracker(Tracker):
    """Write numbers to metrics.csv with Lightning's CSVLogger; artifacts are listed in result.json."""

    enabled = True

    def __init__(self) -> None:
        self._logger: Any = None
        self._step = 0  # the last one

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        self.run_dir = run_dir

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if not numbers:
            return
        if self._logger is None:
            from lightning.pytorch.loggers import CSVLogger

            # Steps after the checkpoint that training resumes from are repeated.
            earlier = [(at, row) for at, row in self._read() if step is None or at < step or not row.keys() & numbers]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
                self._logger = CSVLogger(self.run_dir, name="", version="", flush_logs_every_n_steps=1)
                _ = self._logger.experiment  # which deletes metrics.csv
            for self._step, row in earlier:
                self._logger.log_metrics(row, self._step)
        self._step = self._step if step is None else step
        self._logger.log_metrics(numbers, self._step)

    def _read(self) -> list[tuple[int, dict[str, float]]]:
        """Read steps and numbers from the complete lines of metrics.csv, when an interrupted run is resumed."""
        path = self.run_dir / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if None not in line.values()]  # a full disk cuts the last
        rows = [{name: float(text) for name, text in line.items() if text} for line in lines]
        return [(int(row.pop("step")), row) for row in rows]

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self._logger is not None:
            self._logger.save()
        return None
