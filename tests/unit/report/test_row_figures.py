"""Figures of rows and costs, from real runs of a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.report import row_figures
from lpsel.report.looks import looks
from lpsel.report.runs import find_runs


@pytest.fixture(scope="module")
def runs(few_runs):
    return find_runs([few_runs])


def test_a_selection_that_has_changed_is_left_out(runs, tmp_path, caplog):
    run = next(run for run in runs.finished if run.get("sha256") and run.bucket)
    assert row_figures.length_figure(run, "black") is not None
    (tmp_path / "selection.parquet").write_bytes((run.folder / "selection.parquet").read_bytes() + b" ")
    assert row_figures.length_figure(replace(run, folder=tmp_path), "black") is None
    assert "selection.parquet: has changed since it was written" in caplog.text


def test_trajectories_lengths_and_costs_of_real_runs(runs):
    chosen = runs.by_command("train")
    scored = next(r for r in chosen if r.get("scores"))
    (axes,) = row_figures.trajectory_figure(Path(scored.get("scores"))).axes
    assert len(axes.lines) == 2
    assert row_figures.length_figure(scored, "black") is not None
    assert row_figures.length_figure(next(r for r in chosen if r.rule == "full"), "black") is None
    (axes,) = row_figures.ledger_figure(chosen, looks(chosen)).axes
    ends = sorted(trained.get_x() + trained.get_width() for trained in axes.patches[1 : 2 * len(chosen) : 2])
    spent = [100 - 100 * r.get("ledger", "saved", "share") for r in chosen]
    assert ends == pytest.approx(sorted(spent))


def test_agreement_is_the_spearman_correlation_of_two_scorers(runs):
    scored = [r for r in runs.by_command("train") if r.bucket == "low"]
    (axes,) = row_figures.score_agreement_figure(scored).axes
    found_SS = axes.images[0].get_array()
    scores = [pq.read_table(r.get("selection")).to_pandas()["score"] for r in scored]
    assert found_SS[0, 1] == pytest.approx(scores[0].corr(scores[1], method="spearman"))  # by pandas
    assert found_SS[0, 1] < 0.99
    assert np.ma.is_masked(found_SS[0, 0])
