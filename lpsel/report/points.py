"""What evaluations and human votes measured of the models of training runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lpsel.evaluation.win_rate import shown_interval
from lpsel.report.runs import Run, Runs, grouped, nested, number
from lpsel.storage import digest

CONDITIONS = (
    "judge", "sampling", "prompts_fingerprint", "data_fingerprint", "tokenizer", "supervised_tokens",
)  # fmt: skip
WIN_RATE_DETAILS = ("n", "standard_error", "p_value_holm", "flip_rate", "length_controlled_win_rate")


class KeyMetric(NamedTuple):
    """How a metric that selections are compared by is named and shown."""

    title: str
    unit: str  # on an axis
    unit_name: str  # in a sentence
    better: str  # higher or lower
    digits: int

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}"

    @property
    def axis_label(self) -> str:
        return f"{self.label}\n({self.better} is better)"


KEY_METRICS = {
    "win_rate": KeyMetric("win rate", "%", "percent", "higher", 1),
    "nll": KeyMetric("held-out NLL", "nats per token", "nats", "lower", 3),
}


class Interval(NamedTuple):
    """A value and its 95% confidence interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measure:
    """One metric of one model."""

    model: str  # its name in the evaluation
    metric: str  # win_rate, nll, or a TASK/METRIC of lm_eval
    value: float
    low: float | None  # ends of the 95% interval, None where there is none
    high: float | None

    @property
    def at(self) -> Interval:
        return Interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Point(Measure):
    """A key metric that an evaluation measured of the model of a training run."""

    run: Run
    evaluation: Run
    against: str  # the conditions under which values are comparable: held-out rows, baseline, judge
    details: dict[str, float | None]  # other statistics of the same comparison, by their names in result.json
    difference: Interval | None = None  # from the evaluation's baseline, paired by row
    baseline: Run | None = None  # the training run of that baseline, None for another model
    evaluated_as: str = ""  # the name of the model in the evaluation
    # A digest of what values depend on besides the model: rows and tokens, or prompts, answers and judge
    conditions: str = ""

    @property
    def key_metric(self) -> KeyMetric:
        return KEY_METRICS[self.metric]


def points(runs: Runs) -> list[Point]:
    """What evaluations and human votes measured of the training runs, matched by the folder of the model.

    Win rates come last, those of the most runs at the very end: a run's last point is its key figure.
    """
    matched = []
    for evaluation in runs.by_command("evaluate", "votes"):
        trained = trained_models(evaluation, runs)
        baseline = trained.get(str(evaluation.get("baseline")))
        for entry in evaluation.models:
            name = model_name(entry)
            metrics = metrics_of(entry)
            metric = next((metric for metric in KEY_METRICS if metric in metrics), None)
            if metric is None or (run := trained.get(name)) is None:
                continue
            point = Point(
                run.name,
                metric,
                *metrics[metric],
                run,
                evaluation,
                against=_against(evaluation, entry, metric),
                details=win_rate_details(entry),
                difference=_interval(nested(entry, "difference", metric)),
                baseline=baseline,
                evaluated_as=name,
                conditions=digest([entry.get(key, evaluation.get(key)) for key in CONDITIONS])[:8],
            )
            matched.append(point)
    matched = _told_apart(matched)
    size = Counter((p.metric, p.against) for p in matched)
    return sorted(matched, key=lambda p: (p.metric == "win_rate", size[p.metric, p.against]))


def _told_apart(points: Sequence[Point]) -> list[Point]:
    """The points, where conditions that have the same description but differ have a digest in it."""
    described = grouped(points, lambda p: (p.metric, p.against))
    known = {key: {p.conditions for p in same} for key, same in described.items()}
    return [
        replace(p, against=f"{p.against}, settings {p.conditions}") if len(known[p.metric, p.against]) > 1 else p
        for p in points
    ]


def comparable(points: Sequence[Point]) -> list[list[Point]]:
    """The points in groups of one metric and the same conditions, key figures first."""
    return [*reversed(grouped(points, lambda p: (p.metric, p.against)).values())]


