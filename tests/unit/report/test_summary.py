"""The summary of a report, from points with known values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from lpsel.report.comparisons import at_equal_rows, at_equal_tokens, to_all_rows
from lpsel.report.drawing import looks
from lpsel.report.line_figures import fraction_figure
from lpsel.report.points import Interval, Point
from lpsel.report.quality_tables import result_rows
from lpsel.report.runs import Run, Runs
from lpsel.report.summary import summarize

DETAILS = dict.fromkeys(("n", "standard_error", "p_value_holm", "flip_rate", "length_controlled_win_rate"))


def training_run(rule="lp", pct=10.0, seed=1, tokens=None, scoring=0.0):
    training = {"rows": int(10 * pct), "tokens": tokens or 1000 * pct}
    spent = {"selection": scoring, "training": pct, "total": scoring + pct, "everything": 100.0}
    result = {"command": "train", "rule": rule, "pct": pct, "seed": seed, "base_model": {"name": "m"}, "n_total": 1000,
              "dataset": {"name": "alpaca"}, "training": training,
              "ledger": {part: {"flops": flops} for part, flops in spent.items()}}  # fmt: skip
    return Run(Path(f"{rule}-{pct}-{seed}"), result)


def point(value, half=0.1, metric="nll", evaluation=None, **settings):
    run = training_run(**settings)
    evaluated = Run(Path("e"), {"command": "evaluate", **(evaluation or {})})
    low, high = (None, None) if half is None else (value - half, value + half)
    return Point(run.name, metric, value, low, high, run, evaluated, "on rows", DETAILS, evaluated_as=run.name)


def summary_of(*measured):
    return summarize(Runs([*{p.run.folder: p.run for p in measured}.values()]), measured)


def text_of(summary):
    return {title: " ".join(lines) for title, lines in summary.paragraphs}


def test_without_a_selection_there_is_nothing_to_compare():
    nothing = "No selection is measured, so there is nothing to compare with random rows."
    assert summary_of(point(3.0, rule="random"), point(2.0, rule="full", pct=100.0)).headline == nothing
    assert summary_of(point(2.5)).headline.startswith("No random rows were trained on and measured the same way")


def test_equal_values_are_neither_higher_nor_lower():
    summary = summary_of(point(3.0, scoring=13), point(3.0, rule="random"))
    assert "3.000 against 3.000, no difference (−0.141 to +0.141)" in text_of(summary)["At equal rows"]


def test_a_rule_that_beats_random_rows_with_one_seed():
    summary = summary_of(point(2.5, scoring=13), point(3.0, rule="random"))
    assert summary.headline == "At 10% of the rows, lp is better than random rows."
    # independent intervals of 0.1 each: sqrt(0.1² + 0.1²) = 0.141
    assert text_of(summary)["At equal rows"] == (
        "Held-out NLL in nats, lower is better: lp at 10%: 2.500 against 3.000, 0.500 lower (−0.641 to −0.359)"
    )
    assert text_of(summary)["Intervals"] == (
        "95% for all comparisons of a paragraph together; of one seed, over the rows or prompts measured: "
        "another seed may differ."
    )
    assert text_of(summary)["Cost"] == (
        "FLOPs of selection and training, of training on all rows (100): lp 23% (13% for selecting); random 10%."
    )
    assert text_of(summary)["Compared"] == (
        "lp and random rows on alpaca (1,000 rows), 10% of the rows, 1 seed; trained: m; "
        "measured: held-out NLL on rows."
    )


def test_a_rule_that_loses_to_random_rows():
    summary = summary_of(point(3.5), point(3.0, rule="random"))
    assert summary.headline == "At 10% of the rows, lp is worse than random rows."


def test_an_interval_that_includes_zero_shows_no_difference():
    summary = summary_of(point(2.9), point(3.0, rule="random"))
    assert summary.headline == "At 10% of the rows, for lp, no difference from random rows can be shown."


def test_without_an_interval_nothing_is_concluded():
    summary = summary_of(point(2.0, half=None), point(3.0, rule="random"))
    assert summary.headline == "At 10% of the rows, for lp, nothing can be concluded without an interval."


def test_several_seeds_have_a_paired_t_interval_at_the_level_of_all_comparisons():
    ours, theirs, weaker = [2.50, 2.62, 2.48], [3.00, 3.05, 3.01], [2.9, 3.2, 3.0]
    measured = [
        *(point(value, seed=seed) for seed, value in enumerate(ours)),
        *(point(value, seed=seed, rule="random") for seed, value in enumerate(theirs)),
        *(point(value, seed=seed, rule="ifd") for seed, value in enumerate(weaker)),
    ]
    first, second = at_equal_rows(measured)
    assert (first.basis, first.seeds, first.verdict, second.verdict) == ("seeds", 3, 1, 0)
    low, high = ttest_rel(ours, theirs).confidence_interval(0.975)  # Bonferroni for two comparisons
    assert first.difference == pytest.approx((np.mean(ours) - np.mean(theirs), low, high))
    headline = (
        "At 10% of the rows, lp is better than random rows; for ifd, no difference from random rows can be shown."
    )
    assert summary_of(*measured).headline == headline
    assert text_of(summary_of(*measured))["Intervals"] == (
        "95% for all comparisons of a paragraph together; t intervals over 3 seeds, paired by seed."
    )


def test_a_win_rate_against_random_rows_is_the_comparison_itself():
    p = replace(point(58.1, 4, metric="win_rate"), baseline=training_run("random"))
    assert summary_of(p).headline == "At 10% of the rows, lp is better than random rows."
    assert "lp at 10%: 58.1 against 50.0, 8.1 higher (+4.1 to +12.1)" in text_of(summary_of(p))["At equal rows"]
    near = replace(point(52, 4, metric="win_rate"), baseline=training_run("random"))
    assert summary_of(near).headline == "At 10% of the rows, for lp, no difference from random rows can be shown."


def test_equal_differences_of_few_prompts_allow_no_conclusion():
    # 20 prompts: both seeds gain 5 points by chance, which has no spread
    measured = [point(50.0 + gain + seed, 20, "win_rate", seed=seed, rule=rule)
                for rule, gain in (("lp", 5.0), ("random", 0.0)) for seed in (1, 2)]  # fmt: skip
    (compared,) = at_equal_rows(measured)
    assert (compared.difference, compared.basis, compared.verdict) == ((5.0, None, None), "none", None)
    assert summary_of(*measured).headline == "At 10% of the rows, for lp, nothing can be concluded without an interval."
    (row,) = result_rows([point(55.0, seed=1), point(55.0, seed=2)])
    assert (row["value"], row["low"], row["high"], row["sd"]) == (55.0, None, None, 0.0)


def test_win_rates_of_several_seeds_against_one_run_are_not_paired_by_seed():
    measured = [point(value, 4, "win_rate", seed=seed) for seed, value in enumerate([58, 60, 59])]
    one = [replace(p, baseline=training_run("random")) for p in measured]
    assert text_of(summary_of(*one))["Intervals"].endswith(
        "; t intervals over 3 seeds. Win rates of all seeds are against one run: against another seed of it, they may "
        "differ."
    )
    of_each = [replace(p, baseline=training_run("random", seed=seed)) for seed, p in enumerate(measured)]
    assert text_of(summary_of(*of_each))["Intervals"].endswith("; t intervals over 3 seeds, paired by seed.")


def test_a_win_rate_against_fewer_random_rows_is_no_comparison_at_equal_rows():
    p = replace(point(58.1, 4, metric="win_rate"), baseline=training_run("random", pct=5.0))
    assert at_equal_rows([p]) == []
    assert at_equal_rows([replace(p, baseline=training_run("random"))]) != []


def test_win_rates_against_all_rows_are_compared_by_their_paired_difference():
    pair = {"models": ["random-10.0-1", "lp-10.0-1"], "n": 90, "difference": -4, "ci_low": -7, "ci_high": -1}
    evaluation = {"comparisons": [pair]}
    measured = [
        replace(point(48, 6, "win_rate", evaluation), baseline=training_run("full", 100)),
        replace(point(44, 6, "win_rate", evaluation, rule="random"), baseline=training_run("full", 100)),
    ]
    (compared,) = at_equal_rows(measured)
    assert compared.difference == (4, 1, 7)
    (to_all,) = to_all_rows(measured)
    assert (to_all.reference, to_all.difference, to_all.verdict) == (50, (-2, -8, 4), 0)
    assert summary_of(*measured).headline == "At 10% of the rows, lp is better than random rows."
    assert text_of(summary_of(*measured))["Against all rows"].startswith("No difference can be shown: lp at 10%.")


def test_nll_differences_of_the_evaluation_are_used_where_random_rows_were_its_baseline():
    q = point(3.0, rule="random")
    p = replace(point(2.95), baseline=q.run, difference=Interval(-0.05, -0.08, -0.02))
    assert at_equal_rows([p, q])[0].difference == pytest.approx((-0.05, -0.08, -0.02))


def test_equal_tokens_are_interpolated_between_random_runs_of_the_seed():
    random = [point(3.0, rule="random", pct=10.0), point(2.0, rule="random", pct=40.0)]
    # 20,000 tokens are halfway between 10,000 and 40,000 in the logarithm: 2.5
    longer = point(2.6, tokens=20_000)
    (compared,) = at_equal_tokens([longer, *random])
    assert (compared.value, compared.reference) == (2.6, pytest.approx(2.5))
    summary = summary_of(longer, *random)
    assert summary.headline == "At 10% of the rows, lp is better than random rows."
    assert text_of(summary)["At equal training tokens"].startswith(
        "At 10% of the rows, for lp, no difference from random rows can be shown."
    )
    far = point(2.6, tokens=90_000)
    assert at_equal_tokens([far, *random]) == []
    assert text_of(summary_of(far, *random))["At equal training tokens"] == (
        "lp at 10%: no random rows have as many training tokens."
    )


def test_more_rows_than_the_random_runs_are_not_compared_as_equal():
    p = point(2.0)
    p.run.result["training"]["rows"] = 200
    assert at_equal_rows([p, point(3.0, rule="random")]) == []


def test_random_rows_trained_in_another_way_are_no_reference():
    measured = [point(2.0, tokens=10_000), point(3.0, rule="random"), point(2.9, rule="full", pct=100)]
    for compare in (at_equal_rows, at_equal_tokens, to_all_rows):
        assert len(compare(measured)) == 1
        changed = [measured[0], *(replace(p, run=replace(p.run, conditions="lora")) for p in measured[1:])]
        assert compare(changed) == []


def test_two_values_for_a_seed_are_not_compared():
    assert at_equal_rows([point(2.0), point(2.5), point(3.0, rule="random")]) == []


def test_without_random_rows_nothing_is_said_about_selecting():
    summary = summary_of(point(2.5), point(2.4, rule="full", pct=100))
    assert summary.headline.startswith("No random rows were trained on")
    assert text_of(summary)["Against all rows"].startswith("No difference can be shown: lp at 10%.")
    assert "0.100 higher (−0.041 to +0.241)" in text_of(summary)["Against all rows"]


def test_runs_without_an_evaluation_and_selections_without_training_conclude_nothing():
    trained = summarize(Runs([training_run(), training_run("random")]), [])
    assert trained.headline.startswith("No model is evaluated yet")
    selected = Run(Path("s"), training_run().result | {"command": "select"})
    assert summarize(Runs([selected]), []).headline.startswith("Rows are selected, but no model is trained on them")
    assert summarize(Runs([Run(Path("a"), {"command": "agreement"})]), []).paragraphs == [
        ("Compared", ["1 run: agreement."])
    ]


def test_many_selections_are_counted_instead_of_listed():
    rules = "abcdefgh"
    measured = [point(2.0 + i / 100, rule=rule) for i, rule in enumerate(rules)] + [point(3.0, rule="random")]
    summary = summary_of(*measured)
    assert summary.headline.startswith("At 10% of the rows, a, b, c, d, e and 3 other selections are better")
    assert "3 more comparisons in the table of results" in text_of(summary)["At equal rows"]


def test_percentages_are_named_where_they_differ():
    measured = [point(2.5), point(3.0, rule="random"), point(2.9, pct=25.0), point(2.9, rule="random", pct=25.0)]
    assert summary_of(*measured).headline == (
        "lp at 10% is better than random rows; for lp at 25%, no difference from random rows can be shown."
    )


def of_tokens(p, rows):
    """The point of a selection of a percentage of the tokens."""
    p.run.result["settings"] = {"pct_of": "tokens"}
    p.run.result["training"]["rows"] = rows
    return p


def test_percentages_of_the_tokens_are_compared_at_equal_tokens():
    """lp selects 50 long rows, and random 100; they have 9,990 and 10,000 tokens. Random rows were the baseline."""
    q = of_tokens(point(3.0, rule="random"), rows=100)
    p = replace(of_tokens(point(2.95, tokens=9990), rows=50), baseline=q.run)
    p = replace(p, difference=Interval(-0.05, -0.08, -0.02))
    (compared,) = at_equal_tokens([p, q])
    assert compared.difference == pytest.approx((-0.05, -0.08, -0.02)), "the paired difference of the evaluation"
    assert at_equal_rows([p, q]) == []
    summary = summary_of(p, q)
    assert summary.headline == "At 10% of the tokens, lp is better than random rows with as many training tokens."
    text = text_of(summary)
    assert text["Compared"].startswith("lp and random rows on alpaca (1,000 rows), 10% of the tokens, 1 seed")
    assert text["At equal training tokens"] == (
        "At 10% of the tokens, lp is better than random rows. Held-out NLL in nats, lower is better: lp at 10%: 2.950 "
        "against 3.000, 0.050 lower (−0.080 to −0.020)"
    )
    (axes,) = fraction_figure([p, q], looks([p.run, q.run])).axes
    assert axes.get_xlabel() == "percentage of the tokens"
    both = summary_of(p, q, point(2.9, rule="ifd"))
    assert "10% of the rows or tokens" in text_of(both)["Compared"]


def test_a_win_rate_against_random_rows_with_as_many_tokens_is_the_comparison_at_equal_tokens():
    baseline = of_tokens(point(0, rule="random"), rows=100).run
    p = replace(of_tokens(point(58.1, 4, metric="win_rate", tokens=9990), rows=50), baseline=baseline)
    summary = summary_of(p)
    assert summary.headline == "At 10% of the tokens, lp is better than random rows with as many training tokens."
    assert "lp at 10%: 58.1 against 50.0, 8.1 higher (+4.1 to +12.1)" in text_of(summary)["At equal training tokens"]
    fewer = replace(p, baseline=replace(baseline, result=baseline.result | {"training": {"rows": 100, "tokens": 5000}}))
    assert summary_of(fewer).headline.startswith("No random rows were trained on and measured the same way")
