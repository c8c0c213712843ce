"""CSV tracker: writes metrics to metrics.csv in the run folder (`tracker=csv`)."""

import csv
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from lpsel.tracking.tracker import Logged, Tracker

Row = tuple[int, dict[str, float]]  # step, and numbers by name

SHARED = {"epoch"}  # names that Lightning adds to the numbers of every fit


class CSVTracker(Tracker):
    """Write numbers to metrics.csv with Lightning's CSVLogger; artifacts are listed in result.json.

    A resumed run keeps the rows of the interrupted one, except those that it logs again: when it logs a number for the
    first time, earlier rows with this number are deleted, for optimizer steps from this step on.
    """

    enabled = True

    def __init__(self) -> None:
        self._logger: Any = None
        self._step = 0  # step of the last row
        self._earlier: list[Row] = []  # rows of an interrupted run, at the top of the file
        self._logged = SHARED  # names of the numbers that this process has logged

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        self.run_dir = run_dir

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if not numbers:
            return
        if self._logger is None:
            self._earlier = self._read()
        new_names = numbers.keys() - self._logged
        if new_names or self._logger is None:
            self._logged = self._logged | new_names
            self._drop(new_names, step)
        self._step = self._step if step is None else step
        self._logger.log_metrics(numbers, self._step)

    def _drop(self, names: Set[str], step: int | None) -> None:
        """Delete earlier rows with one of these names, from this step on."""
        kept = [
            (row_step, row)
            for row_step, row in self._earlier
            if not row.keys() & names or (step is not None and row_step < step)
        ]
        if self._logger is None or len(kept) < len(self._earlier):
            rows_of_this_process = self._read()[len(self._earlier) :]
            self._rewrite([*kept, *rows_of_this_process])
            self._earlier = kept

    def _rewrite(self, rows: list[Row]) -> None:
        """Write these rows to a new metrics.csv, and keep its logger for further rows."""
        from lightning.pytorch.loggers import CSVLogger

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
            self._logger = CSVLogger(self.run_dir, name="", version="", flush_logs_every_n_steps=1)
            _ = self._logger.experiment  # which deletes metrics.csv
        for self._step, row in rows:
            self._logger.log_metrics(row, self._step)

    def _read(self) -> list[Row]:
        """Read steps and numbers from the complete lines of metrics.csv."""
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
