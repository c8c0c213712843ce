import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lpsel.evaluation.length_control import fit, length_controlled_win_rate, minimal_win_rate, refit
from lpsel.evaluation.statistics import UNDEFINED
from lpsel.evaluation.win_rate import win_rate


def drawn(generator, rows, theta, phi):
    """Verdicts drawn from the model of the fit, and the lengths of the answers."""
    baseline = generator.integers(200, 2000, rows)
    model = np.maximum(1, baseline + generator.normal(150, 400, rows).astype(int))
    shorter = (baseline - model).astype(float)
    wins = generator.random(rows) < expit(theta + phi * np.tanh(shorter / shorter.std(ddof=1)))
    return np.where(wins, 2.0, 1.0), model, baseline


def test_a_preference_for_length_only_gives_50_percent():
    preference, model, baseline = drawn(np.random.default_rng(0), 20_000, theta=0.0, phi=-2.0)
    assert win_rate(preference, resamples=10).win_rate > 58
    found = length_controlled_win_rate(preference, model, baseline, resamples=200)
    assert found.value == pytest.approx(50, abs=1.5)
    assert found.low < 50 < found.high


def scikit_learn_fit(features, share, count, strength):
    rows = len(features)
    model = LogisticRegression(
        C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=10**6
    )
    weight = np.concatenate([count * share, count * (1 - share)])
    return model.fit(np.vstack([features, features]), np.repeat([1, 0], rows), sample_weight=weight).coef_[0]


@pytest.mark.parametrize("mean_share", [0.02, 0.25, 0.5, 0.9])
def test_refits_match_scikit_learn(mean_share):
    generator = np.random.default_rng(1)
    features = np.column_stack([np.ones(300), np.tanh(generator.normal(0.4, 1, 300))])
    share = generator.beta(0.8 * mean_share, 0.8 * (1 - mean_share), 300)
    counts = np.array([np.bincount(generator.integers(0, 300, 300), minlength=300) for _ in range(6)], dtype=float)
    expected = [scikit_learn_fit(features, share, count, 1e4) for count in counts]
    np.testing.assert_allclose(refit(features, share, counts, np.zeros(2)), expected, atol=1e-6)
    np.testing.assert_allclose(refit(features, share, counts, expected[0]), expected, atol=1e-6)


def test_refits_of_ties_are_exactly_zero():
    features = np.column_stack([np.ones(50), np.random.default_rng(2).uniform(-1, 1, 50)])
    assert refit(features, np.full(50, 0.5), np.ones((1, 50)), np.array([0.3, -0.2])).tolist() == [[0, 0]]


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_refits_of_wins_only_are_at_the_weight_of_the_penalty(start):
    # the loss n log(1 + exp(-theta)) falls as fast as theta / 10,000 grows where n exp(-theta) = 1e-4 (1 + exp(-theta))
    features = np.column_stack([np.ones(60), np.tanh(np.random.default_rng(3).normal(size=60))])
    [found] = refit(features, np.ones(60), np.ones((1, 60)), np.array([start, 0]))
    assert found == pytest.approx((np.log(60 * 1e4 - 1), 0))


def test_swapping_the_models_mirrors_the_rate():
    # swapped answers: wins become losses, and the length difference changes its sign
    preference, model, baseline = drawn(np.random.default_rng(3), 400, theta=0.7, phi=-1.0)
    there = length_controlled_win_rate(preference, model, baseline, resamples=300)
    back = length_controlled_win_rate(3 - preference, baseline, model, resamples=300)
    assert there.value == pytest.approx(100 - back.value, abs=1e-4)
    assert there.low == pytest.approx(100 - back.high, abs=1e-4)


def test_equal_lengths_give_the_plain_win_rate():
    preference = np.array([2.0] * 30 + [1.0] * 10 + [1.5] * 4)
    for several in (1, 4):
        plain = asdict(win_rate(np.tile(preference, several), resamples=500, seed=3))
        equal = np.full(44 * several, 80)
        found = length_controlled_win_rate(np.tile(preference, several), equal, equal, resamples=500, seed=3)
        assert found == pytest.approx([plain[name] for name in ("win_rate", "wilson_low", "wilson_high")])


def test_too_few_verdicts_or_lengths_are_undefined():
    assert length_controlled_win_rate([2.0, 1.0] * 4, np.arange(8), np.arange(8)[::-1]) == UNDEFINED
    assert length_controlled_win_rate([2.0] * 40, [None] * 40, [10] * 40) == UNDEFINED
    assert length_controlled_win_rate([math.nan] * 40, np.arange(40), np.zeros(40)) == UNDEFINED
    # all answers are longer by the same amount: length and model are not identifiable
    assert length_controlled_win_rate([2.0, 1.0] * 20, np.full(40, 30), np.full(40, 10)) == UNDEFINED


