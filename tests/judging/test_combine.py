import pytest

from lpsel.judging.combine import combine, first_shown_rate, flip_rate
from lpsel.judging.judgement import Judgement


def both(id, baseline_first, model_first, failure="unreadable"):
    orders = (("baseline_first", baseline_first), ("model_first", model_first))
    return [Judgement(id, order, p, failure=failure if p is None else None) for order, p in orders]


@pytest.mark.parametrize(
    ("said", "preference", "flipped"),
    [
        ((2.0, 2.0), 2.0, False),
        ((1.0, 1.0), 1.0, False),
        ((1.5, 1.5), 1.5, False),
        ((1.0, 2.0), 1.5, True),
        ((2.0, 1.5), 1.5, True),
        ((1.9, 1.6), 1.75, False),
        ((1.8, 1.4), 1.6, True),
        ((2.0, 1.7), 1.85, False),
        ((None, 2.0), None, None),
        ((1.0, None), None, None),
    ],
)
def test_two_orders_make_one_outcome(said, preference, flipped):
    [outcome] = combine(both("a", *said))
    assert outcome.preference == (None if preference is None else pytest.approx(preference))
    assert outcome.flipped is flipped
    assert outcome.failure == (None if preference is not None else "unreadable")


def test_one_order_is_taken_as_it_is():
    outcomes = combine([Judgement("a", "baseline_first", 2.0), Judgement("b", "baseline_first", 1.3)])
    assert outcomes == [("a", 2.0, None, None), ("b", 1.3, None, None)]
    assert flip_rate(outcomes) is None


def test_how_far_the_order_sways_a_judge():
    # a: the model in both orders, b: whichever is first, c: the last one, d: not read once, e: ties
    said = both("a", 2.0, 2.0) + both("b", 1.0, 2.0) + both("c", 2.0, 1.0) + both("d", None, 1.0) + both("e", 1.5, 1.5)
    assert flip_rate(combine(said)) == 2 / 4
    # first shown won: a once of 2, b 2 of 2, c 0 of 2, d 0 of 1
    assert first_shown_rate(said) == 3 / 7
    assert first_shown_rate(both("e", 1.5, None)) is None
