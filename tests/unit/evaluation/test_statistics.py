import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lpsel.evaluation import statistics
from lpsel.evaluation.statistics import (
    Estimate,
    bootstrap_means,
    bootstrap_ratios,
    exponential,
    holm,
    sign_test,
    wilson,
)


def test_a_ratio_is_the_ratio_of_sums():
    # two rows: 2 nats over 1 token, 2 nats over 4 tokens: (2 + 2) / (1 + 4) = 0.8; the mean of ratios would be 1.25
    assert bootstrap_ratios([[2.0], [2.0]], [[1.0], [4.0]]).estimate(0).value == pytest.approx(0.8)


def test_the_interval_of_a_mean_of_two_rows_is_known_by_hand():
    # rows 0 and 1: a resample's mean is 0 (chance 1/4), .5 or 1 (1/4): both 2.5% tails end at the extremes
    assert bootstrap_means([[0.0], [1.0]], seed=1).estimate(0) == Estimate(0.5, 0.0, 1.0)


def test_the_interval_of_many_equal_rows_is_binomial():
    # 50 ones and 50 zeros: a resample's sum is binomial (100, 1/2), whose 2.5% and 97.5% quantiles are 40 and 60
    assert stats.binom(100, 0.5).ppf([0.025, 0.975]).tolist() == [40, 60]
    assert bootstrap_means([[1.0], [0.0]] * 50, seed=1).estimate(0) == Estimate(0.5, 0.4, 0.6)


def test_drawing_equal_rows_together_gives_the_same_distribution(monkeypatch):
    rows = np.random.default_rng(0).choice([1.0, 2.0, 4.0], (200, 1), p=[0.6, 0.3, 0.1])
    together = bootstrap_means(rows, seed=2)
    monkeypatch.setattr(statistics, "MEAN_MULTIPLICITY", 200)
    apart = bootstrap_means(rows, seed=2)
    assert not np.array_equal(together.resampled_RK, apart.resampled_RK)
    assert stats.ks_2samp(together.resampled_RK[:, 0], apart.resampled_RK[:, 0]).pvalue > 0.01


def test_intervals_agree_with_scipy():
    generator = np.random.default_rng(3)
    numerator, denominator = generator.gamma(2.0, 3.0, 80), generator.integers(1, 40, 80).astype(float)
    ours = bootstrap_ratios(numerator[:, None], denominator[:, None], resamples=20_000, seed=5).estimate(0)
    theirs = stats.bootstrap(
        (numerator, denominator),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(6),  # `rng` from scipy 1.15 on
    ).confidence_interval
    assert ours.low is not None
    assert ours.high is not None
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width


def test_the_95_percent_interval_covers_the_mean_of_normal_data():
    generator = np.random.default_rng(7)
    covered = 0
    for draw in range(400):
        estimate = bootstrap_means(generator.normal(1.0, 2.0, (60, 1)), resamples=1000, seed=draw).estimate(0)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.97


@pytest.mark.parametrize("rows", [10, 20, 50])
def test_the_interval_of_a_ratio_covers_where_weights_differ(rows):
    # NLL per token of rows of 5 to 100 tokens, short ones harder; 92% with 10 rows if each counted as one
    generator, inside = np.random.default_rng(rows), 0
    tokens = np.exp(generator.uniform(np.log(5), np.log(100), 100_000)).astype(int)
    level = generator.gamma(4, 0.5, len(tokens)) * (1 + 2 / tokens)
    true = (level * tokens).sum() / tokens.sum()
    for draw in range(600):
        some = generator.integers(0, len(tokens), rows)
        found = bootstrap_ratios((level * tokens)[some, None], tokens[some, None], resamples=300, seed=draw).estimate(0)
        inside += found.low <= true <= found.high
    assert 0.92 <= inside / 600 <= 0.975


def test_rows_of_different_weight_count_as_fewer():
    # (1 + 1 + 2)^2 / (1 + 1 + 4)
    ratios = bootstrap_ratios([[1.0], [2.0], [3.0]], [[1.0], [1.0], [2.0]], resamples=10)
    assert ratios.effective_K == pytest.approx([16 / 6])
    assert ratios.rows_K == [3]


