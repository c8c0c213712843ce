"""Run folders, and what evaluations measured of the models they trained.

Folders without a readable result are kept with the reason, so that a sweep can be reported while it is running.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lpsel.errors import UserError
from lpsel.run_config import RESULT, RUN_CONFIG, read_result

COMMANDS = ("train", "select", "evaluate", "votes", "agreement")
KEY_METRICS = ("win_rate", "nll")  # in percent, in nats per token
WIN_RATE_DETAILS = ("n", "standard_error", "p_value", "flip_rate", "length_controlled_win_rate")


class Interval(NamedTuple):
    """A value and its 95 % confidence interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its result.json."""

    folder: Path
    result: dict[str, Any]

    @property
    def command(self) -> str:
        return str(self.result["command"])

    def get(self, *keys: str) -> Any:
        """The value under nested keys of result.json, None where a key is missing."""
        return _nested(self.result, *keys)

    @property
    def rule(self) -> str:
        return str(self.get("rule") or "?")

    @property
    def pct(self) -> float | None:
        """The requested percentage of the rows; 100 for selection=full."""
        return 100.0 if self.rule == "full" else number(self.get("pct"))

    @property
    def target(self) -> str:
        return str(self.get("base_model", "name") or "–")

    @property
    def scorer(self) -> str:
        return str(self.get("scorer", "name") or "–")

    @property
    def bucket(self) -> str | None:
        return self.get("bucket")

    @property
    def name(self) -> str:
        """The folder's name; for a numbered job of a sweep, with the name of the sweep."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder.name.isdigit() else self.folder.name

    @property
    def selection(self) -> str:
        """Rule, bucket and scorer."""
        bucket = f", {self.bucket}" if self.bucket else ""
        return self.rule + bucket + ("" if self.scorer == "–" else f" ({self.scorer})")

    @property
    def series(self) -> str:
        """The label of a line in a figure: selection and target."""
        return f"{self.selection} → {self.target}"

    @property
    def flops(self) -> float | None:
        """FLOPs of scoring and training, also where scores were reused; for a selection, those of its scores."""
        return number(self.get("ledger", "total", "flops") or self.get("scoring", "flops"))

    @property
    def seconds(self) -> float | None:
        """Device seconds of scoring and training; for an evaluation, the seconds of its models."""
        if self.command != "evaluate":
            return number(self.get("ledger", "total", "device_seconds") or self.get("scoring", "device_seconds"))
        spent = [entry.get("seconds") for entry in [*self.entries("models"), *self.entries("answers")]]
        parts = [number(part) for s in spent for part in (s.values() if isinstance(s, dict) else [s])]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    @property
    def models(self) -> list[dict[str, Any]]:
        """The results of each model of an evaluation."""
        return self.entries("models") or [self.result]

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The dictionaries in a list of result.json; empty where there is no list."""
        value = self.get(key)
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Measure:
    """One metric of one model.

    Attributes:
        model: its name in the evaluation.
        metric: win_rate, nll, or a TASK/METRIC of lm_eval.
        value, low, high: the value and its 95 % interval, None where there is none.
    """

    model: str
    metric: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point(Measure):
    """A key metric that an evaluation measured of the model of a training run.

    Attributes:
        model: the name of the training run.
        against: the conditions under which values are comparable: held-out rows, baseline, judge.
        details: other statistics of the same comparison, by their names in result.json.
        difference: from the evaluation's baseline, paired by row.
    """

    run: Run
    evaluation: Run
    against: str
    details: dict[str, float | None]
    difference: Interval | None = None


@dataclass
class Runs:
    """Finished runs, and other folders with the reason why they are skipped."""

    finished: list[Run] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def by_command(self, *commands: str) -> list[Run]:
        return [run for run in self.finished if run.command in commands]

    @property
    def folders(self) -> list[Path]:
        return [*(run.folder for run in self.finished), *(folder for folder, _ in self.skipped)]


def find_runs(paths: Sequence[str | Path]) -> Runs:
    """Read run folders, given by their own path or that of a folder which contains them.

    Raises:
        UserError: a path is not a folder.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        top = Path(path).expanduser()
        if not top.is_dir():
            raise UserError(path, problem="no such folder", hint="name run folders, or folders that contain them")
        folders |= dict.fromkeys(folder.resolve() for folder in _run_folders(top))
    runs = Runs()
    for folder in folders:
        run = _read(folder)
        if isinstance(run, Run):
            runs.finished.append(run)
        else:
            runs.skipped.append((folder, run))
    return runs


