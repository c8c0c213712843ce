"""Report figures: quality by bucket, scorer, group and task; scores, lengths and costs.

Functions return None if the runs lack the data for a figure.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpsel.console import shortened
from lpsel.errors import UserError
from lpsel.integrity import Damaged, check_files
from lpsel.report.agreement_figures import heatmap
from lpsel.report.comparisons import EVEN
from lpsel.report.drawing import (
    COLORMAP,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    WIDTH,
    Look,
    horizontal_label,
    interval,
    legend,
    new_axes,
    styled,
)
from lpsel.report.points import Interval, Point
from lpsel.report.runs import Run, grouped
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.read import read_scores

log = logging.getLogger(__name__)

MOST_UPRIGHT = 9  # bars; with more, labels are rotated
LONGEST_ROW = 30  # characters of a row name, which leaves half of the width for values
SHADES = {"low": 0.45, "mid": 0.7, "high": 1.0}  # buckets in order, and the opacity of a rule's color for each
SELECTION = "selection.parquet"


class Dot(NamedTuple):
    """A value of one series in a row of `dots_figure`."""

    row: str
    series: str
    at: Interval
    color: str | None = None  # default: color of its series


@styled
def bucket_figure(points: Sequence[Point], looks: Mapping[str, Look]) -> Figure | None:
    """Bars per bucket, grouped by rule, percentage, scorer and target; needs two buckets."""
    seeds = defaultdict(list)  # points by group, which is (rule, percentage, models), and bucket
    colors = {p.run.rule + p.run.variant: looks[p.run.series].color for p in points}
    several_targets = len({p.run.target for p in points if p.run.bucket}) > 1
    for p in points:
        if p.run.bucket and p.run.pct is not None:
            models = f"{p.run.scorer} → {p.run.target}" if several_targets else p.run.scorer
            seeds[(p.run.rule + p.run.variant, p.run.pct, models), p.run.bucket].append(p)
    groups = sorted({group for group, _ in seeds})
    measured_buckets = {bucket for _, bucket in seeds}
    buckets = [bucket for bucket in SHADES if bucket in measured_buckets]
    if len(buckets) < 2:
        return None
    width = 0.8 / len(buckets)
    rotation = 90 if len(groups) * len(buckets) > MOST_UPRIGHT else 0
    figure, axes = new_axes()
    for k, bucket in enumerate(buckets):
        axes.bar([0], [0], color=INK, alpha=SHADES[bucket], label=f"{bucket} bucket")
        for g, group in enumerate(groups):
            x = g + (k - (len(buckets) - 1) / 2) * width
            if (group, bucket) in seeds:
                _bar(axes, x, width, seeds[group, bucket], colors[group[0]], SHADES[bucket], rotation)
    if points[0].metric == "win_rate":
        axes.axhline(EVEN, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        horizontal_label(axes, EVEN, "50%", MUTED)
    axes.margins(y=0.16)
    axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g}%\n{models}" for rule, pct, models in groups])
    axes.set_ylabel(points[0].key_metric.axis_label)
    legend(axes)
    return figure


def _bar(axes: Axes, x: float, width: float, points: Sequence[Point], color: str, alpha: float, rotation: int) -> None:
    """Draw the mean of the points with its value, and the interval of each point."""
    mean = float(np.mean([p.value for p in points]))
    axes.bar(x, mean, width * 0.92, color=color, alpha=alpha)
    top = max([mean, *(p.high for p in points if p.high is not None)])
    label = f"{mean:.3g}"
    axes.annotate(label, (x, top), (0, 2), textcoords="offset points", ha="center", va="bottom", rotation=rotation)
    for p in points:
        interval(axes, p.at, x, INK, alpha=1)


@styled
def scorer_target_figure(points: Sequence[Point]) -> Figure | None:
    """Heatmap of the metric by scorer and target, for the rule, bucket and percentage that most pairs have."""
    scored = [p for p in points if p.run.scorer != "–" and p.run.pct is not None]
    settings = grouped(scored, lambda p: (p.run.rule + p.run.variant, p.run.bucket or "", p.run.pct or 0.0))
    by_setting = {key: grouped(same, lambda p: (p.run.scorer, p.run.target)) for key, same in settings.items()}
    if not by_setting:
        return None
    (rule, bucket, pct), pairs = max(by_setting.items(), key=lambda item: (len(item[1]), item[0]))
    scorers, targets = sorted({scorer for scorer, _ in pairs}), sorted({target for _, target in pairs})
    if len(scorers) < 2:
        return None
    figure, axes = new_axes(max(WIDTH, 1.1 * len(targets) + 1), 0.45 * len(scorers) + 0.9)
    means = np.full((len(scorers), len(targets)), np.nan)
    box = {"facecolor": INK, "edgecolor": "none", "alpha": 0.6, "pad": 2}
    for (scorer, target), seeds in pairs.items():
        row, column = scorers.index(scorer), targets.index(target)
        means[row, column] = np.mean([p.value for p in seeds])
        axes.text(column, row, f"{means[row, column]:.2f}", ha="center", va="center", color="white", bbox=box)
    axes.imshow(np.ma.masked_invalid(means), cmap=COLORMAP, aspect="auto")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(scorers)), scorers)
    setting = ", ".join(filter(None, [rule, bucket, f"{pct:g}%"]))
    axes.set(xlabel=f"target; {setting}", ylabel="scorer")
    return figure


@styled
def dots_figure(dots: Sequence[Dot], label: str, lines: Sequence[float] = ()) -> Figure | None:
    """Dot plot with intervals, one row per group or task and one color per model; `lines` are dashed references."""
    rows = list(dict.fromkeys(d.row for d in dots))
    series = list(dict.fromkeys(d.series for d in dots))
    if not rows:
        return None
    step = 0.8 / len(series)
    figure, axes = new_axes(height=max(0.3, 0.15 * len(series)) * len(rows) + 0.5 + 0.2 * len(series))
    for k, name in enumerate(series):
        marker, colors = MARKERS[k % len(MARKERS)], set()
        for d in dots:
            if d.series == name:
                color = d.color or SERIES[k % len(SERIES)]
                y = rows.index(d.row) + (k - (len(series) - 1) / 2) * step
                interval(axes, d.at, y, color, horizontal=True)
                axes.plot([d.at.value], [y], marker, color=color, markersize=4.5)
                colors.add(color)
        axes.plot([], [], marker, color=colors.pop() if len(colors) == 1 else INK, markersize=4.5, label=name)
    for line in lines:
        axes.axvline(line, color=MUTED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [shortened(row, LONGEST_ROW) for row in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label)
    legend(axes)
    return figure


def score_agreement_figure(runs: Sequence[Run]) -> Figure | None:
    """Spearman correlation between scores of the same rows by different rules and scorers; needs two."""
    from scipy.stats import spearmanr

    scores: dict[str, Any] = {}  # (N,) by rule and scorer
    for run in runs:
        name = run.rule if run.scorer == "–" else f"{run.rule}, {run.scorer}"
        same_data = run.get("dataset", "fingerprint") == runs[0].get("dataset", "fingerprint")
        if name not in scores and same_data and run.get("scores") is not None:
            table = _selection(run, ["index", "score"])
            if table is not None:
                scores[name] = table["score"]
    if len(scores) < 2 or len({len(score_N) for score_N in scores.values()}) > 1:
        return None
    correlations = [
        [spearmanr(a_N, b_N, nan_policy="omit").statistic for b_N in scores.values()] for a_N in scores.values()
    ]
    return heatmap(list(scores), np.array(correlations), "")


@styled
def trajectory_figure(scores: Path) -> Figure | None:
    """NLL by epoch of the hardest and easiest tenth of the rows by LP_app(1): median and quartiles."""
    try:
        table = read_scores(scores)
    except UserError:
        return None
    if not table.epochs:
        return None
    lp_N, epochs = learning_percentage(table, "lp_app"), range(len(table.nll))
    order = np.argsort(lp_N, kind="stable")[: np.isfinite(lp_N).sum()]  # NaN comes last
    if len(order) < 2:
        return None
    tenth = max(1, len(order) // 10)
    figure, axes = new_axes()
    for name, rows, line, color in (("hardest", order[:tenth], "-", INK), ("easiest", order[-tenth:], "--", MUTED)):
        low, median, high = np.nanpercentile(table.nll[:, rows], [25, 50, 75], axis=1)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(epochs, median, line, marker="o", markersize=4, color=color, label=f"{name} tenth")
    axes.set(xticks=epochs, xlabel="epochs of the scorer", ylabel="NLL, nats per token")
    legend(axes)
    return figure


@styled
def length_figure(run: Run, color: str) -> Figure | None:
    """Histogram of response tokens of the selected rows compared with all rows."""
    chosen = _selection(run, ["index", "selected"])
    scores = _columns(Path(str(run.get("scores"))), ["index", "response_tokens"])
    if chosen is None or scores is None or not np.array_equal(chosen["index"], scores["index"]):
        return None
    selected, tokens = chosen["selected"].astype(bool), scores["response_tokens"]
    if not selected.any() or selected.all():
        return None
    top = max(2, int(np.percentile(tokens, 99)) + 1)
    bins = np.linspace(0, top, min(top, 40) + 1).tolist()
    figure, axes = new_axes()
    for label, lengths, edge in (("all rows", tokens, INK), ("selected", tokens[selected], color)):
        percent = np.full(len(lengths), 100 / len(lengths))
        clipped = np.clip(lengths, 0, top)
        axes.hist(clipped, bins, weights=percent, histtype="step", linewidth=1.6, color=edge, label=label)
    axes.set(xlabel="response tokens", ylabel="rows, %")
    legend(axes)
    return figure


@styled
def ledger_figure(runs: Sequence[Run], looks: Mapping[str, Look]) -> Figure | None:
    """FLOPs of scoring and training as a percentage of training on all rows, averaged over seeds."""
    counted = [run for run in runs if run.flops_percent("total") is not None]
    seeds = grouped(counted, lambda run: (run.series, run.pct or 0.0))
    if not seeds:
        return None
    figure, axes = new_axes(height=0.42 * len(seeds) + 0.9)
    for y, ((series, pct), same) in enumerate(sorted(seeds.items())):
        scoring = float(np.mean([run.flops_percent("selection") or 0.0 for run in same]))
        training = float(np.mean([run.flops_percent("training") or 0.0 for run in same]))
        color = looks[series].color
        axes.barh(y, scoring, color=color, alpha=0.45, height=0.4)
        axes.barh(y, training, left=scoring, color=color, height=0.4)
        name = [looks[series].label]
        if pct:
            name.append(f"{pct:g}%")
        if numbers := list(dict.fromkeys(str(run.get("seed")) for run in same if run.get("seed") is not None)):
            name.append(f"{'seeds' if len(numbers) > 1 else 'seed'} {', '.join(numbers)}")
        # Above the bars, since there is no room next to them on a phone.
        axes.text(0, y - 0.27, ", ".join(name), va="bottom")
    for label, alpha in (("selection", 0.45), ("training", 1.0)):
        axes.barh([0], [0], color=INK, alpha=alpha, label=label)
    axes.axvline(100, color=INK, linestyle="--", linewidth=1)
    axes.set(yticks=[], ylim=(len(seeds) - 0.7, -0.9), xlabel="FLOPs, % of training on all rows")
    legend(axes)
    return figure


def _selection(run: Run, columns: list[str]) -> dict[str, Any] | None:
    """Read columns of the run's selection.parquet; None if they are missing or the file has changed."""
    sha256 = run.get("sha256", SELECTION)
    try:
        if sha256:
            check_files(run.folder, {SELECTION: sha256})
    except Damaged as damage:
        log.warning("%s It is left out of the figures.", damage)
        return None
    return _columns(run.folder / SELECTION, columns)


def _columns(path: Path, columns: list[str]) -> dict[str, Any] | None:
    """Read columns as arrays; None if the file or a column is missing."""
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError):
        return None
    return {name: table[name].to_numpy() for name in table.column_names}
