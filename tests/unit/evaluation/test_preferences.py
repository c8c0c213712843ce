import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.evaluation.preferences import combined, flip_rate, judges_agreement

PREFERENCE = st.sampled_from([0.0, 1.0, 1.5, 2.0, math.nan]) | st.floats(1, 2)


def test_verdicts_that_differ_between_the_orders_are_a_tie():
    both = [(2, 2), (2, 1.5), (0, 2), (1.5, 0), (2, 1), (1, 2), (1, 1.5), (1, 1), (2, None), (None, None)]
    expected = [2, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1, math.nan, math.nan]
    np.testing.assert_array_equal(combined(both), expected)


def test_fractional_preferences_are_averaged_where_the_orders_agree():
    np.testing.assert_allclose(combined([(1.9, 1.6), (1.2, 1.0), (1.2, 1.6), (1.9, 1.5)]), [1.75, 1.1, 1.5, 1.5])


@given(st.lists(st.tuples(PREFERENCE, PREFERENCE), min_size=1))
def test_a_prompt_is_combined_by_its_own_preferences(preference):
    one_by_one = np.concatenate([combined([pair]) for pair in preference])
    np.testing.assert_array_equal(combined(preference), one_by_one)


def test_a_single_order_stays_as_it_is():
    np.testing.assert_array_equal(combined([2, 0, None, 1.25]), [2, 1.5, math.nan, 1.25])


def test_flips_are_different_verdicts_in_the_two_orders():
    # win/win, win/loss, win/tie, tie/tie, and one judged in one order only: 2 of 4
    assert flip_rate([(2, 2), (2, 1), (2, 1.5), (1.5, 0), (2, None)]) == 50
    assert flip_rate([(1.9, 1.6)]) == 0
    assert flip_rate([(2, None)]) is None
    assert flip_rate([2, 1]) is None


def test_kappa_by_hand():
    # 10 prompts: 4 both win, 3 both lose, 1 both tie, 2 disagree: .8 observed.
    a = [2, 2, 2, 2, 1, 1, 1, 1.5, 2, 1]
    b = [2, 2, 2, 2, 1, 1, 1, 0.0, 1, 2]
    # each: 5 wins, 4 losses, 1 tie: chance .25 + .16 + .01 = .42
    [found] = judges_agreement({"a": [*a, None], "b": [*b, 2]})
    assert found == {
        "judges": ["a", "b"],
        "n": 10,
        "agreement": pytest.approx(80),
        "kappa": pytest.approx((0.8 - 0.42) / (1 - 0.42)),
        # a win and a loss differ by 1, a tie by 1/2: .2 observed, by chance .4 + .05 + .04
        "weighted_kappa": pytest.approx(1 - 0.2 / 0.49),
    }


def test_agreement_of_every_two_judges_and_undefined_values():
    found = judges_agreement({"a": [2, 2], "b": [2, 2], "c": [None, None]})
    assert [pair["judges"] for pair in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert (found[0]["agreement"], found[0]["kappa"]) == (100, None)  # only one verdict occurs
    assert found[1] == {"judges": ["a", "c"], "n": 0, "agreement": None, "kappa": None, "weighted_kappa": None}
