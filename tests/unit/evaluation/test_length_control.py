import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lpsel.evaluation.length_control import fit, length_controlled_win_rate, penalised
from lpsel.evaluation.statistics import UNDEFINED
from lpsel.evaluation.winrate import win_rate


def drawn(generator, rows, theta, phi):
    """Verdicts that follow the model, and the answers' lengths."""
    baseline = generator.integers(200, 2000, rows)
    model = np.maximum(1, baseline + generator.normal(150, 400, rows).astype(int))
    shorter = (baseline - model).astype(float)
    wins = generator.random(rows) < expit(theta + phi * np.tanh(shorter / shorter.std(ddof=1)))
    return np.where(wins, 2.0, 1.0), model, baseline


def test_a_preference_for_length_alone_leaves_half():
    preference, model, baseline = drawn(np.random.default_rng(0), 20_000, theta=0.0, phi=-2.0)
    assert win_rate(preference, resamples=10).win_rate > 58
    found = length_controlled_win_rate(preference, model, baseline, resamples=200)
    assert found.value == pytest.approx(50, abs=1.5)
    assert found.low < 50 < found.high


def test_the_resamples_fit_is_scikit_learns():
    generator = np.random.default_rng(1)
    features = np.column_stack([np.ones(300), np.tanh(generator.normal(0.4, 1, 300))])
    share = generator.beta(0.2, 0.6, 300)
    counts = np.array([np.bincount(generator.integers(0, 300, 300), minlength=300) for _ in range(6)], dtype=float)
    for strength in (0.05, 0.36, 2.8, 1e4):
        ours = penalised(features, share, counts, strength, np.zeros(2))
        for count, coefficients in zip(counts, ours, strict=True):
            theirs = LogisticRegression(
                C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=10**6
            ).fit(
                np.vstack([features, features]),
                np.repeat([1, 0], 300),
                sample_weight=np.concatenate([count * share, count * (1 - share)]),
            )
            np.testing.assert_allclose(coefficients, theirs.coef_[0], atol=1e-6)


def test_a_strong_penalty_puts_coefficients_at_zero():
    generator = np.random.default_rng(2)
    features = np.column_stack([np.ones(50), generator.uniform(-1, 1, 50)])
    coefficients = penalised(features, generator.random(50), np.ones((1, 50)), 1e-4, np.ones(2))
    assert coefficients.tolist() == [[0, 0]]


def test_the_fit_does_not_depend_on_the_order_of_the_models():
    # the answers change places: what one wins the other loses, and the length difference changes its sign
    preference, model, baseline = drawn(np.random.default_rng(3), 400, theta=0.7, phi=-1.0)
    there = length_controlled_win_rate(preference, model, baseline, resamples=300)
    back = length_controlled_win_rate(3 - preference, baseline, model, resamples=300)
    assert there.value == pytest.approx(100 - back.value, abs=1e-4)
    assert there.low == pytest.approx(100 - back.high, abs=1e-4)


def test_answers_as_long_as_the_baselines_leave_the_win_rate():
    preference = np.array([2.0] * 30 + [1.0] * 10 + [1.5] * 4)
    plain = win_rate(preference, resamples=500, seed=3)
    found = length_controlled_win_rate(preference, np.full(44, 80), np.full(44, 80), resamples=500, seed=3)
    assert found == pytest.approx((plain.win_rate, plain.ci_low, plain.ci_high))


def test_what_cannot_be_fitted_is_undefined():
    assert length_controlled_win_rate([2.0, 1.0] * 4, np.arange(8), np.arange(8)[::-1]) == UNDEFINED
    assert length_controlled_win_rate([2.0] * 40, [None] * 40, [10] * 40) == UNDEFINED
    assert length_controlled_win_rate([math.nan] * 40, np.arange(40), np.zeros(40)) == UNDEFINED
    # all answers longer by the same: the length and the model cannot be told apart
    assert length_controlled_win_rate([2.0, 1.0] * 20, np.full(40, 30), np.full(40, 10)) == UNDEFINED


def test_nothing_but_wins_ends_near_100():
    found = length_controlled_win_rate([2.0] * 60, np.arange(60), np.full(60, 25), resamples=200)
    assert found == pytest.approx((100, 100, 100), abs=0.001)


def test_rows_without_a_verdict_or_a_length_count_for_the_scale_alone():
    preference, model, baseline = drawn(np.random.default_rng(4), 200, theta=0.3, phi=-1.0)
    more = length_controlled_win_rate(
        np.append(preference, [2.0, 2.0]), np.append(model, [np.nan, 5]), np.append(baseline, [5, np.nan]), resamples=50
    )
    assert more == length_controlled_win_rate(preference, model, baseline, resamples=50)


def test_the_penalty_is_chosen_from_alpaca_evals_grid():
    preference, model, baseline = drawn(np.random.default_rng(5), 300, theta=0.3, phi=-1.0)
    shorter = (baseline - model).astype(float)
    features = np.column_stack([np.ones(300), np.tanh(shorter / shorter.std(ddof=1))])
    coefficients, strength = fit(features, preference - 1)
    assert strength in np.logspace(-4, 4, 10)
    np.testing.assert_allclose(
        penalised(features, preference - 1, np.ones((1, 300)), strength, np.zeros(2))[0], coefficients, atol=1e-6
    )


def test_its_interval_covers_the_win_rate_at_equal_length():
    # Of 150 draws the share inside has a standard deviation of 1.8 points. benchmarks/win_rates.py draws 1,000.
    generator = np.random.default_rng(6)
    true = 100 * expit(0.4)
    inside = 0
    for draw in range(150):
        found = length_controlled_win_rate(*drawn(generator, 200, theta=0.4, phi=-1.5), resamples=200, seed=draw)
        inside += found.low <= true <= found.high
    assert 0.9 <= inside / 150 <= 0.99