def test_a_difference_is_paired():
    # the rows differ a lot from each other, the models by exactly 0.25 on every row: the difference has no spread
    baseline = np.random.default_rng(0).normal(0, 10, 50)
    difference = bootstrap_means(np.column_stack([baseline, baseline + 0.25])).difference(1, 0)
    assert difference == pytest.approx((0.25, 0.25, 0.25))


def test_the_difference_to_itself_is_zero():
    assert bootstrap_means([[1.0], [5.0], [2.0]]).difference(0, 0) == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize("equal", [False, True])
def test_resamples_do_not_depend_on_the_block_size(monkeypatch, equal):
    values = np.random.default_rng(0).normal(size=(37, 2))
    if equal:
        values = np.repeat(values[:4], 9, axis=0)
    whole = bootstrap_means(values, resamples=500, seed=4)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 100)
    np.testing.assert_allclose(
        bootstrap_means(values, resamples=500, seed=4).resampled_RK, whole.resampled_RK, rtol=0, atol=1e-12
    )
    assert not np.allclose(bootstrap_means(values, resamples=500, seed=5).resampled_RK, whole.resampled_RK)


def test_one_row_has_a_value_and_no_interval():
    assert bootstrap_means([[3.0]]).estimate(0) == Estimate(3.0, None, None)
    # of three rows only one has tokens
    assert bootstrap_ratios([[3.0], [0.0], [0.0]], [[2.0], [0.0], [0.0]]).estimate(0) == Estimate(1.5, None, None)


def test_undefined_ratios_are_none():
    assert bootstrap_ratios([[0.0], [0.0]], [[0.0], [0.0]]).estimate(0) == Estimate(None, None, None)
    with_nan = bootstrap_means([[1.0, math.nan, math.inf], [2.0, 1.0, 1.0]])
    assert with_nan.estimate(1) == with_nan.estimate(2) == Estimate(None, None, None)
    assert with_nan.difference(1, 0) == Estimate(None, None, None)
    assert with_nan.estimate(0).value == 1.5


def test_resamples_without_a_denominator_are_left_out():
    # two of three rows count, each 1/1: every resample that has one of them is 1, the others (1 in 27) are undefined
    assert bootstrap_ratios([[1.0], [1.0], [0.0]], [[1.0], [1.0], [0.0]]).estimate(0) == Estimate(1.0, 1.0, 1.0)


def test_no_rows_and_different_shapes_are_rejected():
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap_means(np.empty((0, 1)))
    with pytest.raises(ValueError, match="same shape"):
        bootstrap_ratios([[1.0]], [[1.0, 2.0]])


def test_perplexity_is_exp_of_both_ends():
    assert exponential(Estimate(0.0, None, math.log(2))) == pytest.approx((1.0, None, 2.0))
    assert exponential(Estimate(1000.0, 1.0, None)).value is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), min_size=2, max_size=30), st.randoms())
def test_the_row_order_does_not_change_the_value(rows, random):
    nll, tokens = np.array([r[0] for r in rows])[:, None], np.array([float(r[1]) for r in rows])[:, None]
    nll = nll * tokens
    estimate = bootstrap_ratios(nll, tokens, resamples=200).estimate(0)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = bootstrap_ratios(nll[order], tokens[order], resamples=200).estimate(0)
    assert shuffled.value == pytest.approx(estimate.value)
    if estimate.low is not None:
        assert estimate.high is not None
        means = [r[0] for r in rows if r[1]]
        assert min(means) - 1e-6 <= estimate.low <= estimate.high <= max(means) + 1e-6


def test_sign_test_and_wilson_interval_match_scipy():
    for wins, losses in ((0, 0), (7, 3), (30, 52), (205, 584)):
        if wins + losses:
            expected = stats.binomtest(wins, wins + losses)
            assert sign_test(wins, losses) == pytest.approx(expected.pvalue)
            theirs = expected.proportion_ci(method="wilson")
            assert wilson(wins, wins + losses) == pytest.approx((theirs.low, theirs.high))
        else:
            assert sign_test(wins, losses) == 1


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 (not below the one before) .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_value_and_bonferroni(p):
    adjusted = np.array(holm(p))
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
