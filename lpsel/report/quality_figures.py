"""Figures of quality: win rate and held-out NLL against the fraction of the data, by bucket, and by scorer and target.

Every function returns None where the points do not allow its figure.
"""

from collections import defaultdict
from collections.abc import Sequence
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
from lpsel.report.runs import Interval, Point

MARKERS = "osD^vP"
MOST_LINES = 6  # selections at a single percentage; more become rows of a dot plot
MOST_UPRIGHT = 9  # bars; the labels of more are rotated
LABELS = {"win_rate": "win rate, %", "nll": "held-out NLL, nats per token"}


class Dot(NamedTuple):
    """A value of one series in a row of `dots_figure`."""

    row: str
    series: str
    at: Interval


def fraction_figure(points: Sequence[Point]) -> Figure | None:
    """The metric against the percentage of the data: a line per selection through the means of its seeds.

    Many selections at a single percentage become rows, best first.
    """
    values = [(p, Interval(p.value, p.low, p.high)) for p in points if p.run.pct is not None]
    if not values:
        return None
    metric, goal = points[0].metric, _goal(points)
    passing = None if goal is None else smallest_passing(points)
    win_rate = metric == "win_rate"
    return _by_pct(values, LABELS[metric], goal, "50 %" if win_rate else "all rows", passing, descending=win_rate)


def difference_figure(points: Sequence[Point]) -> Figure | None:
    """The NLL minus that of training on all rows, in the same evaluation, against the percentage of the data.

    Rows differ more than models do: NLL intervals overlap where those of the paired difference exclude 0.
    """
    values = differences(points)
    return _by_pct(values, "NLL minus that of all rows, nats", 0.0, "same as all rows") if values else None


@styled
def _by_pct(
    values: Sequence[tuple[Point, Interval]],
    label: str,
    goal: float | None,
    goal_label: str,
    passing: float | None = None,
    descending: bool = False,
) -> Figure | None:
    selected = [(p, at) for p, at in values if p.run.rule != "full"]
    pcts, series = {p.run.pct for p, _ in selected}, {p.run.series for p, _ in selected}
    if len(pcts) == 1 and len(series) > MOST_LINES:
        return dots_figure(_ranked(selected, descending), f"{label}, at {pcts.pop():g} %", goal)
    figure, axes = new_axes(height=2.7 + 0.17 * len({p.run.series for p, _ in values}))
    _lines(axes, values)
    if goal is not None:
        horizontal_line(axes, goal, goal_label)
    if passing is not None:
        axes.axvline(passing, color=MUTED, linewidth=0.8, linestyle=":")
        at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
        axes.annotate(f"{passing:g} % is enough", (passing, 1), color=MUTED, **at)
    axes.set_ylabel(label)
    legend(axes)
    return figure


def differences(points: Sequence[Point]) -> list[tuple[Point, Interval]]:
    """The values of `difference_figure`, with a paired interval where training on all rows was the baseline."""
    full = {p.evaluation.folder: p for p in points if p.run.rule == "full" and p.metric == "nll"}
    values = []
    for p in points:
        all_rows = full.get(p.evaluation.folder)
        if all_rows is None or p.run.rule == "full" or p.run.pct is None:
            continue
        paired = p.difference if all_rows.difference is None else None
        values.append((p, paired or Interval(p.value - all_rows.value)))
    return values


def smallest_passing(points: Sequence[Point]) -> float | None:
    """The smallest percentage at which the mean over seeds of a selection reaches 50 % or the NLL of all rows."""
    values = defaultdict(list)
    for p in points:
        if p.run.rule != "full" and p.run.pct is not None:
            values[p.run.series, p.run.pct].append(p.value)
    goal = _goal(points)
    if goal is None:
        return None
    sign = 1 if points[0].metric == "win_rate" else -1
    return min((pct for (_, pct), at in values.items() if sign * np.mean(at) >= sign * goal), default=None)


@styled
def bucket_figure(points: Sequence[Point]) -> Figure | None:
    """Bars per bucket, in groups of one rule, percentage and scorer; needs two buckets."""
    at = defaultdict(list)
    for p in points:
        if p.run.bucket and p.run.pct is not None:
            at[(p.run.rule, p.run.pct, p.run.scorer), p.run.bucket].append(p)
    groups = sorted({group for group, _ in at})
    buckets = [bucket for bucket in ("low", "mid", "high") if bucket in {bucket for _, bucket in at}]
    if len(buckets) < 2:
        return None
    width = 0.8 / len(buckets)
    rotation = 90 if len(groups) * len(buckets) > MOST_UPRIGHT else 0
    figure, axes = new_axes()
    for k, bucket in enumerate(buckets):
        axes.bar([0], [0], color=SERIES[k], label=f"{bucket} bucket")
        for g, group in enumerate(groups):
            x = g + (k - (len(buckets) - 1) / 2) * width
            if bars := at.get((group, bucket)):
                _bar(axes, x, width, bars, SERIES[k], rotation)
    metric = points[0].metric
    if metric == "win_rate":
        horizontal_line(axes, 50.0, "50 %")
    axes.margins(y=0.16)
    axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g} %\n{scorer}" for rule, pct, scorer in groups])
    axes.set_ylabel(LABELS[metric])
    legend(axes)
    return figure


