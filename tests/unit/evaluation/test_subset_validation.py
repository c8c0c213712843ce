"""The rank correlation of subsets' scores with their results, and what it supports."""

import numpy as np
import pytest
from scipy import stats

from lpsel.evaluation.statistics import Estimate
from lpsel.evaluation.subset_validation import bootstrap_interval, conclusion, conclusive, rank_correlation


@pytest.fixture
def pairs():
    rng = np.random.default_rng(3)
    score = np.round(rng.normal(size=24), 1)  # with ties
    return score, score + rng.normal(size=24)


def test_the_correlation_is_scipys(pairs):
    assert rank_correlation(*pairs).value == pytest.approx(stats.spearmanr(*pairs).statistic, abs=1e-12)


def test_the_interval_is_that_of_bonett_and_wright_by_hand():
    # d = -1 1 -1 1 0 0 0 0: rho = 1 - 6 x 4 / (8 x 63) = 20 / 21, whose atanh is log(41) / 2 = 1.856786;
    # 1.959964 sqrt((1 + .907029 / 2) / 5) = 1.056751
    found = rank_correlation(np.arange(8), [1, 0, 3, 2, 4, 5, 6, 7])
    assert found == pytest.approx((20 / 21, np.tanh(0.800034), np.tanh(2.913538)), abs=1e-6)


def test_the_same_order_is_a_correlation_of_one():
    assert rank_correlation(np.arange(8), np.arange(8) ** 3) == pytest.approx((1, 1, 1))
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == Estimate(pytest.approx(0.5), None, None)


@pytest.mark.parametrize("correlation", [0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("subsets", [10, 20, 50])
def test_the_interval_covers_the_correlation(subsets, correlation):
    of_normal = 2 * np.sin(np.pi * correlation / 6)  # Pearson's, of normal values
    first, second = np.random.default_rng(subsets).normal(size=(2, 500, subsets))
    second = of_normal * first + np.sqrt(1 - of_normal**2) * second
    inside = [e.low <= correlation <= e.high for e in map(rank_correlation, first, second)]
    assert 0.91 <= np.mean(inside) <= 0.985


def test_the_bootstrap_is_scipys(pairs):
    found = bootstrap_interval(*pairs)
    # Hesterberg's percentiles of 24 subsets are those of a level of 96.5%, by the t distribution with 23 degrees.
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(24 / 23) * stats.t.ppf(0.975, 23))
    expected = stats.bootstrap(
        pairs, lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False, method="percentile",
        n_resamples=500, confidence_level=level, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found == pytest.approx((rank_correlation(*pairs).value, *expected), abs=0.05)
    assert bootstrap_interval(np.arange(6), np.ones(6)) == Estimate(None, None, None)


def test_equal_results_have_no_correlation():
    correlation = rank_correlation(np.arange(6), np.ones(6))
    assert correlation == Estimate(None, None, None)
    assert not conclusive(correlation)
    assert conclusion(correlation, 6).startswith("Not defined")


def test_unrelated_scores_are_rarely_called_conclusive():
    rng = np.random.default_rng(0)
    found = [conclusive(rank_correlation(*rng.normal(size=(2, 12)))) for i in range(1000)]
    assert np.mean(found) < 0.07


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.4, -0.1, 0.7), "0.40 (95% interval -0.10 to 0.70): too wide for a conclusion from 9 subsets, it "
         "contains 0. Raise --subsets or --seeds."),
        (Estimate(0.6, 0.3, 0.8), "0.60 (95% interval 0.30 to 0.80): subsets with lower scores lead to a lower NLL."),
        (Estimate(-0.6, -0.8, -0.3), "-0.60 (95% interval -0.80 to -0.30): subsets with lower scores lead to a "
         "higher NLL."),
    ],
)  # fmt: skip
def test_the_conclusion_says_what_the_interval_supports(estimate, text):
    assert conclusion(estimate, 9) == text
