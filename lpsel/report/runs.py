"""Run folders as plain rows of a table: what was run, what it cost, and what evaluations found of it.

A folder that is unfinished or not ours is kept as a line with the reason: a report of a sweep that is still going is
a report all the same.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from lpsel.errors import UserError
from lpsel.run_config import FORMAT, RESULT, RUN_CONFIG
from lpsel.storage import read_json

COMMANDS = ("train", "select", "evaluate", "votes", "agreement")
BESIDE = ("n", "standard_error", "p_value", "flip_rate", "length_controlled_win_rate")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what its result.json says."""

    folder: Path
    result: dict[str, Any]

    @property
    def command(self) -> str:
        return str(self.result["command"])

    def get(self, *path: str) -> Any:
        """The value under nested keys, None where it is not there."""
        value: Any = self.result
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def rule(self) -> str:
        return str(self.get("rule") or "?")

    @property
    def pct(self) -> float | None:
        """Share of the rows, in percent: what was asked for, 100 for everything."""
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
        """The folder's name; with its parent's where it is but the number of a sweep's job."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder.name.isdigit() else self.folder.name

    @property
    def chosen(self) -> str:
        """How rows were chosen: rule, bucket and scorer."""
        bucket = f", {self.bucket}" if self.bucket else ""
        return self.rule + bucket + ("" if self.scorer == "–" else f" ({self.scorer})")

    @property
    def series(self) -> str:
        """What sets a line apart from another in a figure: how rows were chosen, and the target."""
        return f"{self.chosen} → {self.target}"

    @property
    def flops(self) -> float | None:
        """What choosing and training took; of a selection what its scores took, whoever made them."""
        return number(self.get("ledger", "total", "flops") or self.get("scoring", "flops"))

    @property
    def seconds(self) -> float | None:
        """Device seconds of the same; of an evaluation the seconds of its models."""
        spent = self.get("ledger", "total", "device_seconds") or self.get("scoring", "device_seconds")
        if self.command != "evaluate":
            return number(spent)
        parts = [entry.get("seconds") for entry in [*self.entries("models"), *self.entries("answers")]]
        known = [number(n) for part in parts for n in (part.values() if isinstance(part, dict) else [part])]
        return sum(n for n in known if n is not None) if any(n is not None for n in known) else None

    @property
    def measured(self) -> list[dict[str, Any]]:
        """What an evaluation says of each model."""
        return self.entries("models") or [self.result]

    def entries(self, *path: str) -> list[dict[str, Any]]:
        """The dictionaries of a list, none where there is no list."""
        value = self.get(*path)
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Measure:
    """One figure of one model.

    Attributes:
        model: its name in the evaluation.
        metric: "win_rate" (in percent), "nll" (nats per token), or a TASK/METRIC of lm_eval.
        value, low, high: the figure and its 95 % interval, None where it has none.
    """

    model: str
    metric: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """One figure that an evaluation found of one training run.

    Attributes:
        metric: "win_rate" (in percent) or "nll" (nats per token).
        against: what makes figures comparable: held-out rows, baseline, judge.
        value, low, high: the figure and its 95 % interval, None where it has none.
        beside: other figures of the same comparison, by their names in result.json.
        difference: of the metric to the evaluation's baseline, on the same rows: value, low and high.
    """

    run: Run
    evaluation: Run
    metric: str
    against: str
    value: float
    low: float | None
    high: float | None
    beside: dict[str, float | None]
    difference: tuple[float, float | None, float | None] | None = None


@dataclass
class Found:
    """Everything below the folders that were named."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def of(self, *commands: str) -> list[Run]:
        return [run for run in self.runs if run.command in commands]

    @property
    def folders(self) -> list[Path]:
        return [*(run.folder for run in self.runs), *(folder for folder, _ in self.left_out)]


def collect(given: Sequence[str]) -> Found:
    """Read the run folders named, and those inside a folder that is none itself.

    Raises:
        UserError: a name that is no folder, or no finished run at all.
    """
    found = find(given)
    if not found.runs:
        why = "; ".join(reason for _, reason in found.left_out[:1]) or "no result.json in it"
        raise UserError(f"{' '.join(given)}: no finished run ({why}); name folders of {', '.join(COMMANDS)}.")
    return found


def find(given: Sequence[str]) -> Found:
    """`collect`, where there may be none that is finished.

    Raises:
        UserError: a name that is no folder.
    """
    found = Found()
    seen: set[Path] = set()
    for name in given:
        path = Path(name).expanduser()
        if not path.is_dir():
            raise UserError(f"{name}: no such folder; name run folders, or one that contains them.")
        for folder in _folders(path):
            if (real := folder.resolve()) not in seen:
                seen.add(real)
                _read(real, found)
    return found


