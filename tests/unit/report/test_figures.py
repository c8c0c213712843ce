"""Figures of quality, rows and costs, from real runs of a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.report import figures, line_figures
from lpsel.report.comparisons import differences
from lpsel.report.drawing import looks
from lpsel.report.points import points
from lpsel.report.runs import find_runs


@pytest.fixture(scope="module")
def runs(few_runs):
    return find_runs([few_runs])


def styles(measured):
    return looks([p.run for p in measured])


def test_bars_show_the_values_of_their_buckets(runs):
    measured = points(runs)
    (axes,) = figures.bucket_figure(measured, styles(measured)).axes
    heights = sorted(bar.get_height() for bar in axes.patches if bar.get_height())
    assert heights == pytest.approx(sorted(p.value for p in measured if p.run.bucket))
    assert len(heights) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "lp_app, 25%\nother-scorer",
        "lp_app, 25%\ntoy-llama",
    ]
    intervals = {tuple(line.get_ydata()) for line in axes.lines}
    assert intervals == {(p.low, p.high) for p in measured if p.run.bucket}


def test_a_single_bucket_has_no_figure(runs):
    low = [p for p in points(runs) if p.run.bucket == "low"]
    assert figures.bucket_figure(low, styles(low)) is None


def test_every_scorer_and_target_has_its_mean(runs):
    measured = [p for p in points(runs) if p.run.bucket == "high"]
    (axes,) = figures.scorer_target_figure(measured).axes
    values = {p.run.scorer: p.value for p in measured}
    assert [label.get_text() for label in axes.get_yticklabels()] == sorted(values)
    assert axes.images[0].get_array()[:, 0].tolist() == pytest.approx([values[name] for name in sorted(values)])
    assert figures.scorer_target_figure([p for p in measured if p.run.scorer == "toy-llama"]) is None


def test_differences_are_paired_if_the_baseline_was_trained_on_all_rows(runs):
    measured = points(runs)
    full = next(p.value for p in measured if p.run.rule == "full")
    selected = [p for p in measured if p.run.rule != "full"]
    for p, differing in zip(selected, differences(measured), strict=True):
        assert differing.value == pytest.approx(p.value - full)
        assert differing.low <= differing.value <= differing.high
        assert differing.high - differing.low < p.high - p.low, "rows differ more than models do"
    assert len(line_figures.difference_figure(measured, styles(measured)).axes) == 1


def test_many_rules_at_one_percentage_become_rows_with_the_best_first(runs):
    one = next(p for p in points(runs) if p.run.bucket == "low")
    full = next(p for p in points(runs) if p.run.rule == "full")
    values = {"g": (3.0, 3.2), "a": (2.0, 2.6), "b": (2.1, 2.2), "c": (2.5,), "d": (2.6,), "e": (2.7,), "f": (2.8,)}
    values |= {"h": (3.2,), "i": (3.3,)}
    many = [
        replace(one, run=replace(one.run, result=one.run.result | {"rule": rule, "seed": seed, "bucket": None}),
                value=value, low=value - 0.1, high=value + 0.1)
        for rule, by_seed in values.items() for seed, value in enumerate(by_seed)
    ]  # fmt: skip
    (axes,) = line_figures.fraction_figure([full, *many], styles([full, *many])).axes
    names = [label.get_text().split(" ")[0] for label in axes.get_yticklabels()]
    assert names == ["b", "a", "c", "d", "e", "f", "g", "h", "i"], "by the mean of the seeds"
    assert axes.get_xlabel() == "held-out NLL, nats per token (lower is better), at 25%"
    assert full.value in {line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())}
    (axes,) = line_figures.fraction_figure([full, *many[:6]], styles([full, *many])).axes
    assert axes.get_xlabel() == "percentage of the rows"


def test_a_selection_that_has_changed_is_left_out(runs, tmp_path, caplog):
    run = next(run for run in runs.finished if run.get("sha256") and run.bucket)
    assert figures.length_figure(run, "black") is not None
    (tmp_path / "selection.parquet").write_bytes((run.folder / "selection.parquet").read_bytes() + b" ")
    assert figures.length_figure(replace(run, folder=tmp_path), "black") is None
    assert "selection.parquet: has changed since it was written" in caplog.text


def test_trajectories_lengths_and_costs_of_real_runs(runs):
    chosen = runs.by_command("train")
    scored = next(r for r in chosen if r.get("scores"))
    (axes,) = figures.trajectory_figure(Path(scored.get("scores"))).axes
    assert len(axes.lines) == 2
    assert figures.length_figure(scored, "black") is not None
    assert figures.length_figure(next(r for r in chosen if r.rule == "full"), "black") is None
    (axes,) = figures.ledger_figure(chosen, looks(chosen)).axes
    ends = sorted(trained.get_x() + trained.get_width() for trained in axes.patches[1 : 2 * len(chosen) : 2])
    spent = [100 - 100 * r.get("ledger", "saved", "share") for r in chosen]
    assert ends == pytest.approx(sorted(spent))


def test_agreement_is_the_spearman_correlation_of_two_scorers(runs):
    scored = [r for r in runs.by_command("train") if r.bucket == "low"]
    (axes,) = figures.score_agreement_figure(scored).axes
    found_SS = axes.images[0].get_array()
    scores = [pq.read_table(r.get("selection")).to_pandas()["score"] for r in scored]
    assert found_SS[0, 1] == pytest.approx(scores[0].corr(scores[1], method="spearman"))  # by pandas
    assert found_SS[0, 1] < 0.99
    assert np.ma.is_masked(found_SS[0, 0])
