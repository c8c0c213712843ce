"""Selections compared with training on all rows, from points with known values; `test_summary` has the others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lpsel.evaluation.statistics import wilson
from lpsel.report.comparisons import differences, smallest_passing, to_all_rows
from lpsel.report.drawing import looks
from lpsel.report.line_figures import fraction_figure, token_figure
from lpsel.report.points import Interval, Point
from lpsel.report.runs import Run


def point(value, half, *, pct=10, rule="lp", target="small", seed=1, metric="nll", evaluation="e", difference=None):
    result = {"command": "train", "rule": rule, "pct": pct, "seed": seed, "base_model": {"name": target}}
    result["training"] = {"rows": 10 * pct, "tokens": 1000 * pct}
    run = Run(Path(f"{target}-{rule}-{pct}-{seed}"), result)
    evaluated = Run(Path(evaluation), {"command": "evaluate"})
    details = {"n": 100.0, "standard_error": None, "p_value_holm": None, "flip_rate": None,
               "length_controlled_win_rate": None}  # fmt: skip
    all_rows = Run(Path("full"), result | {"rule": "full", "pct": 100}) if metric == "win_rate" else None
    ends = value - half, value + half
    return Point(run.name, metric, value, *ends, run, evaluated, "rows", details, difference, baseline=all_rows)


def full(value, **more):
    return point(value, 0.1, rule="full", pct=100, **more)


def test_the_goal_is_that_of_the_target():
    # on all rows, small reaches 2.8 and big 1.9; big on 1% is far from that with 2.3
    far = Interval(0.4, 0.35, 0.45)
    measured = [
        full(2.8),
        full(1.9, target="big"),
        point(2.9, 0.1, pct=1, difference=Interval(0.1, 0.05, 0.15)),
        point(2.3, 0.1, pct=1, target="big", difference=far),
    ]
    assert smallest_passing(measured) is None
    assert {p.run.target: p.value for p in differences(measured)} == {"small": 0.1, "big": 0.4}
    (axes,) = fraction_figure(measured, looks([p.run for p in measured])).axes
    assert {"all rows, small", "all rows, big"} <= {text.get_text().strip() for text in axes.texts}
    dashed = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert dashed == {2.8, 1.9}


def test_the_goal_is_that_of_the_same_training():
    # with another learning rate, training on all rows reaches 3.0
    other = full(3.0)
    other = replace(other, run=replace(other.run, variant=", learning_rate=0.1", conditions="b"))
    measured = [full(2.0), other, point(2.1, 0.1, difference=Interval(0.1, 0.05, 0.15))]
    assert [p.value for p in differences([other, *measured[::2]])] == pytest.approx([0.1])
    assert differences(measured[1:]) == to_all_rows(measured[1:]) == []
    (axes,) = fraction_figure(measured, looks([p.run for p in measured])).axes
    assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {2.0, 3.0}
    assert "all rows, small, learning_rate=0.1" in {text.get_text().strip() for text in axes.texts}


def test_a_difference_is_to_the_same_seed():
    measured = [full(2.0, seed=1), full(2.2, seed=2), point(2.1, 0.1, seed=1), point(2.1, 0.1, seed=2)]
    assert [p.value for p in differences(measured)] == pytest.approx([0.1, -0.1])


def test_a_percentage_passes_by_its_interval_and_those_of_all_larger_ones():
    def won(*ends):  # the lower ends at 1, 5, 10 and 25%
        return [point(low + 4, 4, pct=pct, metric="win_rate") for pct, low in zip((1, 5, 10, 25), ends, strict=True)]

    assert smallest_passing(won(51, 52, 50, 53)) == 1
    assert smallest_passing(won(51, 49, 50, 53)) == 10
    assert smallest_passing(won(55, 55, 55, 49)) is None
    without = [point(60, 4, metric="win_rate")]
    assert smallest_passing(without) == 10
    assert smallest_passing([replace(p, low=None, high=None) for p in without]) is None


def test_a_win_rate_against_anything_but_all_rows_of_the_target_passes_nothing():
    clear = point(60, 4, metric="win_rate")
    assert smallest_passing([clear]) == 10
    for rule, target in (("random", "small"), ("full", "big")):
        baseline = point(0, 0, rule=rule, target=target).run
        assert smallest_passing([replace(clear, baseline=baseline)]) is None
    assert smallest_passing([replace(clear, baseline=None)]) is None, "such as GPT-4"


def test_of_several_selections_each_needs_a_clearer_result():
    # of four selections, 95% of all reports: 2.498 in place of 1.96 standard errors
    clear = point(56.1, 6, metric="win_rate")
    assert smallest_passing([clear]) == 10
    others = [point(45, 6, metric="win_rate", rule=rule) for rule in ("lp_app", "ifd", "random")]
    assert smallest_passing([clear, *others]) is None
    clearer = point(57.7, 6, metric="win_rate")  # 6 x 2.498 / 1.96 = 7.65
    assert smallest_passing([clearer, *others]) == 10


def test_a_difference_without_an_interval_does_not_pass():
    assert smallest_passing([full(2.0), point(1.9, 0.1)]) is None
    assert smallest_passing([full(2.0), point(1.9, 0.1, difference=Interval(-0.1, -0.2, -0.01))]) == 10
    assert smallest_passing([full(2.0), point(1.9, 0.1, difference=Interval(-0.1, -0.2, 0.01))]) is None


@pytest.mark.parametrize("prompts", [10, 20, 50, 200, 800])
def test_no_percentage_passes_in_more_than_5_percent_of_reports_where_all_are_at_48(prompts):
    # six selections at six percentages
    generator, passed = np.random.default_rng(prompts), 0
    for _ in range(1000):
        won = generator.binomial(prompts, 0.48, (6, 6))
        low = np.array([[100 * wilson(wins, prompts)[0] for wins in of_rule] for of_rule in won])  # as reports show
        value = 100 * won / prompts
        measured = [
            point(value[s, k], value[s, k] - low[s, k], pct=pct, rule=rule, metric="win_rate")
            for s, rule in enumerate(("lp", "lp_app", "ifd", "el2n", "longest", "random"))
            for k, pct in enumerate((1, 3, 5, 10, 25, 33))
        ]
        passed += smallest_passing(measured) is not None
    assert passed <= 50


def test_values_are_drawn_against_training_tokens():
    measured = [point(2.5, 0.1, pct=10), point(2.3, 0.1, pct=10, seed=2), point(2.2, 0.1, pct=25)]
    (axes,) = token_figure(measured, looks([p.run for p in measured])).axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 2.4)
    assert list(line.get_xdata()) == [10_000, 25_000]
    assert axes.get_xlabel() == "training tokens (× 10³)"
    assert token_figure(measured[:2], {}) is None