def _folders(path: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(path, onerror=_raise):
        if RESULT in files or RUN_CONFIG in files or (Path(folder) == path and files and not inside):
            inside.clear()  # what is inside a run is its own
            yield Path(folder)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error


def _read(folder: Path, found: Found) -> None:
    try:
        result = read_json(folder / RESULT)
    except FileNotFoundError:
        found.left_out.append((folder, "not finished: no result.json"))
    except (OSError, ValueError):
        found.left_out.append((folder, "result.json cannot be read"))
    else:
        if isinstance(result, dict) and result.get("format", FORMAT) != FORMAT:
            why = f"result.json has format {result['format']}, this lpsel reads {FORMAT}"
            found.left_out.append((folder, why))
        elif isinstance(result, dict) and result.get("command") in COMMANDS:
            found.runs.append(Run(folder, result))
        else:
            found.left_out.append((folder, f"not a run of {', '.join(COMMANDS)}"))


def points(found: Found) -> list[Point]:
    """What evaluations and people's votes found of the training runs, linked by the model's folder.

    Win rates come last, those of the most runs at the very end: a run's last figure is the one at hand.
    """
    trained = {(run.folder / "model").resolve(): run for run in found.of("train")}
    made = []
    for evaluation in found.of("evaluate", "votes"):
        answers = _answers(evaluation, found)
        for measured in evaluation.measured:
            where = answers.get(measured.get("name", measured.get("model")), measured.get("model"))
            figure = _figure(measured)
            if not isinstance(where, str) or figure is None:
                continue
            place = Path(where).expanduser().resolve()
            run = trained.get(place) or trained.get(place / "model")
            if run is not None:
                beside = {name: number(measured.get(name)) for name in BESIDE}
                against = _against(evaluation, measured, figure[0])
                less = _interval(measured.get("difference"), figure[0])
                made.append(Point(run, evaluation, figure[0], against, *figure[1:], beside, less))
    size = Counter((p.metric, p.against) for p in made)
    return sorted(made, key=lambda p: (p.metric == "win_rate", size[p.metric, p.against]))


def _answers(evaluation: Run, found: Found) -> dict[Any, Any]:
    """The folder of every model that wrote answers, by its name there."""
    if evaluation.command == "votes":  # the page that people voted on lies in the folder of an evaluation
        key = Path(str(evaluation.get("key")))
        asked = [run for run in found.of("evaluate") if run.folder in key.parents]
        return _answers(asked[0], found) if asked else {}
    return {answer.get("name"): answer.get("model") for answer in evaluation.entries("answers")}


def measures(evaluation: Run) -> list[Measure]:
    """The figures of an evaluation or of votes, those of every model."""
    return [m for measured in evaluation.measured for m in measures_of(measured)]


def measures_of(measured: dict[str, Any]) -> list[Measure]:
    """The figures of one model, as an evaluation's result.json has them.

    Intervals of lm_eval's figures are 1.96 standard errors to either side.
    """
    name = str(measured.get("name", measured.get("model", "–")))
    if (figure := _figure(measured)) is not None:
        return [Measure(name, *figure)]
    made = []
    metrics = measured.get("metrics")
    for metric, of in (metrics if isinstance(metrics, dict) else {}).items():
        if isinstance(of, dict) and (value := number(of.get("value"))) is not None:
            error = number(of.get("standard_error"))
            ends = (None, None) if error is None else (value - 1.96 * error, value + 1.96 * error)
            made.append(Measure(name, metric, value, *ends))
    return made


def _figure(measured: dict[str, Any]) -> tuple[str, float, float | None, float | None] | None:
    if (rate := number(measured.get("win_rate"))) is not None:
        return "win_rate", rate, number(measured.get("ci_low")), number(measured.get("ci_high"))
    nll = _interval(measured.get("metrics"), "nll")
    return None if nll is None else ("nll", *nll)


def _interval(figures: Any, metric: str) -> tuple[float, float | None, float | None] | None:
    figure = figures.get(metric) if isinstance(figures, dict) else None
    if not isinstance(figure, dict) or (value := number(figure.get("value"))) is None:
        return None
    return value, number(figure.get("low")), number(figure.get("high"))


def _against(evaluation: Run, measured: dict[str, Any], metric: str) -> str:
    def said(key: str) -> str | None:
        value = measured.get(key, evaluation.get(key))
        if isinstance(value, dict):
            value = value.get("name") or value.get("kind")
        if isinstance(value, list):
            value = " and ".join(map(str, value))
        return str(value) if value is not None else None

    if metric == "win_rate":
        parts = {"against": said("baseline"), "judged by": said("judge"), "on": said("prompts") or said("dataset")}
    else:
        parts = {"on": said("dataset"), "rows": said("n"), "data": (said("data_fingerprint") or "")[:8] or None}
    return ", ".join(f"{word} {value}" for word, value in parts.items() if value)


def number(value: Any) -> float | None:
    """The value where it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