def test_one_empty_answer_counts_as_an_answer_of_length_0():
    preference, model, baseline = drawn(np.random.default_rng(5), 300, theta=0.5, phi=-1.0)
    model[0], preference[0] = 0, 1.0
    empty = length_controlled_win_rate(preference, model, baseline, resamples=100)
    model[0] = 1
    almost_empty = length_controlled_win_rate(preference, model, baseline, resamples=100)
    assert empty == pytest.approx(tuple(almost_empty), abs=0.05)


def test_wins_only_give_almost_100_percent_and_room_below():
    found = length_controlled_win_rate([2.0] * 60, np.arange(60), np.full(60, 25), resamples=200)
    assert (found.value, found.high) == pytest.approx((100, 100), abs=0.001)
    assert 80 < found.low < 97


def test_the_interval_of_few_prompts_is_that_of_the_likelihood_ratio():
    preference, model, baseline = drawn(np.random.default_rng(8), 40, theta=0.5, phi=-1.0)
    found = length_controlled_win_rate(preference, model, baseline, resamples=10)
    shorter = (baseline - model).astype(float)
    length = np.tanh(shorter / shorter.std(ddof=1))
    phi = np.linspace(-8, 8, 16_001)[:, None]

    def log_likelihood(rate):  # its maximum over phi
        won = expit(np.log(rate / (100 - rate)) + phi * length)
        return np.log(np.where(preference == 2, won, 1 - won)).sum(axis=1).max()

    assert found.low < found.value < found.high
    for end in (found.low, found.high):
        assert 2 * (log_likelihood(found.value) - log_likelihood(end)) == pytest.approx(3.841, abs=0.01)


def test_rows_without_a_verdict_only_affect_the_scale():
    preference, model, baseline = drawn(np.random.default_rng(4), 200, theta=0.3, phi=-1.0)
    more = length_controlled_win_rate(
        np.append(preference, [2.0, 2.0]), np.append(model, [np.nan, 5]), np.append(baseline, [5, np.nan]), resamples=50
    )
    assert more == length_controlled_win_rate(preference, model, baseline, resamples=50)


def test_the_value_is_inside_its_interval_and_not_pulled_to_50():
    # alpaca_eval's penalty gives exactly 50 in about half of such sets
    minimal, generator = [], np.random.default_rng(7)
    for _ in range(12):
        sample = drawn(generator, 12, theta=1.0, phi=-0.5)
        found = length_controlled_win_rate(*sample, resamples=200)
        assert found.low <= found.value <= found.high
        assert found.value != 50 or (sample[0] == 2).mean() == 0.5
        minimal.append(minimal_win_rate(*sample))
    assert minimal.count(50.0) > 2


def test_the_penalty_is_chosen_from_the_grid_of_alpaca_eval():
    preference, model, baseline = drawn(np.random.default_rng(5), 300, theta=0.3, phi=-1.0)
    shorter = (baseline - model).astype(float)
    features = np.column_stack([np.ones(300), np.tanh(shorter / shorter.std(ddof=1))])
    coefficients, strength = fit(features, preference - 1)
    assert strength in np.logspace(-4, 4, 10)
    expected = scikit_learn_fit(features, preference - 1, np.ones(300), strength)
    np.testing.assert_allclose(coefficients, expected, atol=1e-6)


def test_a_strong_penalty_is_chosen_for_random_verdicts():
    generator = np.random.default_rng(0)
    features = np.column_stack([np.ones(60), generator.uniform(-1, 1, 60)])
    coefficients, strength = fit(features, np.tile([0.0, 1.0], 30))
    assert (coefficients.tolist(), strength) == ([0, 0], 1e-4)


def test_the_interval_covers_the_win_rate_at_equal_length():
    # With 150 draws the coverage has a standard deviation of 1.8 points; benchmarks/win_rates.py uses 1,000.
    generator = np.random.default_rng(6)
    true = 100 * expit(0.4)
    inside = 0
    for draw in range(150):
        found = length_controlled_win_rate(*drawn(generator, 200, theta=0.4, phi=-1.5), resamples=200, seed=draw)
        inside += found.low <= true <= found.high
    assert 0.9 <= inside / 150 <= 0.99
