"""Bootstrap intervals of ratios and means over rows and of their paired differences; tests and intervals of counts.

Percentile bootstrap over rows: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. For a
ratio of sums, a row is drawn with its numerator and denominator.
"""

# N rows, U distinct rows, R resamples, K statistics (models x metrics)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

RESAMPLES = 10_000
LEVEL = 0.95
RARE = 15  # wins or losses, of which a bootstrap interval is too narrow
DRAWS_AT_ONCE = 1 << 20
SAME_SIZE = 1e-9  # relative rounding error of sums, and of sizes up to 1
MEAN_MULTIPLICITY = 4  # rows are drawn one by one unless every distinct row occurs this often on average

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and the ends of its interval; None where the data do not define them."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


@dataclass(frozen=True, slots=True)
class Ratios:
    """K ratios of sums over the same rows, and their values under the same R resamples of the rows.

    All K use the same rows of a resample, so differences between columns are paired.
    """

    value_K: Floats  # over all rows; NaN if a numerator is not finite or the denominators sum to 0
    resampled_RK: Floats
    rows_K: NDArray[np.int64]  # number of rows with a denominator above 0
    effective_K: Floats  # rows as heavy as each other that would vary as much: Kish 1965, Survey Sampling, chapter 11.7

    def estimate(self, k: int) -> Estimate:
        """Ratio k with its percentile interval."""
        return interval(self.value_K[k], self.resampled_RK[:, k], self.effective_K[k])

    def difference(self, k: int, baseline: int) -> Estimate:
        """Ratio k minus ratio `baseline`, with the percentile interval of the paired difference."""
        return interval(
            self.value_K[k] - self.value_K[baseline],
            self.resampled_RK[:, k] - self.resampled_RK[:, baseline],
            min(self.effective_K[k], self.effective_K[baseline]),
        )


