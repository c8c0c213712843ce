"""`lpsel report --wandb` without an account, and its specification as wandb-workspaces reads it back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpsel.commands.report import report
from lpsel.errors import UserError
from lpsel.report.points import points
from lpsel.report.runs import Run, Runs, find_runs
from lpsel.report.wandb import FLOPS, PCT, explorer_pages, panels

pytest.importorskip("wandb_workspaces", reason="wandb_workspaces is not installed: pip install 'lpsel[wandb-report]'")


def test_curves_and_bars_are_means_of_the_points(few_runs):
    measured = points(find_runs([few_runs]))
    (panel,) = panels(measured)
    assert panel.title.startswith("held-out NLL")
    low = next(p for p in measured if p.run.bucket == "low" and p.run.scorer == "toy-llama")
    assert panel.lines[PCT][f"quality 1/{low.run.series}"] == {25.0: low.value}
    assert panel.lines[PCT]["quality 1/full → toy-llama"].keys() == {100.0}
    assert panel.lines[FLOPS][f"cost 1/{low.run.series}"] == {low.run.flops: low.value}
    assert panel.bars == {f"bars 1/{p.run.series}, 25%": p.value for p in measured if p.run.bucket}


def test_run_folders_with_the_same_name_keep_their_explorer_pages(tmp_path):
    folders = [tmp_path / name for name in ("a/full", "b/full", "b/other")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "explore.html").touch()
    runs = Runs([Run(folder, {"command": "train"}) for folder in folders])
    pages = [folder / "explore.html" for folder in folders]
    assert explorer_pages(runs) == dict(zip(["explorer/full", "explorer/full-2", "explorer/other"], pages, strict=True))


@pytest.mark.slow
def test_panels_show_what_the_reports_run_has_logged(few_runs, tmp_path, no_wandb_account, wandb_server, capsys):
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, PanelGrid, Report
    from wandb_workspaces.reports.v2.internal import ReportViewspec

    (few_runs / "train" / "full" / "wandb").mkdir(exist_ok=True)
    kept = few_runs / "train" / "full" / "wandb" / "lpsel.json"
    kept.write_text(json.dumps({"id": "abc", "project": "mine", "entity": None, "finished": True}))
    explorer = few_runs / "train" / "full" / "explore.html"
    explorer.write_text("<title>Rows of full</title>")
    page = report([str(few_runs)], tmp_path / "out", wandb=True)
    kept.unlink()
    explorer.unlink()
    assert page.is_file()
    assert "No W&B account: the specification of the report is in" in capsys.readouterr().out

    spec = json.loads((tmp_path / "out" / "wandb-report.json").read_text())
    assert (spec["displayName"], spec["project"]["name"]) == ("lpsel: runs and results", "mine")
    blocks = Report._from_model(ReportViewspec.model_validate(spec)).blocks
    assert blocks[0].text.startswith("No random rows were trained on")
    grids = [block for block in blocks if isinstance(block, PanelGrid)]
    assert grids[-1].runsets[0].filters == "Metric(\"ID\") in ['abc']"

    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    wandb = [Path(sys.executable).parent / "wandb", "sync", str(folder)]
    environment = os.environ | {"WANDB_BASE_URL": wandb_server.url, "WANDB_API_KEY": "x" * 40}
    subprocess.run(wandb, env=environment, check=True, capture_output=True, timeout=120)
    ((own, lines),) = wandb_server.history.items()
    logged = set().union(*map(json.loads, lines))
    assert grids[0].runsets[0].filters == f"Metric(\"ID\") in ['{own}']"
    costs, curves, bars = grids[0].panels
    assert isinstance(curves, LinePlot)
    assert isinstance(bars, BarPlot)
    assert (costs.x.name, curves.x.name) == (FLOPS, PCT)
    shown = {metric.name for metric in (*costs.y, *curves.y, *bars.metrics)} | {FLOPS, PCT}
    assert len(shown) == 16  # five selections twice, four bars of buckets, FLOPs and the percentage
    assert shown <= logged
    pictures = {f"figure/{path.stem}" for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert pictures <= logged
    assert set(grids[1].panels[0].media_keys) == pictures
    assert set(grids[2].panels[0].media_keys) == {"explorer/full"} <= logged
    assert {"table/runs", "table/costs", "table/evaluations"} <= logged


def test_a_later_report_in_the_same_folder_keeps_the_runs_that_are_not_synced(few_runs, tmp_path, no_wandb_account):
    def written():
        return {folder.name for folder in (tmp_path / "out" / "wandb").glob("offline-run-*")}

    given = [str(few_runs / "evaluate")]
    report(given, tmp_path / "out", wandb=True)
    (first,) = written()
    data = {path.name: path.read_bytes() for path in (tmp_path / "out" / "wandb" / first).glob("*.wandb")}
    assert report(given, tmp_path / "out", wandb=True).is_file()
    assert report(given, tmp_path / "out").is_file()
    assert len(written()) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "wandb" / first).glob("*.wandb")} == data
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"mine\.txt in it was not written by lpsel report"):
        report(given, tmp_path / "out")


def test_with_an_account_the_report_is_saved(few_runs, tmp_path, no_wandb_account, wandb_server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    report([str(few_runs / "evaluate")], tmp_path / "out", wandb=True)
    assert "W&B report: http" in capsys.readouterr().out
    (saved,) = wandb_server.operations["upsertView"]
    assert (saved["entityName"], saved["projectName"], saved["type"]) == ("somebody", "lpsel", "runs")
