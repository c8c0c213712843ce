"""The report's figures, of real runs of a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.report import row_figures, run_figures, tables
from lpsel.report.figures import INK
from lpsel.report.runs import collect, points


@pytest.fixture(scope="module")
def found(few_runs):
    return collect([str(few_runs)])


def test_bars_stand_at_the_figures_of_their_buckets(found):
    measured = points(found)
    (axes,) = run_figures.bucket_figure(measured, INK).axes
    heights = sorted(bar.get_height() for bar in axes.patches if bar.get_height())
    assert heights == pytest.approx(sorted(p.value for p in measured if p.run.bucket))
    assert len(heights) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "lp_app, 25 %\nother-scorer",
        "lp_app, 25 %\ntoy-llama",
    ]
    intervals = {tuple(line.get_ydata()) for line in axes.lines}
    assert intervals == {(p.low, p.high) for p in measured if p.run.bucket}


def test_a_selection_that_has_changed_is_in_no_figure(found, tmp_path, caplog):
    run = next(run for run in found.runs if run.get("sha256") and run.bucket)
    assert row_figures.length_figure(run, INK) is not None
    (tmp_path / "selection.parquet").write_bytes((run.folder / "selection.parquet").read_bytes() + b" ")
    assert row_figures.length_figure(replace(run, folder=tmp_path), INK) is None
    assert "selection.parquet: has changed since it was written" in caplog.text


def test_one_bucket_alone_is_no_figure(found):
    assert run_figures.bucket_figure([p for p in points(found) if p.run.bucket == "low"], INK) is None


def test_every_scorer_and_target_has_its_figure(found):
    measured = [p for p in points(found) if p.run.bucket == "high"]
    (axes,) = run_figures.scorer_target_figure(measured, INK).axes
    of = {p.run.scorer: p.value for p in measured}
    assert [label.get_text() for label in axes.get_yticklabels()] == sorted(of)
    assert axes.images[0].get_array()[:, 0].tolist() == pytest.approx([of[name] for name in sorted(of)])
    assert run_figures.scorer_target_figure([p for p in measured if p.run.scorer == "toy-llama"], INK) is None


def test_differences_are_the_paired_ones_where_all_rows_were_the_baseline(found):
    measured = points(found)
    full = next(p.value for p in measured if p.run.rule == "full")
    made = run_figures.differences(measured)
    assert len(made) == 4
    for p, (value, low, high) in made:
        assert value == pytest.approx(p.value - full)
        assert low <= value <= high
        assert high - low < p.high - p.low, "rows differ more than models do"
    assert len(run_figures.difference_figure(measured, INK).axes) == 1


def test_many_rules_at_one_share_stand_below_each_other_the_best_on_top(found):
    one = next(p for p in points(found) if p.run.bucket == "low")
    full = next(p for p in points(found) if p.run.rule == "full")
    values = {"g": (3.0, 3.2), "a": (2.0, 2.6), "b": (2.1, 2.2), "c": (2.5,), "d": (2.6,), "e": (2.7,), "f": (2.8,)}
    many = [
        replace(one, run=replace(one.run, result=one.run.result | {"rule": rule, "seed": seed, "bucket": None}),
                value=value, low=value - 0.1, high=value + 0.1)
        for rule, of in values.items() for seed, value in enumerate(of)
    ]  # fmt: skip
    (axes,) = run_figures.share_figure([full, *many], INK).axes
    names = [label.get_text().split(" ")[0] for label in axes.get_yticklabels()]
    assert names == ["b", "a", "c", "d", "e", "f", "g"], "by the mean of the seeds"
    assert axes.get_xlabel() == "held-out NLL, nats per token, at 25 %"
    assert full.value in {line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())}
    (axes,) = run_figures.share_figure([full, *many[:6]], INK).axes
    assert axes.get_xlabel() == "share of the rows, %"


def test_series_differ_in_colour_or_marker():
    assert len({run_figures.look(k) for k in range(36)}) == 36


def test_trajectories_lengths_and_costs_can_be_drawn_of_real_runs(found):
    chosen = found.of("train")
    scored = next(r for r in chosen if r.get("scores"))
    (axes,) = row_figures.trajectory_figure(Path(scored.get("scores")), INK).axes
    assert len(axes.lines) == 2
    assert row_figures.length_figure(scored, INK) is not None
    assert row_figures.length_figure(next(r for r in chosen if r.rule == "full"), INK) is None
    (axes,) = row_figures.ledger_figure(chosen, [r.name for r in chosen], INK).axes
    ends = sorted(trained.get_x() + trained.get_width() for trained in axes.patches[1::2])
    of_all = [100 - 100 * r.get("ledger", "saved", "share") for r in chosen]
    assert ends == pytest.approx(sorted(of_all))


def test_agreement_is_spearmans_of_two_scorers(found):
    scored = [r for r in found.of("train") if r.bucket == "low"]
    (axes,) = row_figures.agreement_figure(scored, INK).axes
    found_SS = axes.images[0].get_array()
    scores = [pq.read_table(r.get("selection")).to_pandas()["score"] for r in scored]
    assert found_SS[0, 1] == pytest.approx(scores[0].corr(scores[1], method="spearman"))  # by pandas
    assert found_SS[0, 1] < 0.99
    assert np.ma.is_masked(found_SS[0, 0])


def test_costs_are_those_of_the_ledgers(found):
    rows = {row["run"]: row for row in tables.cost_rows(found)}
    for run in found.of("train"):
        row = rows[run.name]
        assert row["saved FLOPs"] == row["everything FLOPs"] - row["choosing FLOPs"] - row["training FLOPs"]
