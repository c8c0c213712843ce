"""Collect metrics of trained models from evaluations and human votes."""

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
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
    """Display settings of a metric that selections are compared by."""

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
    """A value and its 95% confidence interval, if available."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measure:
    """One metric of one model."""

    model: str  # name of the model in the evaluation
    metric: str  # win_rate, nll, or a TASK/METRIC of lm_eval
    value: float
    low: float | None  # ends of the 95% interval, if available
    high: float | None

    @property
    def at(self) -> Interval:
        return Interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Point(Measure):
    """A key metric of a trained model in one evaluation."""

    run: Run
    evaluation: Run
    against: str  # conditions under which values are comparable: held-out rows, baseline, judge
    details: dict[str, float | None]  # other statistics of the same comparison, by name in result.json
    difference: Interval | None = None  # difference from the evaluation's baseline, paired by row
    baseline: Run | None = None  # training run of that baseline, None if it was not trained by lpsel
    evaluated_as: str = ""  # name of the model in the evaluation
    # Digest of what values depend on in addition to the model: rows and tokens, or prompts, answers and judge
    conditions: str = ""

    @property
    def key_metric(self) -> KeyMetric:
        return KEY_METRICS[self.metric]


def points(runs: Runs) -> list[Point]:
    """Collect the key metrics of training runs from evaluations and votes, matched by model folder.

    Win rates come last, and among them the ones with the most runs: a run's last point is its key figure.
    """
    matched = []
    for evaluation in runs.by_command("evaluate", "votes"):
        trained = trained_models(evaluation, runs)
        baseline = trained.get(str(evaluation.get("baseline")))
        for entry in evaluation.models:
            name = model_name(entry)
            metrics = metrics_of(entry)
            metric = _key_metric(metrics)
            run = trained.get(name)
            if metric is None or run is None:
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
    matched = _with_distinct_conditions(matched)
    size = Counter((p.metric, p.against) for p in matched)
    return sorted(matched, key=lambda p: (p.metric == "win_rate", size[p.metric, p.against]))


def _with_distinct_conditions(points: Sequence[Point]) -> list[Point]:
    """Add a digest to descriptions of conditions that are equal although the conditions differ."""
    conditions = defaultdict(set)
    for p in points:
        conditions[p.metric, p.against].add(p.conditions)
    return [
        p if len(conditions[p.metric, p.against]) == 1 else replace(p, against=f"{p.against}, settings {p.conditions}")
        for p in points
    ]


def comparable(points: Sequence[Point]) -> list[list[Point]]:
    """Group points by metric and conditions, key figures first."""
    return [*reversed(grouped(points, lambda p: (p.metric, p.against)).values())]


def one_value_per_seed(points: Sequence[Point]) -> list[Point]:
    """Remove selections with two values for a seed, since it is unknown which one to use."""
    by_seed = grouped(points, lambda p: (p.run.series, p.run.pct, p.run.get("seed")))
    ambiguous = {(series, pct) for (series, pct, _), same in by_seed.items() if len({p.value for p in same}) > 1}
    return [p for p in points if (p.run.series, p.run.pct) not in ambiguous]


def by_selection(points: Sequence[Point]) -> dict[str, dict[float, list[Point]]]:
    """Group the points of every series by percentage, with all seeds of a selection together."""
    ordered = sorted(points, key=lambda p: (p.run.series, p.run.pct or 0.0))
    by_series = grouped(ordered, lambda p: p.run.series)
    return {series: grouped(same, lambda p: p.run.pct or 0.0) for series, same in by_series.items()}


def trained_models(evaluation: Run, runs: Runs) -> dict[str, Run]:
    """Training runs of the models of an evaluation, by model name."""
    training = runs.by_command("train")
    # Match both the folder at the time of training and the current one, since it may have been moved.
    run_of_model = {Path(path).resolve(): run for run in training if isinstance(path := run.get("model"), str)}
    run_of_model |= {(run.folder / "model").resolve(): run for run in training}
    paths = {model_name(entry): entry.get("model") for entry in evaluation.models} | _answer_folders(evaluation, runs)
    trained = {}
    for name, path in paths.items():
        if isinstance(path, str):
            model = Path(path).expanduser().resolve()  # a model folder, or a run folder that contains it
            run = run_of_model.get(model) or run_of_model.get(model / "model")
            if run is not None:
                trained[str(name)] = run
    return trained


def untrained(points: Sequence[Point]) -> dict[str, float]:
    """Values of untrained targets in the evaluations of the points, by label."""
    values: dict[str, float] = {}
    for p in points:
        trained = {other.evaluated_as for other in points if other.evaluation is p.evaluation}
        path = p.run.get("base_model", "path")
        for entry in p.evaluation.models:
            name, at = model_name(entry), metrics_of(entry).get(p.metric)
            is_target = name == p.run.target or (path is not None and entry.get("model") == path)
            if at is not None and is_target and name not in trained:
                values[p.run.target] = at.value
    return {"untrained" if len(values) == 1 else f"{name}, untrained": value for name, value in values.items()}


def model_name(entry: dict[str, Any]) -> str:
    """Name of a model in an evaluation; raises a TypeError if it is not a string."""
    name = entry.get("name", entry.get("model", "–"))
    if not isinstance(name, str):
        raise TypeError(f"the name of a model is {name!r}")
    return name


def win_rate_details(entry: dict[str, Any]) -> dict[str, float | None]:
    """`WIN_RATE_DETAILS` of one model, with the uncorrected p-value if there is only one."""
    details = {name: number(entry.get(name)) for name in WIN_RATE_DETAILS}
    return details | {"p_value_holm": number(entry.get("p_value_holm", entry.get("p_value")))}


def _answer_folders(evaluation: Run, runs: Runs) -> dict[Any, Any]:
    """Folder of every model that generated answers, by its name in the evaluation."""
    if evaluation.command == "votes":  # the voting page is in the folder of the evaluation that wrote it
        key = Path(str(evaluation.get("key")))
        for run in runs.by_command("evaluate"):
            if run.folder in key.parents:
                return _answer_folders(run, runs)
        return {}
    return {answer.get("name"): answer.get("model") for answer in evaluation.entries("answers")}


def measures(evaluation: Run) -> list[Measure]:
    """Metrics of all models of an evaluation: the key metric of each model, or all lm_eval metrics.

    For a validation, the correlation of each score with the NLL, if it is defined.
    """
    if evaluation.command == "validate":
        correlations = []
        for entry in evaluation.entries("scores"):
            value, low, high = (number(entry.get(key)) for key in ("spearman", "ci_low", "ci_high"))
            if value is not None:
                correlations.append(Measure(str(entry.get("score")), "spearman", value, low, high))
        return correlations
    measured = []
    for entry in evaluation.models:
        metrics = metrics_of(entry)
        key_metric = _key_metric(metrics)
        names = metrics if key_metric is None else [key_metric]
        measured += [Measure(model_name(entry), metric, *metrics[metric]) for metric in names]
    return measured


def _key_metric(metrics: Container[str]) -> str | None:
    """The key metric among the metrics of a model, None if there is none."""
    return next((metric for metric in KEY_METRICS if metric in metrics), None)


def metrics_of(entry: dict[str, Any]) -> dict[str, Interval]:
    """All metrics of one model with intervals; no win rate if the verdicts carry no information."""
    if entry.get("informative") is False:
        return {}
    if (rate := number(entry.get("win_rate"))) is not None:
        return {"win_rate": Interval(rate, *map(number, shown_interval(entry)))}
    metrics = entry.get("metrics")
    intervals = {name: _interval(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _interval(statistic: Any) -> Interval | None:
    """Convert a statistic of result.json, a dictionary with `value`, `low` and `high`; None without a value."""
    value, low, high = (number(nested(statistic, key)) for key in ("value", "low", "high"))
    return None if value is None else Interval(value, low, high)


def _against(evaluation: Run, entry: dict[str, Any], metric: str) -> str:
    """Describe what a model was compared with, or measured on, such as: on alpaca-test, rows 500."""

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
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)
