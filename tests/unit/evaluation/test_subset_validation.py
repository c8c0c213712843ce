"""The rank correlation of subsets' scores with their results, and what it supports."""

import numpy as np
import pytest
from scipy import stats

from lpsel.evaluation.statistics import Estimate
from lpsel.evaluation.subset_validation import conclusion, conclusive, rank_correlation


@pytest.fixture
def pairs():
    rng = np.random.default_rng(3)
    score = np.round(rng.normal(size=24), 1)  # with ties
    return score, score + rng.normal(size=24)


def test_the_correlation_is_scipys(pairs):
    assert rank_correlation(*pairs).value == pytest.approx(stats.spearmanr(*pairs).statistic, abs=1e-12)


def test_the_interval_is_that_of_scipys_paired_percentile_bootstrap(pairs):
    theirs = stats.bootstrap(
        pairs, lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=600,
        method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    ours = rank_correlation(*pairs)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.06), pytest.approx(theirs.high, abs=0.06))


def test_the_same_order_is_a_correlation_of_one_in_every_resample():
    assert rank_correlation(np.arange(8), np.arange(8) ** 3) == Estimate(pytest.approx(1), pytest.approx(1), 1)


def test_equal_results_have_no_correlation():
    correlation = rank_correlation(np.arange(6), np.ones(6))
    assert correlation == Estimate(None, None, None)
    assert not conclusive(correlation)
    assert conclusion(correlation, 6).startswith("Not defined")


def test_unrelated_scores_are_rarely_called_conclusive():
    """Under no relation, a 95 % interval excludes 0 in about 5 % of the cases; with 12 subsets in up to 12 %."""
    rng = np.random.default_rng(0)
    found = [conclusive(rank_correlation(*rng.normal(size=(2, 12)), resamples=500, seed=i)) for i in range(200)]
    assert np.mean(found) < 0.12


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.4, -0.1, 0.7), "0.40 (95 % interval -0.10 to 0.70): too wide for a conclusion from 9 subsets, it "
         "contains 0. Raise --subsets or --seeds."),
        (Estimate(0.6, 0.3, 0.8), "0.60 (95 % interval 0.30 to 0.80): subsets with lower scores lead to a lower NLL."),
        (Estimate(-0.6, -0.8, -0.3), "-0.60 (95 % interval -0.80 to -0.30): subsets with lower scores lead to a "
         "higher NLL."),
    ],
)  # fmt: skip
def test_the_conclusion_says_what_the_interval_supports(estimate, text):
    assert conclusion(estimate, 9) == text
