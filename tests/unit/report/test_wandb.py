"""`lpsel report --wandb` without an account, and its specification as wandb-workspaces reads it back."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lpsel.commands.report import report
from lpsel.report.runs import find_runs, points
from lpsel.report.wandb import PCT, panels

pytest.importorskip("wandb_workspaces", reason="wandb_workspaces is not installed: pip install 'lpsel[wandb-report]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "tracking"))
from wandb_server import WandbServer


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield
    import wandb

    wandb.teardown()  # it reads the environment once


@pytest.fixture
def server():
    serving = WandbServer()
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def test_curves_and_bars_are_means_of_the_points(few_runs):
    measured = points(find_runs([few_runs]))
    (panel,) = panels(measured)
    assert panel.title.startswith("held-out NLL")
    low = next(p for p in measured if p.run.bucket == "low" and p.run.scorer == "toy-llama")
    assert panel.curves[f"quality 1/{low.run.series}"] == {25.0: low.value}
    assert panel.curves["quality 1/full → toy-llama"].keys() == {100.0}
    assert panel.bars == {f"bars 1/{p.run.series}, 25 %": p.value for p in measured if p.run.bucket}


def test_panels_show_what_the_reports_run_has_logged(few_runs, tmp_path, no_account, server, capsys):
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, PanelGrid, Report
    from wandb_workspaces.reports.v2.internal import ReportViewspec

    (few_runs / "train" / "full" / "wandb").mkdir(exist_ok=True)
    kept = few_runs / "train" / "full" / "wandb" / "lpsel.json"
    kept.write_text(json.dumps({"id": "abc", "project": "mine", "entity": None, "finished": True}))
    page = report([str(few_runs)], tmp_path / "out", wandb=True)
    kept.unlink()
    assert page.is_file()
    assert "No W&B account: the specification of the report is in" in capsys.readouterr().out

    spec = json.loads((tmp_path / "out" / "wandb-report.json").read_text())
    assert (spec["displayName"], spec["project"]["name"]) == ("lpsel: runs and results", "mine")
    blocks = Report._from_model(ReportViewspec.model_validate(spec)).blocks
    grids = [block for block in blocks if isinstance(block, PanelGrid)]
    assert grids[-1].runsets[0].filters == "Metric(\"ID\") in ['abc']"

    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    wandb = [Path(sys.executable).parent / "wandb", "sync", str(folder)]
    environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40}
    subprocess.run(wandb, env=environment, check=True, capture_output=True, timeout=120)
    ((own, lines),) = server.history.items()
    logged = set().union(*map(json.loads, lines))
    assert grids[0].runsets[0].filters == f"Metric(\"ID\") in ['{own}']"
    curves, bars = grids[0].panels
    assert isinstance(curves, LinePlot)
    assert isinstance(bars, BarPlot)
    assert curves.x.name == PCT
    shown = {metric.name for metric in (*curves.y, *bars.metrics)} | {PCT}
    assert len(shown) == 10  # five selections, four bars of buckets, the percentage
    assert shown <= logged
    pictures = {f"figure/{path.stem}" for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert pictures <= logged
    assert set(grids[1].panels[0].media_keys) == pictures
    assert {"table/runs", "table/costs", "table/evaluations"} <= logged


def test_with_an_account_the_report_is_saved(few_runs, tmp_path, no_account, server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    report([str(few_runs / "evaluate")], tmp_path / "out", wandb=True)
    assert "W&B report: http" in capsys.readouterr().out
    (saved,) = server.operations["upsertView"]
    assert (saved["entityName"], saved["projectName"], saved["type"]) == ("somebody", "lpsel", "runs")
