"""Figures of quality by bucket, by scorer and target, and by group or task.

Every function returns None where the points do not allow its figure.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpsel.report.drawing import (
    COLORMAP,
    INK,
    MUTED,
    SERIES,
    WIDTH,
    horizontal_line,
    interval,
    legend,
    new_axes,
    styled,
)
from lpsel.report.looks import MARKERS, Look
from lpsel.report.points import Interval, Point

MOST_UPRIGHT = 9  # bars; the labels of more are rotated
LABELS = {"win_rate": "win rate, %", "nll": "held-out NLL, nats per token"}
AXES = {"win_rate": "win rate, %\n(higher is better)", "nll": "held-out NLL, nats per token\n(lower is better)"}
SHADES = {"low": 0.45, "mid": 0.7, "high": 1.0}  # of the color of a rule


class Dot(NamedTuple):
    """A value of one series in a row of `dots_figure`."""

    row: str
    series: str
    at: Interval
    color: str | None = None  # otherwise that of its series


@styled
def bucket_figure(points: Sequence[Point], looks: Mapping[str, Look]) -> Figure | None:
    """Bars per bucket, in groups of one rule, percentage, scorer and target; needs two buckets."""
    at = defaultdict(list)
    colors = {p.run.rule + p.run.variant: looks[p.run.series].color for p in points}
    several = len({p.run.target for p in points if p.run.bucket}) > 1
    for p in points:
        if p.run.bucket and p.run.pct is not None:
            models = f"{p.run.scorer} → {p.run.target}" if several else p.run.scorer
            at[(p.run.rule + p.run.variant, p.run.pct, models), p.run.bucket].append(p)
    groups = sorted({group for group, _ in at})
    buckets = [bucket for bucket in ("low", "mid", "high") if bucket in {bucket for _, bucket in at}]
    if len(buckets) < 2:
        return None
    width = 0.8 / len(buckets)
    rotation = 90 if len(groups) * len(buckets) > MOST_UPRIGHT else 0
    figure, axes = new_axes()
    for k, bucket in enumerate(buckets):
        axes.bar([0], [0], color=INK, alpha=SHADES[bucket], label=f"{bucket} bucket")
        for g, group in enumerate(groups):
            x = g + (k - (len(buckets) - 1) / 2) * width
            if bars := at.get((group, bucket)):
                _bar(axes, x, width, bars, colors[group[0]], SHADES[bucket], rotation)
    metric = points[0].metric
    if metric == "win_rate":
        horizontal_line(axes, 50.0, "50 %")
    axes.margins(y=0.16)
    axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g} %\n{models}" for rule, pct, models in groups])
    axes.set_ylabel(AXES[metric])
    legend(axes)
    return figure


def _bar(axes: Axes, x: float, width: float, points: Sequence[Point], color: str, alpha: float, rotation: int) -> None:
    """The mean of the points with its number, and the interval of each."""
    mean = float(np.mean([p.value for p in points]))
    axes.bar(x, mean, width * 0.92, color=color, alpha=alpha)
    top = max([mean, *(p.high for p in points if p.high is not None)])
    at: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(f"{mean:.3g}", (x, top), rotation=rotation, **at)
    for p in points:
        if p.low is not None and p.high is not None:
            interval(axes, [x, x], [p.low, p.high], INK, alpha=1)


@styled
def scorer_target_figure(points: Sequence[Point]) -> Figure | None:
    """The metric of every scorer and target, for the rule, bucket and percentage that most pairs have."""
    values: dict[tuple[str, str, float], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for p in points:
        if p.run.scorer != "–" and p.run.pct is not None:
            values[p.run.rule + p.run.variant, p.run.bucket or "", p.run.pct][p.run.scorer, p.run.target].append(
                p.value
            )
    if not values:
        return None
    rule, bucket, pct = most = max(values, key=lambda key: (len(values[key]), key))
    scorers, targets = (sorted(set(names)) for names in zip(*values[most], strict=True))
    if len(scorers) < 2:
        return None
    figure, axes = new_axes(max(WIDTH, 1.1 * len(targets) + 1), 0.45 * len(scorers) + 0.9)
    means = np.full((len(scorers), len(targets)), np.nan)
    box = {"facecolor": INK, "edgecolor": "none", "alpha": 0.6, "pad": 2}
    for (scorer, target), seeds in values[most].items():
        a, b = scorers.index(scorer), targets.index(target)
        means[a, b] = np.mean(seeds)
        axes.text(b, a, f"{means[a, b]:.2f}", ha="center", va="center", color="white", bbox=box)
    axes.imshow(np.ma.masked_invalid(means), cmap=COLORMAP, aspect="auto")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(scorers)), scorers)
    axes.set_xlabel(f"target; {rule}{f', {bucket}' if bucket else ''}, {pct:g} %")
    axes.set_ylabel("scorer")
    return figure


@styled
def dots_figure(dots: Sequence[Dot], label: str, lines: Sequence[float] = ()) -> Figure | None:
    """Values with intervals, one row per group or task and one color per model; `lines` are dashed references."""
    rows = list(dict.fromkeys(d.row for d in dots))
    series = list(dict.fromkeys(d.series for d in dots))
    if not rows:
        return None
    step = 0.8 / len(series)
    figure, axes = new_axes(height=max(0.3, 0.15 * len(series)) * len(rows) + 0.5 + 0.2 * len(series))
    for k, name in enumerate(series):
        marker, shown = MARKERS[k % len(MARKERS)], [d for d in dots if d.series == name]
        colors = [d.color or SERIES[k % len(SERIES)] for d in shown]
        for d, color in zip(shown, colors, strict=True):
            value, low, high = d.at
            y = rows.index(d.row) + (k - (len(series) - 1) / 2) * step
            if low is not None and high is not None:
                interval(axes, [low, high], [y, y], color)
            axes.plot([value], [y], marker, color=color, markersize=4.5)
        axes.plot([], [], marker, color=colors[0] if len({*colors}) == 1 else INK, markersize=4.5, label=name)
    for line in lines:
        axes.axvline(line, color=MUTED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    legend(axes)
    return figure
