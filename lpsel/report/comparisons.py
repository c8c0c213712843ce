"""Compare selections with random rows and all rows, with confidence intervals. Pure functions of points."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri
from scipy.stats import t

from lpsel.report.points import Interval, Point, by_selection, one_value_per_seed
from lpsel.report.runs import Run, grouped, number

EVEN = 50.0  # win rate, in percent
SAME = 0.02  # relative tolerance for equal numbers of rows or tokens
BASELINE, ALL_ROWS = "random", "full"
INTERPOLATED = "interpolated"  # folder name of a point between two runs, which has no paired evaluation

Basis = Literal["seeds", "rows", "none"]
BySeed = Mapping[Any, Point]


@dataclass(frozen=True)
class Comparison:
    """A selection minus its reference, at one percentage of the rows."""

    point: Point  # a point of one seed of the selection
    value: float  # mean over the seeds compared
    reference: float  # mean of the reference; 50% for a win rate against random rows
    difference: Interval  # difference with its interval at the corrected level; ends are None without an interval
    basis: Basis  # source of variation: seeds (including rows), rows or prompts of one seed, or none
    seeds: int  # number of seeds compared
    interpolated: bool  # whether a reference is interpolated between runs

    @property
    def selection(self) -> tuple[str, float | None]:
        """Series and percentage."""
        return self.point.run.series, self.point.run.pct

    @property
    def gain(self) -> float:
        """The difference, positive if the selection is better."""
        return self.difference.value * (1 if self.point.key_metric.better == "higher" else -1)

    @property
    def verdict(self) -> int | None:
        """1 if the selection is better, -1 if it is worse, 0 if the interval includes 0, None without an interval."""
        _, low, high = self.difference
        if low is None or high is None:
            return None
        return 0 if low <= 0 <= high else int(np.sign(self.gain))


def at_equal_rows(points: Sequence[Point]) -> list[Comparison]:
    """Compare every selection with equally many random rows, for the same target, training and seeds."""

    def is_reference(run: Run, other: Run) -> bool:
        a, b = (number(each.get("training", "rows")) for each in (run, other))
        as_many = a is None or b is None or _same(a, b)  # if known
        return other.rule == BASELINE and other.pct == run.pct and as_many

    return _compared_with_runs(points, is_reference)


def at_equal_tokens(points: Sequence[Point]) -> list[Comparison]:
    """Compare every selection with random rows that have equally many training tokens.

    Without a random run of the same seed with as many tokens, its results are interpolated between percentages, in the
    logarithm of the tokens. Selections with more or fewer tokens than all random runs are left out.
    """
    random = [p for p in points if p.run.rule == BASELINE and tokens(p)]
    curves = grouped(random, lambda p: (p.run.trained_as, p.run.get("seed")))

    def reference_of(first: Point, ours: BySeed) -> BySeed:
        return {
            seed: point
            for seed, p in ours.items()
            if (point := _interpolated(curves.get((first.run.trained_as, seed), []), tokens(p))) is not None
        }

    def is_reference(run: Run, other: Run) -> bool:
        a, b = (number(each.get("training", "tokens")) for each in (run, other))
        as_many = a is not None and b is not None and _same(a, b)
        return other.rule == BASELINE and other.trained_as == run.trained_as and as_many

    return _compared(points, reference_of, is_reference)


def to_all_rows(points: Sequence[Point]) -> list[Comparison]:
    """Compare every selection with training the same target in the same way on all rows."""
    return _compared_with_runs(points, lambda _, other: other.rule == ALL_ROWS)


def differences(points: Sequence[Point]) -> list[Point]:
    """NLL differences from training the same target on all rows, with the same seed if available.

    Differences are only computed within an evaluation, and have a paired interval if that model was its baseline.
    """
    everything = [p for p in points if p.run.rule == ALL_ROWS and p.metric == "nll"]
    full = grouped(everything, lambda p: (p.evaluation.folder, p.run.trained_as))
    differing = []
    for p in points:
        candidates = full.get((p.evaluation.folder, p.run.trained_as), [])
        if not candidates or p.run.rule == ALL_ROWS or p.run.pct is None:
            continue
        all_rows = next((each for each in candidates if each.run.get("seed") == p.run.get("seed")), candidates[0])
        paired = p.difference if all_rows.difference is None else None
        differing.append(replace(p, **(paired or Interval(p.value - all_rows.value))._asdict()))
    return differing


def smallest_passing(points: Sequence[Point]) -> float | None:
    """Smallest percentage from which on a selection is no worse than training on all rows, or None.

    A selection passes if the interval of its win rate against all rows has a lower end of at least 50%, or the interval
    of its paired NLL difference an upper end of at most 0. The family-wise level is 95% (Bonferroni), since the best of
    several selections is reported. Ends are averaged over seeds, as if seeds shared all variation of their prompts.
    """
    win_rates = bool(points) and points[0].metric == "win_rate"
    to_all = [p for p in points if p.run.rule != ALL_ROWS and p.run.pct is not None and _against_all_rows(p)]
    selections = by_selection(to_all if win_rates else differences(points))
    level = 1 - 0.05 / max(len(selections), 1)

    def margin(p: Point) -> float:
        """Margin by which the interval passes; negative if it does not."""
        _, low, high = _widened(p.at, level)
        end = low if win_rates else high
        return -np.inf if end is None else end - EVEN if win_rates else -end

    passing = []
    for by_pct in selections.values():
        for pct in sorted(by_pct, reverse=True):
            if np.mean([margin(p) for p in by_pct[pct]]) < 0:
                break
            passing.append(pct)
    return min(passing, default=None)


def _against_all_rows(p: Point) -> bool:
    """Whether a win rate is against the same target, trained in the same way on all rows."""
    return p.baseline is not None and (p.baseline.rule, p.baseline.trained_as) == (ALL_ROWS, p.run.trained_as)


def tokens(point: Point) -> float | None:
    """Number of training tokens."""
    return number(point.run.get("training", "tokens"))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its confidence interval, from Student's t with n - 1 degrees of freedom."""
    mean = float(np.mean(values))
    half = float(t.ppf(0.5 + level / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def _by_selection(points: Sequence[Point], accepts: Callable[[str], bool]) -> list[BySeed]:
    """Group the points of every series and percentage by seed."""
    seeds: dict[tuple[float, str], dict[Any, Point]] = defaultdict(dict)
    for p in one_value_per_seed(points):
        if accepts(p.run.rule) and p.run.pct is not None:
            seeds[p.run.pct, p.run.series].setdefault(p.run.get("seed"), p)
    return [*seeds.values()]


def _compared_with_runs(points: Sequence[Point], is_reference: Callable[[Run, Run], bool]) -> list[Comparison]:
    """Compare every selection with the only reference for its target that is trained in the same way."""
    references = _by_selection(points, lambda rule: rule in (BASELINE, ALL_ROWS))

    def is_comparable(run: Run, other: Run) -> bool:
        return run.trained_as == other.trained_as and is_reference(run, other)

    def reference_of(first: Point, _: BySeed) -> BySeed | None:
        candidates = [seeds for seeds in references if is_comparable(first.run, next(iter(seeds.values())).run)]
        same = [seeds for seeds in candidates if next(iter(seeds.values())).run.variant == first.run.variant]
        return next(iter(same or candidates), None) if len(same or candidates) == 1 else None

    return _compared(points, reference_of, is_comparable)


def _compared(
    points: Sequence[Point],
    reference_of: Callable[[Point, BySeed], BySeed | None],
    is_reference: Callable[[Run, Run], bool],
) -> list[Comparison]:
    """Compare every selection with its reference; intervals have a family-wise level of 95% (Bonferroni)."""
    pairs: list[tuple[BySeed, BySeed | None]] = []
    for ours in _by_selection(points, lambda rule: rule not in (BASELINE, ALL_ROWS)):
        first = next(iter(ours.values()))
        if first.metric == "win_rate" and first.baseline and is_reference(first.run, first.baseline):
            pairs.append((ours, None))  # the win rate itself is the comparison
        elif theirs := reference_of(first, ours):
            pairs.append((ours, theirs))
    level = 1 - 0.05 / max(len(pairs), 1)
    return [_comparison(ours, theirs, level) for ours, theirs in pairs]


def _comparison(ours: BySeed, theirs: BySeed | None, level: float) -> Comparison:
    first = next(iter(ours.values()))
    common = list(ours) if theirs is None else [seed for seed in ours if seed in theirs]
    if len(common) > 1:
        mine = [ours[seed].value for seed in common]
        reference = [EVEN if theirs is None else theirs[seed].value for seed in common]
        at = Interval(*t_interval(np.subtract(mine, reference).tolist(), level))
        between = theirs is not None and any(_is_interpolated(theirs[seed]) for seed in common)
        return Comparison(first, float(np.mean(mine)), float(np.mean(reference)), at, "seeds", len(common), between)
    p = ours[common[0]] if common else first
    q = None if theirs is None else theirs[common[0]] if common else next(iter(theirs.values()))
    at = _widened(_of_rows(p, q), level)
    basis: Basis = "none" if at.low is None else "rows"
    return Comparison(p, p.value, EVEN if q is None else q.value, at, basis, 1, q is not None and _is_interpolated(q))


def _of_rows(p: Point, q: Point | None) -> Interval:
    """Difference of two points with a 95% interval over rows, paired if an evaluation provides it.

    Otherwise the values are treated as independent, which is conservative for models measured on the same rows.
    """
    if q is None:
        return Interval(p.value - EVEN, *(None if end is None else end - EVEN for end in (p.low, p.high)))
    if p.difference is not None and p.baseline is not None and p.baseline.folder == q.run.folder:
        return p.difference
    for sign, a, b in ((1, p, q), (-1, q, p)):
        for pair in p.evaluation.entries("comparisons") if p.evaluation.folder == q.evaluation.folder else []:
            if pair.get("models") == [a.evaluated_as, b.evaluated_as] and pair.get("n"):
                at = [number(pair.get(name)) for name in ("difference", "ci_low", "ci_high")]
                value, *ends = (None if end is None else sign * end for end in at)
                return Interval(value or 0.0, *(ends if sign == 1 else reversed(ends)))
    value = p.value - q.value
    if p.low is None or p.high is None or q.low is None or q.high is None:
        return Interval(value)
    below, above = np.hypot(p.value - p.low, q.high - q.value), np.hypot(p.high - p.value, q.value - q.low)
    return Interval(value, value - float(below), value + float(above))


def _widened(at: Interval, level: float) -> Interval:
    """Convert a 95% interval to another level, assuming a normal distribution."""
    if at.low is None or at.high is None:
        return Interval(at.value)
    wider = float(ndtri(0.5 + level / 2) / ndtri(0.975))
    return Interval(at.value, *(at.value + wider * (end - at.value) for end in (at.low, at.high)))


def _interpolated(curve: Sequence[Point], count: float | None) -> Point | None:
    """The random point with this number of tokens, interpolated if necessary; None outside the range of the curve."""
    if not curve or not count:
        return None
    nearest = min(curve, key=lambda p: abs((tokens(p) or 0.0) - count))
    if _same(tokens(nearest) or 0.0, count):
        return nearest
    ordered = sorted(curve, key=lambda p: tokens(p) or 0.0)
    x = [tokens(p) or 0.0 for p in ordered]
    if not x[0] <= count <= x[-1]:
        return None

    def at(values: list[float | None]) -> float | None:
        return None if None in values else float(np.interp(np.log(count), np.log(x), np.array(values, np.float64)))

    value, low, high = (at([getattr(p, name) for p in ordered]) for name in ("value", "low", "high"))
    assert value is not None
    run = replace(ordered[0].run, folder=ordered[0].run.folder / INTERPOLATED)
    return replace(ordered[0], value=value, low=low, high=high, run=run, evaluated_as="")


def _is_interpolated(point: Point) -> bool:
    return point.run.folder.name == INTERPOLATED


def _same(a: float, b: float) -> bool:
    """Whether two numbers of rows or tokens are equal within the tolerance."""
    return abs(a - b) <= SAME * max(a, b)