def _run_folders(top: Path) -> Iterator[Path]:
    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, inside, files in os.walk(top, onerror=fail):
        if RESULT in files or RUN_CONFIG in files or (Path(folder) == top and files and not inside):
            inside.clear()
            yield Path(folder)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


def _read(folder: Path) -> Run | str:
    """The run in a folder, or the reason why there is none."""
    if not (folder / RESULT).exists():
        return f"not finished: no {RESULT}"
    try:
        result = read_result(folder)
    except UserError as error:
        return f"{RESULT} {error.problem}"
    except OSError:
        result = None
    if result is None:
        return f"{RESULT} is not readable"
    return Run(folder, result) if result.get("command") in COMMANDS else f"not a run of {', '.join(COMMANDS)}"


def points(runs: Runs) -> list[Point]:
    """What evaluations and human votes measured of the training runs, matched by the folder of the model.

    Win rates come last, those of the most runs at the very end: a run's last point is its key figure.
    """
    trained = {(run.folder / "model").resolve(): run for run in runs.by_command("train")}
    matched = []
    for evaluation in runs.by_command("evaluate", "votes"):
        answers = _answer_folders(evaluation, runs)
        for entry in evaluation.models:
            folder = answers.get(entry.get("name", entry.get("model")), entry.get("model"))
            metrics = metrics_of(entry)
            metric = next((metric for metric in KEY_METRICS if metric in metrics), None)
            if not isinstance(folder, str) or metric is None:
                continue
            model = Path(folder).expanduser().resolve()
            if run := trained.get(model) or trained.get(model / "model"):
                against = _against(evaluation, entry, metric)
                details = {name: number(entry.get(name)) for name in WIN_RATE_DETAILS}
                difference = _interval(_nested(entry, "difference", metric))
                point = Point(run.name, metric, *metrics[metric], run, evaluation, against, details, difference)
                matched.append(point)
    size = Counter((p.metric, p.against) for p in matched)
    return sorted(matched, key=lambda p: (p.metric == "win_rate", size[p.metric, p.against]))


def _answer_folders(evaluation: Run, runs: Runs) -> dict[Any, Any]:
    """The folder of every model that generated answers, by its name in the evaluation."""
    if evaluation.command == "votes":  # the voting page is in the folder of the evaluation that wrote it
        key = Path(str(evaluation.get("key")))
        return next(
            (_answer_folders(run, runs) for run in runs.by_command("evaluate") if run.folder in key.parents), {}
        )
    return {answer.get("name"): answer.get("model") for answer in evaluation.entries("answers")}


def measures(evaluation: Run) -> list[Measure]:
    """The metrics of all models of an evaluation: the key metric of each, or all of lm_eval's."""
    return [measure for entry in evaluation.models for measure in measures_of(entry)]


def measures_of(entry: dict[str, Any]) -> list[Measure]:
    """`measures` of one model."""
    metrics = metrics_of(entry)
    key = next((metric for metric in KEY_METRICS if metric in metrics), None)
    name = str(entry.get("name", entry.get("model", "–")))
    return [Measure(name, metric, *metrics[metric]) for metric in metrics if key in (None, metric)]


def metrics_of(entry: dict[str, Any]) -> dict[str, Interval]:
    """Every metric of one model with its interval: 1.96 standard errors to either side for lm_eval's."""
    if (rate := number(entry.get("win_rate"))) is not None:
        return {"win_rate": Interval(rate, number(entry.get("ci_low")), number(entry.get("ci_high")))}
    metrics = entry.get("metrics")
    intervals = {name: _interval(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _interval(statistic: Any) -> Interval | None:
    value, low, high, error = (number(_nested(statistic, key)) for key in ("value", "low", "high", "standard_error"))
    if value is None:
        return None
    if low is None and high is None and error is not None:
        low, high = value - 1.96 * error, value + 1.96 * error
    return Interval(value, low, high)


def _against(evaluation: Run, entry: dict[str, Any], metric: str) -> str:
    def text(key: str) -> str | None:
        value = entry.get(key, evaluation.get(key))
        if isinstance(value, dict):
            value = value.get("name") or value.get("kind")
        if isinstance(value, list):
            value = " and ".join(map(str, value))
        return str(value) if value is not None else None

    if metric == "win_rate":
        parts = {"against": text("baseline"), "judged by": text("judge"), "on": text("prompts") or text("dataset")}
    else:
        parts = {"on": text("dataset"), "rows": text("n"), "data": (text("data_fingerprint") or "")[:8] or None}
    return ", ".join(f"{word} {value}" for word, value in parts.items() if value)


def _nested(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """The value as a float if it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
