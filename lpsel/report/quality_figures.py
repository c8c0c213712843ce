"""Figures of quality: win rate and held-out NLL against the fraction of the data, by bucket, and by scorer and target.

Every function returns None where the points do not allow its figure.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpsel.report.all_rows import EVEN, differences, goals, smallest_passing
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
from lpsel.report.points import Interval, Point
from lpsel.report.runs import number

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
    win_rate = points[0].metric == "win_rate"
    return _by_pct(values, LABELS[points[0].metric], _lines_at(points), smallest_passing(points), descending=win_rate)


@styled
def token_figure(points: Sequence[Point]) -> Figure | None:
    """The metric against the tokens of training: rows of a selection may be longer or shorter than others."""
    values = [(p, Interval(p.value, p.low, p.high)) for p in points if p.run.pct is not None and _tokens(p)]
    if len({_tokens(p) for p, _ in values}) < 2:
        return None
    figure, axes = new_axes(height=2.7 + 0.17 * len({p.run.series for p, _ in values}))
    _lines(axes, values, by_tokens=True)
    for label, value in _lines_at(points).items():
        horizontal_line(axes, value, label)
    axes.set_ylabel(LABELS[points[0].metric])
    legend(axes)
    return figure


def difference_figure(points: Sequence[Point]) -> Figure | None:
    """The NLL minus that of training on all rows, in the same evaluation, against the percentage of the data.

    Rows differ more than models do: NLL intervals overlap where those of the paired difference exclude 0.
    """
    values = differences(points)
    return _by_pct(values, "NLL minus that of all rows, nats", {"same as all rows": 0.0}) if values else None


def _lines_at(points: Sequence[Point]) -> dict[str, float]:
    """What values are compared with, by label: 50 %, or training on all rows."""
    if points[0].metric == "win_rate":
        return {"50 %": EVEN}
    by_target = goals(points)
    return {"all rows" if len(by_target) == 1 else f"all rows, {target}": goal for target, goal in by_target.items()}


@styled
def _by_pct(
    values: Sequence[tuple[Point, Interval]],
    label: str,
    lines: dict[str, float],
    passing: float | None = None,
    descending: bool = False,
) -> Figure | None:
    selected = [(p, at) for p, at in values if p.run.rule != "full"]
    pcts, series = {p.run.pct for p, _ in selected}, {p.run.series for p, _ in selected}
    if len(pcts) == 1 and len(series) > MOST_LINES:
        return dots_figure(_ranked(selected, descending), f"{label}, at {pcts.pop():g} %", [*lines.values()])
    figure, axes = new_axes(height=2.7 + 0.17 * len({p.run.series for p, _ in values}))
    _lines(axes, values)
    for text, value in lines.items():
        horizontal_line(axes, value, text)
    if passing is not None:
        axes.axvline(passing, color=MUTED, linewidth=0.8, linestyle=":")
        at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
        axes.annotate(f"from {passing:g} %: no worse", (passing, 1), color=MUTED, **at)
    axes.set_ylabel(label)
    legend(axes)
    return figure


@styled
def bucket_figure(points: Sequence[Point]) -> Figure | None:
    """Bars per bucket, in groups of one rule, percentage, scorer and target; needs two buckets."""
    at = defaultdict(list)
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
        axes.bar([0], [0], color=SERIES[k], label=f"{bucket} bucket")
        for g, group in enumerate(groups):
            x = g + (k - (len(buckets) - 1) / 2) * width
            if bars := at.get((group, bucket)):
                _bar(axes, x, width, bars, SERIES[k], rotation)
    metric = points[0].metric
    if metric == "win_rate":
        horizontal_line(axes, 50.0, "50 %")
    axes.margins(y=0.16)
    axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g} %\n{models}" for rule, pct, models in groups])
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
        color, marker = look(k)
        for value, low, high, row in ((*d.at, d.row) for d in dots if d.series == name):
            y = rows.index(row) + (k - (len(series) - 1) / 2) * step
            if low is not None and high is not None:
                interval(axes, [low, high], [y, y], color)
            axes.plot([value], [y], marker, color=color, markersize=4.5)
        axes.plot([], [], marker, color=color, markersize=4.5, label=name)
    for line in lines:
        axes.axvline(line, color=MUTED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    legend(axes)
    return figure


def look(k: int) -> tuple[str, str]:
    """Color and marker of the k-th series; 36 that differ."""
    return SERIES[k % len(SERIES)], MARKERS[(k + k // len(SERIES)) % len(MARKERS)]


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


def _tokens(point: Point) -> float | None:
    return number(point.run.get("training", "tokens"))


def _lines(axes: Axes, values: Sequence[tuple[Point, Interval]], by_tokens: bool = False) -> None:
    """A line for every selection through its means, a mark and an interval for every run."""
    by_label: dict[tuple[bool, str], dict[float, list[tuple[Point, Interval]]]] = defaultdict(lambda: defaultdict(list))
    for label, (p, at) in zip(_labels([p for p, _ in values]), values, strict=True):
        by_label[p.run.rule == "full", label][p.run.pct or 0.0].append((p, at))
    # All rows come last, so that a selection keeps its color in figures without them.
    for k, ((is_full, label), at_pct) in enumerate(sorted(by_label.items(), key=lambda item: item[0])):
        color, marker = (MUTED, "s") if is_full else look(k)
        shift = 1.025 ** (k - (len(by_label) - 1) / 2)  # so that intervals at the same percentage do not overlap
        x = {pct: pct * shift for pct in sorted(at_pct)}
        if by_tokens:
            x = {pct: float(np.mean([_tokens(p) for p, _ in at_pct[pct]])) for pct in x}
        axes.plot(
            [*x.values()], [np.mean([at.value for _, at in at_pct[pct]]) for pct in x], color=color, linewidth=1.4
        )
        for pct, position in x.items():
            for _, (value, low, high) in at_pct[pct]:
                if low is not None and high is not None:
                    interval(axes, [position] * 2, [low, high], color)
                axes.plot([position], [value], marker, color=color, markersize=5)
        axes.plot([], [], color=color, marker=marker, markersize=5, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("training tokens" if by_tokens else "percentage of the rows")
    if not by_tokens:
        ticks = sorted({p.run.pct for p, _ in values if p.run.pct})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