def bootstrap_ratios(
    numerator_NK: ArrayLike, denominator_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Ratios:
    """sum(numerator) / sum(denominator) over rows, for K columns and for `resamples` resamples of the rows.

    Args:
        numerator_NK: NaN or infinity makes its column undefined.
        denominator_NK: same shape, not negative.
        resamples: number of times N rows are drawn with replacement.
        seed: the same seed draws the same rows.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    numerator = np.asarray(numerator_NK, dtype=np.float64)
    numerator = np.where(np.isfinite(numerator), numerator, np.nan)
    denominator = np.asarray(denominator_NK, dtype=np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 2 or len(numerator) == 0:
        shapes = f"{numerator.shape} and {denominator.shape}"
        raise ValueError(f"{shapes}: expected the same shape (rows, columns) with at least one row")
    columns = numerator.shape[1]
    both, times = distinct_rows(np.hstack([numerator, denominator]))
    sums = np.concatenate([counts @ both for counts in draws(times, resamples, seed)])
    return Ratios(
        value_K=_ratio(numerator.sum(axis=0), denominator.sum(axis=0)),
        resampled_RK=_ratio(sums[:, :columns], sums[:, columns:]),
        rows_K=(denominator > 0).sum(axis=0),
        effective_K=_ratio(denominator.sum(axis=0) ** 2, (denominator**2).sum(axis=0)),
    )


def bootstrap_means(values_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Ratios:
    """The means of K columns over rows; `bootstrap_ratios` with denominators of 1."""
    values = np.asarray(values_NK, dtype=np.float64)
    return bootstrap_ratios(values, np.ones_like(values), resamples=resamples, seed=seed)


def interval(value: float, resampled_R: Floats, rows: float) -> Estimate:
    """A value with the percentile interval of its defined resamples; no interval of a single row.

    The percentiles are those of Hesterberg 2015 (What teachers should know about the bootstrap, section 5.3): resamples
    of few rows spread less than samples do, by sqrt((n - 1) / n), and a t interval would be wider. Rows that differ in
    weight count as fewer (`Ratios.effective_K`).
    """
    if not math.isfinite(value):
        return UNDEFINED
    defined = resampled_R[np.isfinite(resampled_R)]
    if not rows > 1 or len(defined) == 0:
        return Estimate(float(value), None, None)
    tail = float(ndtr(-math.sqrt(rows / (rows - 1)) * stdtrit(rows - 1, (1 + LEVEL) / 2)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def with_interval(
    value: float | None, low: float | None, high: float | None, form: str = ".1f", separator: str = " "
) -> str:
    """A value and its interval as text, such as `52.0 [48.1, 55.9]`; only the value where there is no interval."""
    if value is None:
        return "-"
    text = format(value, form)
    return text if low is None or high is None else f"{text}{separator}[{low:{form}}, {high:{form}}]"


def exponential(estimate: Estimate) -> Estimate:
    """exp of the value and of both ends: perplexity from a mean NLL in nats. None where it overflows."""
    return Estimate(*(None if x is None or x > 700 else math.exp(x) for x in estimate))


def distinct_rows(table_NK: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct rows of a table, shape (U, K), and how often each occurs; all rows if few of them are equal."""
    distinct_UK, times_U = np.unique(table_NK, axis=0, return_counts=True)
    if len(distinct_UK) > len(table_NK) // MEAN_MULTIPLICITY:
        return table_NK, np.ones(len(table_NK), dtype=np.int64)
    return distinct_UK, times_U


def draws(times_U: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn in each resample, in blocks of shape (resamples of the block, U).

    Row u represents times_U[u] equal rows, so the counts of U distinct rows are multinomial.
    """
    generator = np.random.default_rng(seed)
    rows, distinct = int(times_U.sum()), len(times_U)
    block = max(1, DRAWS_AT_ONCE // distinct)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if distinct < rows:
            yield generator.multinomial(rows, times_U / rows, size).astype(np.float64)
            continue
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    z2 = ndtri((1 + LEVEL) / 2) ** 2
    proportion = successes / n
    center = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (proportion * (1 - proportion) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def score_interval(share_N: ArrayLike, weight_N: ArrayLike = 1.0) -> tuple[float, float]:
    """Interval of the weighted mean of values from 0 to 1: Wilson's of as many zeros and ones as would vary as much.

    Their number is the effective sample size (Franco, Little, Louis and Slud 2019, J. Surv. Stat. Methodol. 7, 334),
    here from the variance with half a 0 and half a 1 more, so that equal values leave room. Of zeros and ones of equal
    weight it is Wilson's interval. It covers with few values, and near 0 and 1 (docs/results/win-rates.md).
    """
    share_n = np.asarray(share_N, dtype=np.float64)
    weight_n = np.broadcast_to(np.asarray(weight_N, dtype=np.float64), share_n.shape)
    total = weight_n.sum()
    n, rate = total**2 / (weight_n**2).sum(), (weight_n @ share_n) / total  # n: Kish 1965, as in `Ratios`
    mean = (n * rate + 0.5) / (n + 1)
    variance = (n * (weight_n @ share_n**2) / total + 0.5) / (n + 1) - mean**2
    effective = n * mean * (1 - mean) / variance
    return wilson(rate * effective, effective)


def paired_interval(difference_N: ArrayLike, largest: float) -> tuple[float, float]:
    """Interval of the mean of paired differences of proportions, from -largest to largest (Agresti and Min 2005).

    The normal one, with half a pair more of each outcome: one won, one lost, and two equal. Unlike a percentile
    bootstrap, it covers with few pairs and with few that differ (docs/results/win-rates.md).
    """
    difference_n = np.asarray(difference_N, dtype=np.float64)
    n = len(difference_n) + 2
    mean = float(difference_n.sum()) / n
    variance = (float((difference_n**2).sum()) + largest**2) / n - mean**2
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance / n)
    return max(-largest, mean - half), min(largest, mean + half)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of wins against losses under chance 1/2; 1 without any (Dixon and Mood 1946)."""
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flip_test(difference_N: ArrayLike, *, draws: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that the differences are symmetric around 0, by their mean (Fisher 1935).

    The exact sign test where all differences are equally large, and random signs elsewhere: the smallest p-value is
    then 1 / (draws + 1). About ten times faster than scipy.stats.permutation_test.
    """
    difference_n = np.asarray(difference_N, dtype=np.float64)
    size_n = np.abs(difference_n := difference_n[difference_n != 0])
    if len(size_n) == 0 or np.ptp(size_n) < SAME_SIZE:
        return sign_test(int((difference_n > 0).sum()), int((difference_n < 0).sum()))
    least = abs(difference_n.sum()) - SAME_SIZE * size_n.sum()
    generator, as_large = np.random.default_rng(seed), 0
    block = max(1, DRAWS_AT_ONCE // len(size_n))
    for start in range(0, draws, block):
        shape = min(block, draws - start), len(size_n)
        bits = np.frombuffer(generator.bytes(-(-shape[0] * shape[1] // 8)), np.uint8)
        positive = np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)
        as_large += int((np.abs(2 * (positive @ size_n) - size_n.sum()) >= least).sum())
    return (as_large + 1) / (draws + 1)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's step-down adjustment of several p-values, in their order (Holm 1979).

    The i-th smallest of m, counted from 0, is multiplied by m - i, and is at least as large as the one before.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return adjusted[np.argsort(order, kind="stable")].tolist()


def add_holm(tests: Sequence[dict[str, Any]]) -> None:
    """Add `p_value_holm` to several results: their `p_value`, corrected for the number of tests; None without one."""
    adjusted = iter(holm([test["p_value"] for test in tests if test["p_value"] is not None]))
    for test in tests:
        test["p_value_holm"] = None if test["p_value"] is None else next(adjusted)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    defined = np.isfinite(numerator) & (denominator > 0)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=defined)
