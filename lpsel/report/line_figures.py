"""Quality against what it costs: FLOPs, percentage of the rows, training tokens. A line per selection."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lpsel.report.all_rows import EVEN, differences, goals, smallest_passing
from lpsel.report.comparisons import ALL_ROWS, BASELINE, tokens
from lpsel.report.drawing import INK, MUTED, Label, interval, label_lines, new_axes, reference_line, styled
from lpsel.report.looks import Look
from lpsel.report.points import Interval, Point, untrained
from lpsel.report.quality_figures import AXES, Dot, dots_figure

MOST_LINES = 8  # selections at a single percentage; more become rows of a dot plot
LOGARITHMIC = 5  # ratio of the largest to the smallest cost from which on the axis is logarithmic
POWERS = {1e3: "10³", 1e6: "10⁶", 1e9: "10⁹", 1e12: "10¹²", 1e15: "10¹⁵", 1e18: "10¹⁸", 1e21: "10²¹"}

Looks = Mapping[str, Look]
Value = tuple[Point, Interval]


@styled
def cost_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """The metric against the FLOPs of selection and training; dashed: all rows, dotted: the untrained model."""
    values = [(p, Interval(p.value, p.low, p.high)) for p in points if p.run.flops]
    if all(p.run.rule == ALL_ROWS for p, _ in values):
        return None
    figure, axes = new_axes(height=3.1)
    labels = _lines(axes, values, looks, lambda p: p.run.flops)
    _cost_axis(axes, [p.run.flops or 0.0 for p, _ in values], "FLOPs of selection and training")
    _finish(axes, points, [at for _, at in values], labels)
    return figure


def fraction_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """The metric against the percentage of the data; many selections at a single percentage become rows, best first."""
    values = [(p, Interval(p.value, p.low, p.high)) for p in points if p.run.pct is not None]
    if not values:
        return None
    win_rate = points[0].metric == "win_rate"
    return _by_pct(values, AXES[points[0].metric], looks, points, descending=win_rate)


@styled
def token_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """The metric against the tokens of training: rows of a selection may be longer or shorter than others."""
    values = [(p, Interval(p.value, p.low, p.high)) for p in points if p.run.pct is not None and tokens(p)]
    if len({tokens(p) for p, _ in values}) < 2:
        return None
    figure, axes = new_axes(height=3.1)
    labels = _lines(axes, values, looks, tokens)
    _cost_axis(axes, [tokens(p) or 0.0 for p, _ in values], "training tokens")
    _finish(axes, points, [at for _, at in values], labels)
    return figure


def difference_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """The NLL minus that of training on all rows, in the same evaluation, against the percentage of the data.

    Rows differ more than models do: NLL intervals overlap where those of the paired difference exclude 0.
    """
    values = differences(points)
    return _by_pct(values, "NLL minus that of all rows, nats\n(lower is better)", looks) if values else None


@styled
def _by_pct(
    values: Sequence[Value], label: str, looks: Looks, points: Sequence[Point] = (), descending: bool = False
) -> Figure | None:
    """Values against the percentage; without `points`, they are differences, whose reference is 0."""
    selected = [(p, at) for p, at in values if p.run.rule != ALL_ROWS]
    pcts, series = {p.run.pct for p, _ in selected}, {p.run.series for p, _ in selected}
    if len(pcts) == 1 and len(series) > MOST_LINES:
        references = [*_references(points).values()] if points else [0.0]
        title = f"{label.replace(chr(10), ' ')}, at {pcts.pop():g} %"
        return dots_figure(_ranked(selected, looks, descending), title, references)
    figure, axes = new_axes(height=3.1)
    labels = _lines(axes, values, looks, lambda p: p.run.pct)
    ticks = sorted({p.run.pct for p, _ in values if p.run.pct})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
    axes.set_xlabel("percentage of the rows")
    passing = smallest_passing(points)
    if passing is not None:
        axes.axvline(passing, color=MUTED, linewidth=0.8, linestyle=":")
        at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
        axes.annotate(f"from {passing:g} %: no worse", (passing, 1), color=MUTED, **at)
    _finish(axes, points, [at for _, at in values], labels, label)
    return figure


def _lines(axes: Axes, values: Sequence[Value], looks: Looks, x_of: Callable[[Point], float | None]) -> list[Label]:
    """A line for every selection through its means; seeds are faint dots, those of random rows also a band.

    The 95 % interval of a run is drawn where it is the only seed.
    """
    by_series: dict[str, dict[float, list[Value]]] = defaultdict(lambda: defaultdict(list))
    for p, at in values:
        by_series[p.run.series][p.run.pct or 0.0].append((p, at))
    labels = []
    for series, at_pct in sorted(by_series.items()):
        look, rule = looks[series], next(iter(at_pct.values()))[0][0].run.rule
        seeds = [[at.value for _, at in at_pct[pct]] for pct in sorted(at_pct)]
        costs = [[x_of(p) or np.nan for p, _ in at_pct[pct]] for pct in sorted(at_pct)]
        x, y = [float(np.mean(cost)) for cost in costs], [float(np.mean(of)) for of in seeds]
        if rule == BASELINE:
            low, high = [min(of) for of in seeds], [max(of) for of in seeds]
            axes.fill_between(x, low, high, color=look.color, alpha=0.25, linewidth=0)
        for cost, pct in zip(costs, sorted(at_pct), strict=True):
            (_, only), *others = at_pct[pct]
            if others:
                dots = [at.value for _, at in at_pct[pct]]
                axes.plot(cost, dots, look.marker, color=look.color, markersize=3.5, alpha=0.35, markeredgewidth=0)
            elif only.low is not None and only.high is not None:
                interval(axes, [cost[0]] * 2, [only.low, only.high], look.color, alpha=0.45)
        axes.plot(x, y, color=look.color, linewidth=1.7, linestyle=look.line, marker=look.marker, markersize=5.5,
                  label=look.label)  # fmt: skip
        if rule != ALL_ROWS:
            labels.append(Label(look.label, look.color, (x[-1], y[-1])))
    return labels


def _cost_axis(axes: Axes, costs: Sequence[float], label: str) -> None:
    """The axis of a cost, in a power of 1,000: from 0, or logarithmic where the costs differ much."""
    power = max((p for p in POWERS if p <= max(costs)), default=1.0)
    if max(costs) / min(costs) > LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
    else:
        axes.set_xlim(0, max(costs) * 1.1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / power:g}"))
    axes.set_xlabel(f"{label} (× {POWERS[power]})" if power in POWERS else label)


def _finish(
    axes: Axes, points: Sequence[Point], drawn: Sequence[Interval], labels: list[Label], label: str | None = None
) -> None:
    """Reference lines, the range of the values, and labels. Without `points`, the reference is 0."""
    ends = [end for at in drawn for end in at if end is not None]
    low, high = min(ends), max(ends)
    references = _references(points) if points else {"same as all rows": 0.0}
    low, high = min([low, *references.values()]), max([high, *references.values()])
    margin = 0.06 * (high - low) or 0.5
    if points and points[0].metric == "win_rate":
        low, high = min(low, EVEN - 10), max(high, EVEN + 10)
    axes.set_ylim(low - margin, high + margin)
    for text, value in references.items():
        reference_line(axes, value, INK if points else MUTED, "--")
        labels.append(Label(text, INK, (1.0, value), on_axis=True))
    for text, value in untrained(points).items():
        if low - (high - low) / 2 <= value <= high + (high - low) / 2:
            axes.set_ylim(min(low, value) - margin, max(high, value) + margin)
            reference_line(axes, value, MUTED, ":")
            labels.append(Label(text, MUTED, (1.0, value), on_axis=True))
        else:
            at: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
            top = value > high
            axes.annotate(f"{text}: {value:.3g} {'↑' if top else '↓'}", (1, float(top)), xytext=(0, -9 if top else 4),
                          color=MUTED, **at)  # fmt: skip
    axes.set_ylabel(label or AXES[points[0].metric])
    label_lines(axes, labels)


def _references(points: Sequence[Point]) -> dict[str, float]:
    """What values are compared with, by label: 50 %, or training on all rows."""
    if points[0].metric == "win_rate":
        return {"50 %": EVEN}
    by_target = goals(points)
    return {"all rows" if len(by_target) == 1 else f"all rows, {target}": goal for target, goal in by_target.items()}


def _ranked(values: Sequence[Value], looks: Looks, descending: bool) -> list[Dot]:
    """A row for every selection, the best by the mean of its seeds first, with a dot for every seed."""
    seeds: dict[str, list[tuple[int, str, Interval]]] = defaultdict(list)
    for p, at in values:
        look = looks[p.run.series]
        seeds[look.label].append((int(p.run.get("seed") or 0), look.color, at))
    best = sorted(seeds, key=lambda label: np.mean([at.value for *_, at in seeds[label]]), reverse=descending)
    return [
        Dot(label, f"seed {seed}", at, color)
        for label in best
        for seed, color, at in sorted(seeds[label], key=lambda entry: entry[0])
    ]
