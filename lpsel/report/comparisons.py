"""Compare selections with random rows and all rows, with confidence intervals. Pure functions of points."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from lpsel.evaluation.statistics import t_interval
from lpsel.report.points import Interval, Point, by_selection, one_value_per_seed
from lpsel.report.runs import Run, grouped, number

EVEN = 50.0  # win rate, in percent
SAME = 0.02  # relative tolerance for equal numbers of rows or tokens
BASELINE, ALL_ROWS = "random", "full"
INTERPOLATED = "interpolated"  # folder name of a point between two runs, which has no paired evaluation

Basis = Literal["seeds", "rows", "none"]
BySeed = Mapping[Any, Point]  # the points of one selection, by seed; not empty


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
    one_baseline: bool = False  # whether several seeds are compared with the same run by win rates

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
        rows, other_rows = number(run.get("training", "rows")), number(other.get("training", "rows"))
        same_rows = rows is None or other_rows is None or _same(rows, other_rows)
        return other.rule == BASELINE and other.pct == run.pct and same_rows

    return _compared_with_runs(points, is_reference)


def at_equal_tokens(points: Sequence[Point]) -> list[Comparison]:
    """Compare every selection with random rows that have equally many training tokens.

    Without a random run of the same seed with as many tokens, its results are interpolated between percentages, in the
    logarithm of the tokens. Selections with more or fewer tokens than all random runs are left out.
    """
    random = [p for p in points if p.run.rule == BASELINE and p.run.tokens]
    curves = grouped(random, lambda p: (p.run.trained_as, p.run.get("seed")))

    def reference_of(selection: BySeed) -> BySeed:
        trained_as = _first(selection).run.trained_as
        references = {
            seed: _interpolated(curves.get((trained_as, seed), []), p.run.tokens) for seed, p in selection.items()
        }
        return {seed: reference for seed, reference in references.items() if reference is not None}

    def is_reference(run: Run, other: Run) -> bool:
        same_tokens = run.tokens is not None and other.tokens is not None and _same(run.tokens, other.tokens)
        return other.rule == BASELINE and other.trained_as == run.trained_as and same_tokens

    return _compared(points, reference_of, is_reference)


def to_all_rows(points: Sequence[Point]) -> list[Comparison]:
    """Compare every selection with training the same target in the same way on all rows."""
    return _compared_with_runs(points, lambda _, other: other.rule == ALL_ROWS)


def differences(points: Sequence[Point]) -> list[Point]:
    """NLL differences from training the same target on all rows, with the same seed if available.

    Differences are only computed within an evaluation, and have a paired interval if that model was its baseline.
    """
    trained_on_all = [p for p in points if p.run.rule == ALL_ROWS and p.metric == "nll"]
    references = grouped(trained_on_all, lambda p: (p.evaluation.folder, p.run.trained_as))
    differing = []
    for p in points:
        candidates = references.get((p.evaluation.folder, p.run.trained_as), [])
        if not candidates or p.run.rule == ALL_ROWS or p.run.pct is None:
            continue
        same_seed = [other for other in candidates if other.run.get("seed") == p.run.get("seed")]
        all_rows = (same_seed or candidates)[0]
        paired = p.difference if all_rows.difference is None else None  # the baseline has no difference from itself
        differing.append(replace(p, **(paired or Interval(p.value - all_rows.value))._asdict()))
    return differing


def smallest_passing(points: Sequence[Point]) -> float | None:
    """Smallest percentage from which on a selection is no worse than training on all rows, or None.

    A selection passes if the interval of its win rate against all rows has a lower end of at least 50%, or the interval
    of its paired NLL difference an upper end of at most 0. The family-wise level is 95% (Bonferroni), since the best of
    several selections is reported. Ends are averaged over seeds, as if seeds shared all variation of their prompts.
    """
    are_win_rates = bool(points) and points[0].metric == "win_rate"
    against_all = [p for p in points if p.run.rule != ALL_ROWS and p.run.pct is not None and _against_all_rows(p)]
    selections = by_selection(against_all if are_win_rates else differences(points))
    level = 1 - 0.05 / max(len(selections), 1)

    def margin(p: Point) -> float:
        """Margin by which the interval passes; negative if it does not."""
        at = _widened(p.at, level)
        end = at.low if are_win_rates else at.high
        if end is None:
            return -np.inf
        return end - EVEN if are_win_rates else -end

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

    def reference_of(selection: BySeed) -> BySeed | None:
        run = _first(selection).run
        candidates = [reference for reference in references if is_comparable(run, _first(reference).run)]
        same_variant = [reference for reference in candidates if _first(reference).run.variant == run.variant]
        candidates = same_variant or candidates
        return candidates[0] if len(candidates) == 1 else None

    return _compared(points, reference_of, is_comparable)


def _compared(
    points: Sequence[Point],
    reference_of: Callable[[BySeed], BySeed | None],
    is_reference: Callable[[Run, Run], bool],
) -> list[Comparison]:
    """Compare every selection with its reference; intervals have a family-wise level of 95% (Bonferroni)."""
    pairs: list[tuple[BySeed, BySeed | None]] = []
    for selection in _by_selection(points, lambda rule: rule not in (BASELINE, ALL_ROWS)):
        first = _first(selection)
        if first.metric == "win_rate" and first.baseline and is_reference(first.run, first.baseline):
            pairs.append((selection, None))  # the win rate itself is the comparison
        elif reference := reference_of(selection):
            pairs.append((selection, reference))
    level = 1 - 0.05 / max(len(pairs), 1)
    return [_comparison(selection, reference, level) for selection, reference in pairs]


def _comparison(selection: BySeed, reference: BySeed | None, level: float) -> Comparison:
    """Compare over the common seeds or, with fewer than two, over rows. Without a reference, compare with 50%."""
    common = [seed for seed in selection if reference is None or seed in reference]
    points = [selection[seed] for seed in common] or [_first(selection)]
    others = [] if reference is None else [reference[seed] for seed in common] or [_first(reference)]
    values = [p.value for p in points]
    references = [p.value for p in others] or [EVEN] * len(points)
    several = len(points) > 1
    if several:
        difference = Interval(*t_interval(np.subtract(values, references).tolist(), level))
    else:
        difference = _widened(_difference_over_rows(points[0], others[0] if others else None), level)
    basis: Basis = "none" if difference.low is None else "seeds" if several else "rows"
    value, reference_value = float(np.mean(values)), float(np.mean(references))
    interpolated = any(p.run.folder.name == INTERPOLATED for p in others)
    one_baseline = several and not others and len({p.baseline.folder for p in points if p.baseline}) == 1
    return Comparison(points[0], value, reference_value, difference, basis, len(points), interpolated, one_baseline)


def _difference_over_rows(p: Point, reference: Point | None) -> Interval:
    """Difference from a reference, or from 50%, with a 95% interval over rows, paired if an evaluation provides it.

    Otherwise the values are treated as independent, which is conservative for models measured on the same rows.
    """
    if reference is None:
        return Interval(p.value - EVEN, *(None if end is None else end - EVEN for end in (p.low, p.high)))
    if p.difference is not None and p.baseline is not None and p.baseline.folder == reference.run.folder:
        return p.difference
    if p.evaluation.folder == reference.evaluation.folder and (paired := _paired_difference(p, reference)) is not None:
        return paired
    value = p.value - reference.value
    if p.low is None or p.high is None or reference.low is None or reference.high is None:
        return Interval(value)
    below = float(np.hypot(p.value - p.low, reference.high - reference.value))
    above = float(np.hypot(p.high - p.value, reference.value - reference.low))
    return Interval(value, value - below, value + above)


def _paired_difference(p: Point, reference: Point) -> Interval | None:
    """Paired difference of two models of an evaluation; None if it did not compare them."""
    models = [p.evaluated_as, reference.evaluated_as]
    for pair in p.evaluation.entries("comparisons"):
        if pair.get("models") in (models, models[::-1]) and pair.get("n"):
            sign = 1 if pair["models"] == models else -1
            ends = [number(pair.get(name)) for name in ("ci_low", "ci_high")][::sign]
            value = sign * (number(pair.get("difference")) or 0.0)
            return Interval(value or 0.0, *(None if end is None else sign * end for end in ends))
    return None


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
    ordered = sorted(curve, key=lambda p: p.run.tokens or 0.0)
    counts = [p.run.tokens or 0.0 for p in ordered]
    nearest = int(np.argmin(np.abs(np.subtract(counts, count))))
    if _same(counts[nearest], count):
        return ordered[nearest]
    if not counts[0] <= count <= counts[-1]:
        return None

    def interpolate(values: Sequence[float | None]) -> float | None:
        if None in values:
            return None
        return float(np.interp(np.log(count), np.log(counts), np.array(values, np.float64)))

    value = interpolate([p.value for p in ordered])
    assert value is not None
    low, high = interpolate([p.low for p in ordered]), interpolate([p.high for p in ordered])
    run = replace(ordered[0].run, folder=ordered[0].run.folder / INTERPOLATED)
    return replace(ordered[0], value=value, low=low, high=high, run=run, evaluated_as="")


def _first(by_seed: BySeed) -> Point:
    return next(iter(by_seed.values()))


def _same(a: float, b: float) -> bool:
    """Whether two numbers of rows or tokens are equal within the tolerance."""
    return abs(a - b) <= SAME * max(a, b)
