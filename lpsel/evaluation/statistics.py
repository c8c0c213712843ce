"""Bootstrap intervals of means, ratios and paired differences over rows; intervals for proportions; paired tests.

Percentile bootstrap over rows: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. For a
ratio of sums, a row is drawn with its numerator and denominator.
"""

# N rows, n rows that a test uses, U distinct rows, R resamples, K statistics (models x metrics)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

RESAMPLES = 10_000
LEVEL = 0.95
RARE = 15  # wins or losses; with fewer, a bootstrap interval is too narrow
DRAWS_AT_ONCE = 1 << 20
SAME_SIZE = 1e-9  # tolerance for rounding errors: relative for sums, absolute for sizes up to 1
MEAN_MULTIPLICITY = 4  # rows are drawn one by one unless distinct rows occur at least this often on average

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and its interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


@dataclass(frozen=True, slots=True)
class Ratios:
    """K ratios of sums over rows, and their values in R resamples of the rows.

    All K ratios use the same resamples, so differences between them are paired.
    """

    value_K: Floats  # over all rows; NaN if a numerator is not finite or the denominators sum to 0
    resampled_RK: Floats
    rows_K: NDArray[np.int64]  # number of rows with a denominator above 0
    effective_K: Floats  # effective number of rows given their weights: Kish 1965, Survey Sampling, chapter 11.7

    def estimate(self, k: int) -> Estimate:
        """Return ratio k with its percentile interval."""
        return interval(self.value_K[k], self.resampled_RK[:, k], self.effective_K[k])

    def difference(self, k: int, baseline: int) -> Estimate:
        """Return ratio k minus ratio `baseline` with the percentile interval of the paired difference."""
        return interval(
            self.value_K[k] - self.value_K[baseline],
            self.resampled_RK[:, k] - self.resampled_RK[:, baseline],
            min(self.effective_K[k], self.effective_K[baseline]),
        )


