import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lpsel.errors import UserError
from lpsel.evaluation.winrate import holm, longer_wins, sign_test, wilson, win_rate

PREFERENCES = st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, math.nan]) | st.floats(1, 2), max_size=40)


def test_wins_ties_and_losses_by_hand():
    # 3 wins, 2 ties (both codes), 1 loss, 1 not judged; shares 1 1 1 .5 .5 0: mean 4/6, squared deviations sum to 5/6
    found = win_rate([2, 2, 2, 1.5, 0, 1, None])
    assert (found.n, found.wins, found.ties, found.losses, found.failed) == (6, 3, 2, 1, 1)
    assert found.win_rate == pytest.approx(100 * 4 / 6)
    assert found.win_rate == pytest.approx(found.discrete_win_rate)
    assert found.standard_error == pytest.approx(100 * math.sqrt(5 / 6 / 5 / 6))
    assert found.winning_score == pytest.approx(1 + (3 - 1) / 6)
    # 3 of 4 decided: twice the chance of 3 or 4 heads in 4 throws, 2 x 5 / 16
    assert found.p_value == pytest.approx(0.625)


def test_shares_are_averaged_and_counted_by_the_side_of_1_5_they_are_on():
    found = win_rate([1.9, 1.51, 1.2, 1.5])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.win_rate == pytest.approx(100 * (0.9 + 0.51 + 0.2 + 0.5) / 4)
    assert found.discrete_win_rate == pytest.approx(62.5)


def test_nothing_judged_has_counts_and_no_figures():
    for preference in ([], [None, math.nan]):
        found = win_rate(preference)
        assert (found.n, found.failed) == (0, len(preference))
        assert {found.win_rate, found.standard_error, found.ci_low, found.p_value, found.winning_score} == {None}


def test_every_resample_of_one_verdict_is_that_verdict_and_wilsons_interval_says_how_little_it_is():
    found = win_rate([2])
    assert (found.win_rate, found.winning_score, found.p_value) == (100, 2, 1)
    assert (found.standard_error, found.ci_low, found.ci_high) == (None, 100, 100)
    assert found.wilson_low < 21


@given(st.floats(1, 2), st.integers(1, 40))
def test_the_rate_of_equal_verdicts_lies_in_its_interval_to_the_last_bit(preference, prompts):
    found = win_rate([preference] * prompts, resamples=20)
    assert found.ci_low <= found.win_rate <= found.ci_high


def test_all_ties():
    found = win_rate([1.5] * 20)
    assert (found.win_rate, found.standard_error, found.ci_low, found.ci_high) == (50, 0, 50, 50)
    assert (found.p_value, found.winning_score) == (1, 1)


def test_all_wins():
    found = win_rate([2] * 20)
    assert (found.win_rate, found.standard_error, found.winning_score) == (100, 0, 2)
    assert found.p_value == pytest.approx(2 * 0.5**20)
    assert found.wilson_high == 100
    assert found.wilson_low == pytest.approx(100 * 20 / (20 + stats.norm.ppf(0.975) ** 2))  # its closed form


@pytest.mark.parametrize("wrong", [3.7, 0.5, -1, math.inf])
def test_what_is_no_preference_is_named(wrong):
    with pytest.raises(UserError, match=rf"^preference {wrong:g} in row 1: must be 1 \(the baseline's"):
        win_rate([2, wrong])


def test_the_sign_test_and_wilsons_interval_are_scipys():
    for wins, losses in ((0, 0), (7, 3), (30, 52), (205, 584)):
        if wins + losses:
            expected = stats.binomtest(wins, wins + losses)
            assert sign_test(wins, losses) == pytest.approx(expected.pvalue)
            theirs = expected.proportion_ci(method="wilson")
            assert wilson(wins, wins + losses) == pytest.approx((100 * theirs.low, 100 * theirs.high))
        else:
            assert sign_test(wins, losses) == 1


@pytest.mark.parametrize("p_win", [0.2, 0.5])
def test_the_bootstrap_and_wilson_cover_the_win_rate_of_wins_ties_and_losses(p_win):
    generator = np.random.default_rng(1)
    ties = 0.1
    true = 100 * (p_win + ties / 2)
    inside = np.zeros(2)
    for draw in range(1000):
        found = win_rate(
            generator.choice([2, 1.5, 1], size=120, p=[p_win, ties, 1 - p_win - ties]), resamples=500, seed=draw
        )
        inside += [found.ci_low <= true <= found.ci_high, found.wilson_low <= true <= found.wilson_high]
    assert 930 <= inside[0] <= 970
    assert inside[1] >= 930  # ties make it wider than it need be


def test_the_bootstrap_covers_the_win_rate_of_shares():
    generator = np.random.default_rng(2)
    true = 100 * 0.3 / (0.3 + 0.9)  # of a beta distribution; most shares are near 0 or 1, as a judge's are
    inside = 0
    for draw in range(1000):
        found = win_rate(1 + generator.beta(0.3, 0.9, size=120), resamples=500, seed=draw)
        inside += found.ci_low <= true <= found.ci_high
    assert 930 <= inside <= 970


@given(PREFERENCES, st.randoms())
def test_the_models_change_places_and_so_do_the_figures(preference, random):
    there = win_rate(preference, resamples=50)
    back = win_rate([3 - p if p else 0 for p in preference], resamples=50)
    assert (there.n, there.wins, there.ties, there.losses) == (back.n, back.losses, back.ties, back.wins)
    assert there.n == there.wins + there.ties + there.losses
    assert there.n + there.failed == len(preference)
    assert there.p_value == back.p_value
    if there.n:
        assert there.win_rate == pytest.approx(100 - back.win_rate, abs=1e-9)
        assert there.winning_score == pytest.approx(2 - back.winning_score)
        assert there.wilson_low == pytest.approx(100 - back.wilson_high)
    shuffled = random.sample(preference, len(preference))
    assert win_rate(shuffled, resamples=50).wins == there.wins


def test_the_longer_answer_is_counted_among_decided_prompts_of_unlike_length():
    # longer and won, longer and lost, shorter and lost (the longer won); the others do not count
    chars = [20, 20, 5, 10, 20, 20, None]
    assert longer_wins([2, 1, 1, 2, 0, None, 2], chars, [10] * 7) == pytest.approx(100 * 2 / 3)
    assert longer_wins([1.5, 2], [20, 10], [10, 10]) is None


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 (not below the one before) .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_value_and_bonferronis_and_keeps_their_order(p):
    adjusted = np.array(holm(p))
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
