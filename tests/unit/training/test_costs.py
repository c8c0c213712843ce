"""The sums of the ledger, worked out by hand."""

import pytest

from lpsel.training.costs import describe_ledger, ledger

SCORING = {"tokens": 300, "flops": 2e12, "device_seconds": 4.0, "seconds": 4.0}
TRAINING = {"rows": 5, "tokens": 100, "flops": 1e12, "device_seconds": 10.0}
EVERYTHING = {"tokens": 1000, "flops": 10e12}


def test_selection_and_training_add_up_and_are_compared_with_training_on_all_rows():
    figures = ledger(SCORING, TRAINING, EVERYTHING, 100)
    assert figures["total"] == {"tokens": 400, "flops": 3e12, "device_seconds": 14.0}
    assert figures["everything"] == {"tokens": 1000, "flops": 10e12, "device_seconds": 100.0}
    assert figures["saved"] == {"flops": 7e12, "share": pytest.approx(0.7)}
    assert figures["break_even_pct"] == pytest.approx(80)
    # 5 % of the rows have 10 % of the FLOPs: they are twice as long, so that 40 % of such rows have 80 % of the FLOPs
    assert figures["break_even_rows_pct"] == pytest.approx(40)
    assert describe_ledger(figures) == (
        "2e+12 FLOPs to select, 1e+12 to train: 70% less than training on everything (1e+13); selection "
        "pays off below 80 % of these, 40 % of the rows if as long as the selected ones"
    )


def test_a_rule_without_scores_costs_nothing_and_saves_up_to_all_rows():
    figures = ledger(None, TRAINING, EVERYTHING, 100)
    assert figures["selection"] == {"tokens": 0, "flops": 0, "device_seconds": 0}
    assert (figures["break_even_pct"], figures["break_even_rows_pct"]) == (100, 50)


def test_a_scorer_more_expensive_than_the_target_never_saves():
    figures = ledger(SCORING | {"flops": 12e12}, TRAINING, EVERYTHING, 100)
    assert figures["break_even_pct"] == 0
    assert figures["saved"]["share"] == pytest.approx(-0.3)
    assert describe_ledger(figures).endswith(
        "30% more than training on everything (1e+13); selection alone costs as much"
    )
