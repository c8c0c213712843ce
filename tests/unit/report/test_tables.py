"""Tables of the report, from real runs of a tiny model."""

import json
from dataclasses import replace

import pytest

from lpsel.report import tables
from lpsel.report.cells import readable
from lpsel.report.points import points
from lpsel.report.quality_tables import result_rows
from lpsel.report.runs import Run, find_runs


def test_costs_are_those_of_the_ledgers(few_runs):
    runs = find_runs([few_runs])
    rows = {row["run"]: row for row in tables.cost_rows(runs)}
    for run in runs.by_command("train"):
        row = rows[run.name]
        assert row["saved FLOPs"] == row["all rows FLOPs"] - row["scoring FLOPs"] - row["training FLOPs"]


def test_unusable_rows_are_listed_with_their_runs(sweep):
    path = sweep / "1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows_unusable": {"images": 1200, "no turns": 3}}))
    runs = find_runs([sweep])
    rows = {row["run"]: row["unusable rows"] for row in tables.run_rows(runs, points(runs))}
    assert {run: kinds for run, kinds in rows.items() if kinds} == {"sweep/1": "images (1,200), no turns (3)"}
    assert "unusable rows" in readable([*tables.run_rows(runs, points(runs))]).columns


def test_diagnoses_are_those_of_the_selections(few_runs):
    runs = find_runs([few_runs])
    rows = {row["run"]: row for row in tables.diagnosis_rows(runs)}
    selections = runs.by_command("train", "select")
    assert len(rows) == len(selections) > 0
    for run in selections:
        row, found = rows[run.name], run.get("diagnosis")
        assert (row["known"], row["of all rows"]) == (found["known"], found["median_response"]["all"])
        assert row["Spearman with response_tokens"] == (found["spearman"] or {}).get("response_tokens")


def test_results_are_means_over_seeds_with_an_interval_of_the_mean(sweep, another_seed):
    another_seed(sweep, "4", seed=2)
    measured = points(find_runs([sweep]))
    for p in measured:
        p.run.result["training"] = {"tokens": 1000 * p.run.pct}
    rows = {(row["selection"], row["pct"]): row for row in result_rows(measured)}
    assert [*rows] == [("lp", 5), ("lp", 10), ("lp", 25), ("random", 10)]
    row = rows["lp", 5]
    # 48 and 52: mean 50, sd 2.83, standard error 2, and t = 12.706 with one degree of freedom
    assert (row["seeds"], row["n"], row["value"], row["problem"]) == ("1, 2", "100", 50, None)
    assert row["sd"] == pytest.approx(8**0.5)
    assert (row["low"], row["high"]) == pytest.approx((50 - 2 * 12.706, 50 + 2 * 12.706), abs=1e-3)
    one = rows["lp", 10]
    assert (one["seeds"], one["value"], one["low"], one["high"], one["sd"]) == ("1", 53, 49, 57, None)
    # 53 ± 4 minus 49 ± 4, independent: 4 ± 4 times the square root of 2
    for name in ("minus random", "minus random, equal tokens"):  # the same random rows
        difference = [one[f"{name}{end}"] for end in ("", " low", " high")]
        assert difference == pytest.approx((4, 4 - 4 * 2**0.5, 4 + 4 * 2**0.5))
    assert (row["minus random"], one["total FLOPs"], one["FLOPs, % of all rows"]) == (None, 40, 40)


def test_the_untrained_model_is_a_row_of_the_results(sweep):
    evaluation = Run(sweep, {"models": [{"name": "m", "metrics": {"nll": {"value": 3.2}}}]})
    measured = [replace(p, metric="nll", evaluation=evaluation) for p in points(find_runs([sweep]))]
    *trained, row = result_rows(measured)
    assert {each["selection"] for each in trained} == {"lp", "random"}
    assert {name: value for name, value in row.items() if value is not None} == {
        "selection": "untrained", "metric": "nll", "value": 3.2, "against": measured[0].against,
    }  # fmt: skip


def test_two_values_for_a_seed_have_no_mean(sweep, another_seed):
    another_seed(sweep, "4", seed=2)
    another_seed(sweep, "5", seed=1)
    row = result_rows(points(find_runs([sweep])))[0]
    assert (row["value"], row["problem"]) == (None, "two values for seed 1")


def test_a_trial_with_few_prompts_is_not_averaged_with_others(sweep, another_seed):
    another_seed(sweep, "4", seed=2)
    path = sweep / "e4" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n": 10}))
    assert {row["seeds"] for row in result_rows(points(find_runs([sweep])))} == {"1", "2"}


def test_comparisons_and_warnings_of_evaluations(sweep):
    pair = {"models": ["lp", "random"], "n": 90, "difference": 4.0, "ci_low": 1.0, "ci_high": 7.0, "p_value_holm": 0.02}
    path = sweep / "e0" / "result.json"
    changes = {"comparisons": [pair], "warnings": ["The judge carries no information."], "informative": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    runs = find_runs([sweep])
    (row,) = tables.difference_rows(runs)
    names = ("model", "minus", "value", "low", "high", "p value holm", "n")
    assert [row[name] for name in names] == ["lp", "random", 4, 1, 7, 0.02, 90]
    assert [row["text"] for row in tables.warning_rows(runs)] == ["The judge carries no information."]
    assert {p.run.folder.name for p in points(runs)} == {"1", "2", "3"}


def test_seeds_of_many_models_are_looked_up_once_per_evaluation(sweep, monkeypatch):
    """Each lookup resolves the folders of all runs, and 60 models have 1,770 pairs."""
    pairs = [{"models": [str(sweep / name / "model"), "b"], "n": 9, "difference": 1} for name in "01"] * 20
    path = sweep / "e0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"comparisons": pairs}))
    runs, lookup, calls = find_runs([sweep]), tables.trained_models, []
    monkeypatch.setattr(tables, "trained_models", lambda *given: calls.append(given) or lookup(*given))
    rows = tables.difference_rows(runs)
    assert [row["seed"] for row in rows] == [1, None] * 20, "e0 evaluates only the first"
    assert len(calls) == len(runs.by_command("evaluate")) == 4
