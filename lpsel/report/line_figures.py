"""Line figures of quality against cost: FLOPs, percentage of the data, or training tokens; one line per selection."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lpsel.report.comparisons import ALL_ROWS, BASELINE, EVEN, differences, smallest_passing
from lpsel.report.drawing import INK, MUTED, Label, Look, interval, label_lines, new_axes, styled
from lpsel.report.figures import Dot, dots_figure
from lpsel.report.points import Point, by_selection, untrained
from lpsel.report.runs import grouped, pct_unit

MOST_LINES = 8  # selections at a single percentage; more become rows of a dot plot
LOGARITHMIC = 5  # smallest ratio of the largest to the smallest cost for a logarithmic axis
POWERS = {1e3: "10³", 1e6: "10⁶", 1e9: "10⁹", 1e12: "10¹²", 1e15: "10¹⁵", 1e18: "10¹⁸", 1e21: "10²¹"}

Looks = Mapping[str, Look]
CostOf = Callable[[Point], float | None]


class Scale(NamedTuple):
    """Vertical axis: its label, reference values, and values of untrained models."""

    label: str
    references: Mapping[str, float]
    untrained: Mapping[str, float] = {}
    is_win_rate: bool = False

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Scale":
        """Scale of a key metric; the reference is 50%, or the mean over seeds of training on all rows."""
        label = points[0].key_metric.axis_label
        if points[0].metric == "win_rate":
            return cls(label, {"50%": EVEN}, untrained(points), is_win_rate=True)
        by_model = grouped((p for p in points if p.run.rule == ALL_ROWS), lambda p: p.run.target + p.run.variant)
        references = {}
        for model, seeds in by_model.items():
            name = "all rows" if len(by_model) == 1 else f"all rows, {model}"
            references[name] = float(np.mean([p.value for p in seeds]))
        return cls(label, references, untrained(points))


DIFFERENCE = Scale("NLL minus that of all rows, nats\n(lower is better)", {"same as all rows": 0.0})


def cost_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """Metric against the FLOPs of selection and training. Dashed: all rows; dotted: the untrained model."""
    drawn = [p for p in points if p.run.flops]
    if all(p.run.rule == ALL_ROWS for p in drawn):
        return None
    return _by_cost(drawn, Scale.of(points), looks, lambda p: p.run.flops, "FLOPs of selection and training")


def token_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """Metric against training tokens, since selected rows may be longer or shorter than others."""
    drawn = [p for p in points if p.run.pct is not None and p.run.tokens]
    if len({p.run.tokens for p in drawn}) < 2:
        return None
    return _by_cost(drawn, Scale.of(points), looks, lambda p: p.run.tokens, "training tokens")


def fraction_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """Metric against the percentage of the data; many selections at one percentage become rows, best first."""
    drawn = [p for p in points if p.run.pct is not None]
    return _by_pct(drawn, Scale.of(points), looks, smallest_passing(points)) if drawn else None


def difference_figure(points: Sequence[Point], looks: Looks) -> Figure | None:
    """NLL difference from training on all rows in the same evaluation, against the percentage of the data.

    Rows vary more than models: NLL intervals can overlap even if the interval of the paired difference excludes 0.
    """
    drawn = differences(points)
    return _by_pct(drawn, DIFFERENCE, looks) if drawn else None


@styled
def _by_pct(points: Sequence[Point], scale: Scale, looks: Looks, passing: float | None = None) -> Figure | None:
    selected = [p for p in points if p.run.rule != ALL_ROWS]
    pcts = {p.run.pct for p in selected}
    if len(pcts) == 1 and len({p.run.series for p in selected}) > MOST_LINES:
        title = f"{scale.label.replace(chr(10), ' ')}, at {pcts.pop():g}%"
        return dots_figure(_ranked(selected, looks, scale.is_win_rate), title, [*scale.references.values()])
    figure, axes = new_axes(height=3.1)
    labels = _lines(axes, points, looks, lambda p: p.run.pct)
    ticks = sorted({p.run.pct for p in points if p.run.pct})
    axes.set(
        xscale="log",
        xlim=(min(ticks) / 1.3, max(ticks) * 1.3),
        xlabel=f"percentage of the {pct_unit(p.run for p in points)}",
    )
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    if passing is not None:
        axes.axvline(passing, color=MUTED, linewidth=0.8, linestyle=":")
        at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -10), "textcoords": "offset points"}
        axes.annotate(f"from {passing:g}%: no worse", (passing, 1), color=MUTED, **at)
    _finish(axes, points, labels, scale)
    return figure


@styled
def _by_cost(points: Sequence[Point], scale: Scale, looks: Looks, cost_of: CostOf, label: str) -> Figure:
    """Plot values against a cost in powers of 1,000, from 0, or on a logarithmic axis if costs differ greatly."""
    figure, axes = new_axes(height=3.1)
    labels = _lines(axes, points, looks, cost_of)
    costs = [cost_of(p) or 0.0 for p in points]
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
    _finish(axes, points, labels, scale)
    return figure


def _lines(axes: Axes, points: Sequence[Point], looks: Looks, x_of: CostOf) -> list[Label]:
    """Draw a line through the means of every selection; seeds are faint dots, and random rows also get a band.

    The 95% interval of a run is drawn if it is the only seed.
    """
    labels = []
    for series, by_pct in by_selection(points).items():
        look, rule = looks[series], next(iter(by_pct.values()))[0].run.rule
        # By percentage and seed.
        costs = [[x_of(p) or np.nan for p in seeds] for seeds in by_pct.values()]
        values = [[p.value for p in seeds] for seeds in by_pct.values()]
        x, y = [float(np.mean(of_seeds)) for of_seeds in costs], [float(np.mean(of_seeds)) for of_seeds in values]
        if rule == BASELINE:
            axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=look.color, alpha=0.25, linewidth=0)
        for seeds, seed_costs, seed_values in zip(by_pct.values(), costs, values, strict=True):
            if len(seeds) > 1:
                axes.plot(seed_costs, seed_values, look.marker, color=look.color, markersize=3.5, alpha=0.35,
                          markeredgewidth=0)  # fmt: skip
            else:
                interval(axes, seeds[0].at, seed_costs[0], look.color, alpha=0.45)
        axes.plot(x, y, color=look.color, linewidth=1.7, linestyle=look.line, marker=look.marker, markersize=5.5,
                  label=look.label)  # fmt: skip
        if rule != ALL_ROWS:
            labels.append(Label(look.label, look.color, (x[-1], y[-1])))
    return labels


def _finish(axes: Axes, points: Sequence[Point], labels: list[Label], scale: Scale) -> None:
    """Add reference lines, axis limits and labels; an untrained model far from other values is only annotated."""
    ends = [end for p in points for end in p.at if end is not None] + [*scale.references.values()]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.5
    if scale.is_win_rate:
        low, high = min(low, EVEN - 10), max(high, EVEN + 10)
    axes.set_ylim(low - margin, high + margin)
    for text, value in scale.references.items():
        axes.axhline(value, color=INK, linewidth=1, linestyle="--", zorder=1)
        labels.append(Label(text, INK, (1.0, value), on_axis=True))
    for text, value in scale.untrained.items():
        if low - (high - low) / 2 <= value <= high + (high - low) / 2:
            axes.set_ylim(min(low, value) - margin, max(high, value) + margin)
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=":", zorder=1)
            labels.append(Label(text, MUTED, (1.0, value), on_axis=True))
        else:
            at: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
            top = value > high
            axes.annotate(f"{text}: {value:.3g} {'↑' if top else '↓'}", (1, float(top)), xytext=(0, -9 if top else 4),
                          color=MUTED, **at)  # fmt: skip
    axes.set_ylabel(scale.label)
    label_lines(axes, labels)


def _ranked(points: Sequence[Point], looks: Looks, descending: bool) -> list[Dot]:
    """One row per selection with a dot per seed, sorted by the mean over seeds, best first."""
    seeds: dict[str, list[Dot]] = defaultdict(list)
    for p in sorted(points, key=lambda p: int(p.run.get("seed") or 0)):
        look = looks[p.run.series]
        seeds[look.label].append(Dot(look.label, f"seed {int(p.run.get('seed') or 0)}", p.at, look.color))
    best = sorted(seeds.values(), key=lambda dots: np.mean([dot.at.value for dot in dots]), reverse=descending)
    return [dot for dots in best for dot in dots]
