"""Selections compared with training on all rows: differences, and the percentage from which on they are no worse."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from lpsel.report.points import Interval, Point

EVEN = 50.0  # win rate, in percent


def goals(points: Sequence[Point]) -> dict[str, float]:
    """By target, a win rate of 50 %, or the mean NLL over the seeds of training it on all rows."""
    if points and points[0].metric == "win_rate":
        return {p.run.target: EVEN for p in points}
    full = defaultdict(list)
    for p in points:
        if p.run.rule == "full":
            full[p.run.target].append(p.value)
    return {target: float(np.mean(values)) for target, values in full.items()}


def differences(points: Sequence[Point]) -> list[tuple[Point, Interval]]:
    """The NLL minus that of training the same target on all rows, with the same seed where there are several.

    Only within an evaluation; with a paired interval where that model was its baseline.
    """
    full: dict[object, list[Point]] = defaultdict(list)
    for p in points:
        if p.run.rule == "full" and p.metric == "nll":
            full[p.evaluation.folder, p.run.target].append(p)
    values = []
    for p in points:
        candidates = full.get((p.evaluation.folder, p.run.target), [])
        if not candidates or p.run.rule == "full" or p.run.pct is None:
            continue
        all_rows = next((each for each in candidates if each.run.get("seed") == p.run.get("seed")), candidates[0])
        paired = p.difference if all_rows.difference is None else None
        values.append((p, paired or Interval(p.value - all_rows.value)))
    return values


def smallest_passing(points: Sequence[Point]) -> float | None:
    """The smallest percentage at which a selection is no worse than all rows, and at all larger ones as well.

    The interval decides: a win rate whose lower end is at least 50 %, or a paired difference in NLL whose upper end is
    at most 0. Its level is 95 % for all selections together (Bonferroni), since the best of several is reported. The
    ends are means over seeds, as if seeds had all of their prompts' variation in common.
    """
    better: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    judged = _judged(points)
    wider = ndtri(1 - 0.025 / max(len({p.run.series for p, _ in judged}), 1)) / ndtri(0.975)
    for p, at in judged:
        sign, even, end = (1, EVEN, at.low) if p.metric == "win_rate" else (-1, 0.0, at.high)
        margin = -np.inf if end is None else sign * (at.value + wider * (end - at.value) - even)
        better[p.run.series][p.run.pct or 0.0].append(margin)
    passing = []
    for by_pct in better.values():
        for pct in sorted(by_pct, reverse=True):
            if np.mean(by_pct[pct]) < 0:
                break
            passing.append(pct)
    return min(passing, default=None)


def _judged(points: Sequence[Point]) -> list[tuple[Point, Interval]]:
    if points and points[0].metric == "win_rate":
        selected = [p for p in points if p.run.rule != "full" and p.run.pct is not None]
        return [(p, Interval(p.value, p.low, p.high)) for p in selected]
    return differences(points)