def _bar(axes: Axes, x: float, width: float, points: Sequence[Point], color: str, rotation: int) -> None:
    """The mean of the points with its number, and the interval of each."""
    mean = float(np.mean([p.value for p in points]))
    axes.bar(x, mean, width * 0.92, color=color, alpha=0.85)
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
            values[p.run.rule, p.run.bucket or "", p.run.pct][p.run.scorer, p.run.target].append(p.value)
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
def dots_figure(dots: Sequence[Dot], label: str, line: float | None = None) -> Figure | None:
    """Values with intervals, one row per group or task and one color per model; `line` is a dashed reference."""
    rows = list(dict.fromkeys(d.row for d in dots))
    series = list(dict.fromkeys(d.series for d in dots))
    if not rows:
        return None
    step = 0.8 / len(series)
    figure, axes = new_axes(height=max(0.3, 0.15 * len(series)) * len(rows) + 0.5 + 0.2 * len(series))
    for k, name in enumerate(series):
        color, marker = look(k)
        for value, low, high, row in ((*d.at, d.row) for d in dots if d.series == name):
            y = rows.index(row) + (k - (len(series) - 1) / 2) * step
            if low is not None and high is not None:
                interval(axes, [low, high], [y, y], color)
            axes.plot([value], [y], marker, color=color, markersize=4.5)
        axes.plot([], [], marker, color=color, markersize=4.5, label=name)
    if line is not None:
        axes.axvline(line, color=MUTED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    legend(axes)
    return figure


def look(k: int) -> tuple[str, str]:
    """Color and marker of the k-th series; 36 that differ."""
    return SERIES[k % len(SERIES)], MARKERS[(k + k // len(SERIES)) % len(MARKERS)]


def _goal(points: Sequence[Point]) -> float | None:
    """A win rate of 50 %, or the mean NLL of training on all rows."""
    if points[0].metric == "win_rate":
        return 50.0
    full = [p.value for p in points if p.run.rule == "full"]
    return float(np.mean(full)) if full else None


def _labels(points: Sequence[Point]) -> list[str]:
    """The label of every point: its selection, and its target where the targets differ."""
    one_target = len({p.run.target for p in points}) == 1
    return [p.run.selection if one_target else p.run.series for p in points]


def _ranked(values: Sequence[tuple[Point, Interval]], descending: bool = False) -> list[Dot]:
    """A row for every selection, the best by the mean of its seeds first, with a dot for every seed."""
    seeds = defaultdict(list)
    for label, (p, at) in zip(_labels([p for p, _ in values]), values, strict=True):
        seeds[label].append((int(p.run.get("seed") or 0), at))
    best = sorted(seeds, key=lambda label: np.mean([at.value for _, at in seeds[label]]), reverse=descending)
    return [Dot(label, f"seed {seed}", at) for label in best for seed, at in sorted(seeds[label])]


def _lines(axes: Axes, values: Sequence[tuple[Point, Interval]]) -> None:
    """A line for every selection through its means, a mark and an interval for every run."""
    by_label: dict[tuple[bool, str], dict[float, list[Interval]]] = defaultdict(lambda: defaultdict(list))
    for label, (p, at) in zip(_labels([p for p, _ in values]), values, strict=True):
        by_label[p.run.rule == "full", label][p.run.pct or 0.0].append(at)
    # All rows come last, so that a selection keeps its color in figures without them.
    for k, ((is_full, label), at_pct) in enumerate(sorted(by_label.items())):
        color, marker = (MUTED, "s") if is_full else look(k)
        shift = 1.025 ** (k - (len(by_label) - 1) / 2)  # so that intervals at the same percentage do not overlap
        pcts = sorted(at_pct)
        means = [np.mean([at.value for at in at_pct[pct]]) for pct in pcts]
        axes.plot([pct * shift for pct in pcts], means, color=color, linewidth=1.4)
        for pct in pcts:
            for value, low, high in at_pct[pct]:
                if low is not None and high is not None:
                    interval(axes, [pct * shift] * 2, [low, high], color)
                axes.plot([pct * shift], [value], marker, color=color, markersize=5)
        axes.plot([], [], color=color, marker=marker, markersize=5, label=label)
    ticks = sorted({p.run.pct for p, _ in values if p.run.pct})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
    axes.set_xlabel("percentage of the rows")
