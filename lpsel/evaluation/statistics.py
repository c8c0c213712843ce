"""Bootstrap intervals of ratios and means over rows, and of their paired differences. Pure numpy, no I/O.

The percentile bootstrap over rows: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; of a
ratio of sums, rows are resampled whole, so that a row keeps its own numerator and denominator.
"""

# N rows, U distinct rows, R resamples, K statistics (models x metrics)

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95
DRAWS_AT_ONCE = 1 << 20
EQUAL = 4  # rows that are equal on average: below it, drawing rows one by one is faster

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure and the ends of its interval, None where the data do not define them."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


@dataclass(frozen=True, slots=True)
class Ratios:
    """K ratios of sums over the same rows, and what they become under the same R resamples of the rows.

    Attributes:
        value_K: of the rows as they are; NaN where a numerator is not finite or the denominator sums to 0.
        resampled_RK: of every resample, the same rows for all K, so that differences between columns are paired.
        rows_K: rows with a denominator above 0.
    """

    value_K: Floats
    resampled_RK: Floats
    rows_K: NDArray[np.int64]

    def estimate(self, k: int) -> Estimate:
        """Ratio k with its percentile interval."""
        return interval(self.value_K[k], self.resampled_RK[:, k], int(self.rows_K[k]))

    def difference(self, k: int, baseline: int) -> Estimate:
        """Ratio k minus ratio `baseline`, with the percentile interval of the paired difference."""
        return interval(
            self.value_K[k] - self.value_K[baseline],
            self.resampled_RK[:, k] - self.resampled_RK[:, baseline],
            int(min(self.rows_K[k], self.rows_K[baseline])),
        )


def bootstrap_ratios(
    numerator_NK: ArrayLike, denominator_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Ratios:
    """sum(numerator) / sum(denominator) over rows, for K columns at once and for `resamples` resamples of the rows.

    A denominator of ones gives means. Needs memory for resamples x K numbers and for a million draws (or one resample,
    where there are more rows than that).

    Args:
        numerator_NK: a row for every row of data; NaN makes its column undefined.
        denominator_NK: same shape, not negative.
        resamples: how often rows are drawn with replacement.
        seed: the same seed draws the same rows.

    Raises:
        ValueError: shapes differ, or there are no rows.
    """
    numerator = np.asarray(numerator_NK, dtype=np.float64)
    denominator = np.asarray(denominator_NK, dtype=np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 2 or len(numerator) == 0:
        raise ValueError(
            f"numerator {numerator.shape} and denominator {denominator.shape}: need the same shape (rows, columns) "
            "with at least one row."
        )
    columns = numerator.shape[1]
    both, times = distinct_rows(np.hstack([numerator, denominator]))
    resampled = np.empty((resamples, columns))
    done = 0
    for counts in draws(times, resamples, seed):
        sums = counts @ both
        resampled[done : done + len(counts)] = _ratio(sums[:, :columns], sums[:, columns:])
        done += len(counts)
    value = _ratio(numerator.sum(axis=0), denominator.sum(axis=0))
    return Ratios(value, resampled, (denominator > 0).sum(axis=0))


def bootstrap_means(values_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Ratios:
    """The means of K columns over rows; `bootstrap_ratios` with a denominator of ones."""
    values = np.asarray(values_NK, dtype=np.float64)
    return bootstrap_ratios(values, np.ones_like(values), resamples=resamples, seed=seed)


def interval(value: float, resampled_R: Floats, rows: int, level: float = LEVEL) -> Estimate:
    """A value with the percentile interval of its resamples.

    Resamples in which the statistic is undefined (no row with a denominator was drawn) are left out. One row tells
    nothing of the spread between rows: there is no interval below two.
    """
    if not math.isfinite(value):
        return UNDEFINED
    defined = resampled_R[np.isfinite(resampled_R)]
    if rows < 2 or len(defined) == 0:
        return Estimate(float(value), None, None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


def exponential(estimate: Estimate) -> Estimate:
    """exp of the value and of both ends: perplexity from a mean NLL in nats. None where it overflows."""
    return Estimate(*(None if x is None or x > 700 else math.exp(x) for x in estimate))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where either is not finite or the denominator is 0."""
    defined = np.isfinite(numerator) & (denominator > 0)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=defined)


def distinct_rows(table_NK: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct rows of a table, shape (U, K), and how often each is in it; the rows themselves where few are equal.

    Plain verdicts are three distinct rows, however many there are.
    """
    distinct_UK, times_U = np.unique(table_NK, axis=0, return_counts=True)
    if len(distinct_UK) > len(table_NK) // EQUAL:
        return table_NK, np.ones(len(table_NK), dtype=np.int64)
    return distinct_UK, times_U


def draws(times_U: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn in each resample, in blocks of shape (resamples of the block, U).

    Row u stands for times_U[u] equal rows, and a resample has as many rows as these are: what is drawn of U distinct
    rows is multinomial.
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