def one_value_per_seed(points: Sequence[Point]) -> list[Point]:
    """Comparable points without the selections that have two values for a seed: which of them counts is unknown."""
    by_seed = grouped(points, lambda p: (p.run.series, p.run.pct, p.run.get("seed")))
    ambiguous = {(series, pct) for (series, pct, _), same in by_seed.items() if len({p.value for p in same}) > 1}
    return [p for p in points if (p.run.series, p.run.pct) not in ambiguous]


def by_selection(points: Sequence[Point]) -> dict[str, dict[float, list[Point]]]:
    """The points of every series by percentage, the seeds of a selection together."""
    ordered = sorted(points, key=lambda p: (p.run.series, p.run.pct or 0.0))
    by_series = grouped(ordered, lambda p: p.run.series)
    return {series: grouped(same, lambda p: p.run.pct or 0.0) for series, same in by_series.items()}


def trained_models(evaluation: Run, runs: Runs) -> dict[str, Run]:
    """The training runs of the models of an evaluation, by their names in it."""
    training = runs.by_command("train")
    # Where a run was when it was trained, and evaluated: its folder may have been moved since.
    then = {Path(path).resolve(): run for run in training if isinstance(path := run.get("model"), str)}
    trained = then | {(run.folder / "model").resolve(): run for run in training}
    folders = {model_name(entry): entry.get("model") for entry in evaluation.models} | _answer_folders(evaluation, runs)
    models = {name: Path(f).expanduser().resolve() for name, f in folders.items() if isinstance(f, str)}
    matched = {name: trained.get(model) or trained.get(model / "model") for name, model in models.items()}
    return {str(name): run for name, run in matched.items() if run is not None}


def untrained(points: Sequence[Point]) -> dict[str, float]:
    """The values that the evaluations of the points measured of untrained targets, by label."""
    values: dict[str, float] = {}
    for p in points:
        trained = {other.evaluated_as for other in points if other.evaluation is p.evaluation}
        for entry in p.evaluation.models:
            at = metrics_of(entry).get(p.metric)
            path = p.run.get("base_model", "path")
            is_target = model_name(entry) == p.run.target or (path is not None and entry.get("model") == path)
            if at is not None and is_target and model_name(entry) not in trained:
                values[p.run.target] = at.value
    return {"untrained" if len(values) == 1 else f"{name}, untrained": value for name, value in values.items()}


def model_name(entry: dict[str, Any]) -> str:
    """The name of a model in an evaluation.

    Raises:
        TypeError: it is no text.
    """
    name = entry.get("name", entry.get("model", "–"))
    if not isinstance(name, str):
        raise TypeError(f"the name of a model is {name!r}")
    return name


def win_rate_details(entry: dict[str, Any]) -> dict[str, float | None]:
    """`WIN_RATE_DETAILS` of one model; the p-value as it is where there is only one."""
    details = {name: number(entry.get(name)) for name in WIN_RATE_DETAILS}
    return details | {"p_value_holm": number(entry.get("p_value_holm", entry.get("p_value")))}


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
    measured = []
    for entry in evaluation.models:
        metrics = metrics_of(entry)
        key = next((metric for metric in KEY_METRICS if metric in metrics), None)
        measured += [Measure(model_name(entry), metric, *at) for metric, at in metrics.items() if key in (None, metric)]
    return measured


def metrics_of(entry: dict[str, Any]) -> dict[str, Interval]:
    """Every metric of one model with its interval; no win rate where the verdicts carry no information."""
    if entry.get("informative") is False:
        return {}
    if (rate := number(entry.get("win_rate"))) is not None:
        return {"win_rate": Interval(rate, *map(number, shown_interval(entry)))}
    metrics = entry.get("metrics")
    intervals = {name: _interval(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _interval(statistic: Any) -> Interval | None:
    value, low, high = (number(nested(statistic, key)) for key in ("value", "low", "high"))
    return None if value is None else Interval(value, low, high)


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
        judged = number(evaluation.get("n_prompts")) or sum(number(entry.get(key)) or 0 for key in ("n", "failed"))
        parts["prompts"] = f"{judged:.0f}" if judged else None
    else:
        parts = {"on": text("dataset"), "rows": text("n")}
    return ", ".join(f"{word} {value}" for word, value in parts.items() if value)