def bootstrap_ratios(
    numerator_NK: ArrayLike, denominator_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Ratios:
    """Compute sum(numerator) / sum(denominator) for K columns, over all rows and over resamples of the rows.

    Args:
        numerator_NK: NaN or infinity makes its column undefined.
        denominator_NK: same shape, not negative.
        resamples: number of times to draw N rows with replacement.
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
    """Compute the means of K columns, as `bootstrap_ratios` with denominators of 1."""
    values = np.asarray(values_NK, dtype=np.float64)
    return bootstrap_ratios(values, np.ones_like(values), resamples=resamples, seed=seed)


def interval(value: float, resampled_R: Floats, rows: float) -> Estimate:
    """Return a value with the percentile interval of its finite resamples; there is no interval for a single row.

    Uses the expanded percentiles of Hesterberg 2015 (What teachers should know about the bootstrap, section 5.3), since
    resamples of n rows spread less than samples, by a factor of sqrt((n - 1) / n), and a t interval would be wider.
    `rows` is the effective number of rows (`Ratios.effective_K`).
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
    """Format a value and its interval, such as `52.0 [48.1, 55.9]`; only the value if it has no interval."""
    if value is None:
        return "-"
    text = format(value, form)
    return text if low is None or high is None else f"{text}{separator}[{low:{form}}, {high:{form}}]"


def exponential(estimate: Estimate) -> Estimate:
    """Apply exp to the value and both bounds, such as to get perplexity from mean NLL in nats; None on overflow."""
    return Estimate(*(None if x is None or x > 700 else math.exp(x) for x in estimate))


def distinct_rows(table_NK: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the distinct rows of a table, shape (U, K), and their counts; or all rows if there are few duplicates."""
    distinct_UK, times_U = np.unique(table_NK, axis=0, return_counts=True)
    if len(distinct_UK) > len(table_NK) // MEAN_MULTIPLICITY:
        return table_NK, np.ones(len(table_NK), dtype=np.int64)
    return distinct_UK, times_U


def draws(times_U: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each distinct row is drawn in each resample, in blocks of shape (resamples, U).

    Row u represents times_U[u] equal rows, so the counts are multinomial.
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
    """Compute Wilson's score interval for a proportion (Wilson 1927)."""
    z2 = ndtri((1 + LEVEL) / 2) ** 2
    proportion = successes / n
    center = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (proportion * (1 - proportion) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def score_interval(share_N: ArrayLike, weight_N: ArrayLike = 1.0) -> tuple[float, float]:
    """Compute a 95% interval for the weighted mean of values from 0 to 1: Wilson's at the effective sample size.

    The effective sample size (Franco, Little, Louis and Slud 2019, J. Surv. Stat. Methodol. 7, 334) uses the variance
    after adding half a 0 and half a 1, so that equal values do not give an empty interval. For equally weighted zeros
    and ones, it is Wilson's interval. Coverage holds for few values and near 0 and 1 (docs/results/win-rates.md).
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
    """Compute a 95% interval for the mean paired difference, within [-largest, largest] (Agresti and Min 2005).

    A normal interval after adding half a pair for each of the four outcomes: one win, one loss, two equal. Unlike the
    percentile bootstrap, its coverage holds with few pairs or few differing pairs (docs/results/win-rates.md).
    """
    difference_n = np.asarray(difference_N, dtype=np.float64)
    n = len(difference_n) + 2
    mean = float(difference_n.sum()) / n
    variance = (float((difference_n**2).sum()) + largest**2) / n - mean**2
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance / n)
    return max(-largest, mean - half), min(largest, mean + half)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """Compute the mean of several values and its confidence interval, from Student's t with n - 1 degrees of freedom.

    Equal values have no interval: rates of few prompts are often equal by chance, which does not make them certain.
    """
    mean = float(np.mean(values))
    if np.ptp(values) < SAME_SIZE:
        return mean, None, None
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2) * np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def sign_test(wins: int, losses: int) -> float:
    """Compute the two-sided p-value of the exact sign test (Dixon and Mood 1946); 1 without wins and losses."""
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flip_test(difference_N: ArrayLike, *, seed: int = 0) -> float:
    """Test whether differences are symmetric around 0, by their mean; returns the two-sided p-value (Fisher 1935).

    Uses the exact sign test if all differences have the same magnitude. Otherwise signs are flipped at random, and the
    smallest p-value is 1 / (RESAMPLES + 1). About ten times faster than scipy.stats.permutation_test.
    """
    difference_N = np.asarray(difference_N, dtype=np.float64)
    difference_n = difference_N[difference_N != 0]
    size_n = np.abs(difference_n)
    n = len(size_n)
    if n == 0 or np.ptp(size_n) < SAME_SIZE:
        return sign_test(int((difference_n > 0).sum()), int((difference_n < 0).sum()))
    observed = abs(difference_n.sum()) - SAME_SIZE * size_n.sum()
    generator = np.random.default_rng(seed)
    at_least_as_large = 0
    block = max(1, DRAWS_AT_ONCE // n)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        bits = np.frombuffer(generator.bytes(math.ceil(size * n / 8)), np.uint8)
        positive_Rn = np.unpackbits(bits, count=size * n).reshape(size, n)
        sum_R = 2 * (positive_Rn @ size_n) - size_n.sum()  # the sum of positive sizes minus that of negative ones
        at_least_as_large += int((np.abs(sum_R) >= observed).sum())
    return (at_least_as_large + 1) / (RESAMPLES + 1)


def holm(p_values: ArrayLike) -> list[float]:
    """Adjust p-values by Holm's step-down method (Holm 1979); the result has the same order.

    The i-th smallest of m p-values, counted from 0, is multiplied by m - i, and raised to the previous one if smaller.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return adjusted[np.argsort(order, kind="stable")].tolist()


def add_holm(tests: Sequence[dict[str, Any]]) -> None:
    """Add `p_value_holm` to each result: its `p_value` corrected for the number of tests, None if it has none."""
    defined = [test for test in tests if test["p_value"] is not None]
    for test in tests:
        test["p_value_holm"] = None
    for test, adjusted in zip(defined, holm([test["p_value"] for test in defined]), strict=True):
        test["p_value_holm"] = adjusted


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    defined = np.isfinite(numerator) & (denominator > 0)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=defined)
