"""The report's figures of quality: each takes points or measures and returns a figure, or None where they do not
allow it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpsel.report.figures import QUIET, SERIES, WIDTH, legend, new_axes, style
from lpsel.report.runs import Point

MARKERS = "osD^vP"
MOST_BESIDE = 6  # rules at one share; more stand below each other
MOST_UPRIGHT = 9  # bars; the figures over more stand on their side
LABELS = {"win_rate": "win rate, %", "nll": "held-out NLL, nats per token"}


class Dot(NamedTuple):
    """A value with its interval in a row of `dots_figure`."""

    row: str
    series: str
    value: float
    low: float | None
    high: float | None


def share_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """The metric against the share, a line per rule through the means of its seeds; every run is a mark.

    Many rules at one share are rows below each other, the best on top.
    """
    points = [p for p in points if p.run.pct is not None]
    if not points:
        return None
    metric = points[0].metric
    goal = 50.0 if metric == "win_rate" else _mean([p.value for p in points if p.run.rule == "full"])
    if (share := _only_share(points)) is not None:
        chosen = [(p, (p.value, p.low, p.high)) for p in points if p.run.rule != "full"]
        dots = _ranked(chosen, descending=metric == "win_rate")
        return dots_figure(dots, f"{LABELS[metric]}, at {share:g} %", ink, goal)
    with style(ink):
        figure, axes = new_axes(height=2.7 + _names_height(points))
        _lines(axes, points, [(p.value, p.low, p.high) for p in points])
        if goal is not None:
            _across(axes, goal, "50 %" if metric == "win_rate" else "all rows")
            if (passed := smallest_passing(points)) is not None:
                axes.axvline(passed, color=QUIET, linewidth=0.8, linestyle=":")
                axes.annotate(f"{passed:g} % passes", (passed, 1), xycoords=("data", "axes fraction"),
                              xytext=(3, -10), textcoords="offset points", color=QUIET)  # fmt: skip
        axes.set_ylabel(LABELS[metric])
        legend(axes)
    return figure


def difference_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """The NLL less that of training on all rows, in the same evaluation, against the share.

    Rows differ more than models do: intervals of the NLL overlap where those of the paired difference leave out 0.
    """
    found = differences(points)
    if not found:
        return None
    if (share := _only_share([p for p, _ in found])) is not None:
        return dots_figure(_ranked(found), f"NLL less that of all rows, nats, at {share:g} %", ink, 0.0)
    with style(ink):
        figure, axes = new_axes(height=2.7 + _names_height([p for p, _ in found]))
        _lines(axes, [p for p, _ in found], [less for _, less in found])
        _across(axes, 0.0, "as all rows")
        axes.set_ylabel("NLL less that of all rows, nats")
        legend(axes)
    return figure


def differences(points: Sequence[Point]) -> list[tuple[Point, tuple[float, float | None, float | None]]]:
    """The differences of `difference_figure`: with its paired interval where training on all rows was the baseline."""
    full = {p.evaluation.folder: p for p in points if p.run.rule == "full" and p.metric == "nll"}
    made: list[tuple[Point, tuple[float, float | None, float | None]]] = []
    for p in points:
        of = full.get(p.evaluation.folder)
        if of is None or p.run.rule == "full" or p.run.pct is None:
            continue
        if of.difference is None and p.difference is not None:
            made.append((p, p.difference))
        else:
            made.append((p, (p.value - of.value, None, None)))
    return made


def smallest_passing(points: Sequence[Point]) -> float | None:
    """The smallest share whose mean over seeds, by some rule, reaches 50 % or, for NLL, that of all rows."""
    at = defaultdict(list)
    for p in points:
        if p.run.rule != "full" and p.run.pct is not None:
            at[p.run.series, p.run.pct].append(p.value)
    if not at:
        return None
    if points[0].metric == "win_rate":
        passing = [pct for (_, pct), values in at.items() if np.mean(values) >= 50]
    else:
        goal = _mean([p.value for p in points if p.run.rule == "full"])
        passing = [pct for (_, pct), values in at.items() if goal is not None and np.mean(values) <= goal]
    return min(passing, default=None)


def bucket_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """Bars per bucket, groups of one rule, scorer and share; needs two buckets."""
    points = [p for p in points if p.run.bucket and p.run.pct is not None]
    buckets = [b for b in ("low", "mid", "high") if any(p.run.bucket == b for p in points)]
    if len(buckets) < 2:
        return None
    groups = sorted({_group(p) for p in points})
    width = 0.8 / len(buckets)
    turned = 90 if len(groups) * len(buckets) > MOST_UPRIGHT else 0
    with style(ink):
        figure, axes = new_axes()
        for k, bucket in enumerate(buckets):
            for g, group in enumerate(groups):
                of = [p for p in points if _group(p) == group and p.run.bucket == bucket]
                x = g + (k - (len(buckets) - 1) / 2) * width
                if of:
                    mean = float(np.mean([p.value for p in of]))
                    axes.bar(x, mean, width * 0.92, color=SERIES[k], alpha=0.85)
                    top = max([mean, *(p.high for p in of if p.high is not None)])
                    axes.annotate(f"{mean:.3g}", (x, top), xytext=(0, 2), textcoords="offset points", ha="center",
                                  va="bottom", rotation=turned)  # fmt: skip
                for p in of:
                    if p.low is not None and p.high is not None:
                        axes.plot([x, x], [p.low, p.high], color=ink, linewidth=1)
            axes.bar([0], [0], color=SERIES[k], label=f"{bucket} bucket")
        if points[0].metric == "win_rate":
            _across(axes, 50.0, "50 %")
        axes.margins(y=0.16)
        axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g} %\n{scorer}" for rule, pct, scorer in groups])
        axes.set_ylabel(LABELS[points[0].metric])
        legend(axes)
    return figure


def scorer_target_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """The metric for every scorer and target, at the rule and share that most pairs have; needs two scorers."""
    pairs = defaultdict(set)
    for p in points:
        if p.run.scorer != "–" and p.run.pct is not None:
            pairs[_way(p)].add((p.run.scorer, p.run.target))
    if not pairs:
        return None
    way = max(pairs, key=lambda at: (len(pairs[at]), at))
    scorers, targets = sorted({s for s, _ in pairs[way]}), sorted({t for _, t in pairs[way]})
    if len(scorers) < 2:
        return None
    with style(ink):
        figure, axes = new_axes(max(WIDTH, 1.1 * len(targets) + 1), 0.45 * len(scorers) + 0.9)
        values = np.full((len(scorers), len(targets)), np.nan)
        for a, b in np.ndindex(values.shape):
            of = [
                p.value for p in points if _way(p) == way and (p.run.scorer, p.run.target) == (scorers[a], targets[b])
            ]
            if of:
                values[a, b] = np.mean(of)
                axes.text(
                    b,
                    a,
                    f"{values[a, b]:.2f}",
                    ha="center",
                    va="center",
                    color="white",
                    bbox={"facecolor": "#1f2328", "edgecolor": "none", "alpha": 0.6, "pad": 2},
                )
        axes.imshow(np.ma.masked_invalid(values), cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(targets)), targets)
        axes.set_yticks(range(len(scorers)), scorers)
        rule, bucket, pct = way
        axes.set_xlabel(f"target; {rule}{f', {bucket}' if bucket else ''}, {pct:g} %")
        axes.set_ylabel("scorer")
    return figure


def dots_figure(dots: Sequence[Dot], label: str, ink: str, line: float | None = None) -> Figure | None:
    """Values with intervals side by side, a row for every group or task and a colour for every model."""
    rows = list(dict.fromkeys(d.row for d in dots))
    series = list(dict.fromkeys(d.series for d in dots))
    if not rows:
        return None
    step = 0.8 / len(series)
    with style(ink):
        figure, axes = new_axes(height=max(0.3, 0.15 * len(series)) * len(rows) + 0.5 + 0.2 * len(series))
        for k, name in enumerate(series):
            colour, marker = look(k)
            for d in dots:
                if d.series == name:
                    y = rows.index(d.row) + (k - (len(series) - 1) / 2) * step
                    if d.low is not None and d.high is not None:
                        axes.plot([d.low, d.high], [y, y], color=colour, linewidth=1, alpha=0.7)
                    axes.plot([d.value], [y], marker, color=colour, markersize=4.5)
            axes.plot([], [], marker, color=colour, markersize=4.5, label=name)
        if line is not None:
            axes.axvline(line, color=QUIET, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(label)
        legend(axes)
    return figure


def _only_share(points: Sequence[Point]) -> float | None:
    """The share of all points but those of all rows, where it is one and the rules are many."""
    chosen = [p for p in points if p.run.rule != "full"]
    shares = {p.run.pct for p in chosen}
    return shares.pop() if len(shares) == 1 and len({p.run.series for p in chosen}) > MOST_BESIDE else None


def _ranked(
    found: Sequence[tuple[Point, tuple[float, float | None, float | None]]], descending: bool = False
) -> list[Dot]:
    """A row for every rule, the best by the mean of its seeds first, with a dot for every seed."""
    one_target = len({p.run.target for p, _ in found}) == 1
    of = defaultdict(list)
    for p, values in found:
        of[p.run.chosen if one_target else p.run.series].append((int(p.run.get("seed") or 0), values))
    best = sorted(of, key=lambda name: np.mean([value for _, (value, *_) in of[name]]), reverse=descending)
    return [Dot(name, f"seed {seed}", *values) for name in best for seed, values in sorted(of[name])]


def _lines(axes: Axes, points: Sequence[Point], values: Sequence[tuple[float, float | None, float | None]]) -> None:
    """A line for every series through the means at its shares, a mark and an interval for every run."""
    one_target = len({p.run.target for p in points}) == 1
    by_series = defaultdict(list)
    for p, of in zip(points, values, strict=True):
        by_series[p.run.chosen if one_target else p.run.series].append((p.run.rule == "full", p.run.pct or 0.0, of))
    # Training on all rows comes last: it is no line, and a rule keeps its colour in panels without it.
    ordered = sorted(by_series.items(), key=lambda item: (item[1][0][0], item[0]))
    for k, (name, of_rule) in enumerate(ordered):
        colour, marker = (QUIET, "s") if of_rule[0][0] else look(k)
        at = defaultdict(list)
        for _, share, of in of_rule:
            at[share].append(of)
        aside = 1.025 ** (k - (len(by_series) - 1) / 2)  # so that intervals at one share do not hide each other
        shares = sorted(at)
        axes.plot([s * aside for s in shares], [np.mean([of[0] for of in at[s]]) for s in shares], color=colour,
                  linewidth=1.4)  # fmt: skip
        for share in shares:
            for value, low, high in at[share]:
                if low is not None and high is not None:
                    axes.plot([share * aside] * 2, [low, high], color=colour, linewidth=1, alpha=0.7)
                axes.plot([share * aside], [value], marker, color=colour, markersize=5)
        axes.plot([], [], color=colour, marker=marker, markersize=5, label=name)
    axes.set_xscale("log")
    ticks = sorted({p.run.pct for p in points if p.run.pct})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
    axes.set_xlabel("share of the rows, %")


def _names_height(points: Sequence[Point]) -> float:
    return 0.17 * len({p.run.series for p in points})


def look(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th series: 36 that differ."""
    return SERIES[k % len(SERIES)], MARKERS[(k + k // len(SERIES)) % len(MARKERS)]


def _across(axes: Axes, value: float, word: str) -> None:
    axes.axhline(value, color=QUIET, linewidth=1, linestyle="--")
    axes.annotate(word, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                  textcoords="offset points", color=QUIET)  # fmt: skip


def _way(p: Point) -> tuple[str, str, float]:
    return p.run.rule, p.run.bucket or "", p.run.pct or 0.0


def _group(p: Point) -> tuple[str, float, str]:
    return p.run.rule, p.run.pct or 0.0, p.run.scorer


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
