"""Weights & Biases without an account: offline runs, read back by wandb's own reader, `wandb sync`."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lpsel.errors import UserError
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.tracker import Distribution, Rows
from lpsel.tracking.wandb import WandbTracker, has_account, tracked_run

pytestmark = pytest.mark.usefixtures("no_wandb_account")

KEY = "x" * 40


def sync(server, *folders):
    """Run `wandb sync`, which reads offline files with wandb's own reader, against a local server."""
    done = subprocess.run(
        [Path(sys.executable).parent / "wandb", "sync", *map(str, folders)],
        env=os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_SILENT": "false"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wandb_sync_reads_config_metrics_tables_artifacts_and_parents(tmp_path, wandb_server, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    run_dir = tmp_path / "my runs" / "first"
    run_dir.mkdir(parents=True)
    scores = tmp_path / "scores.parquet"
    scores.write_bytes(b"not really Parquet")
    tracker = WandbTracker(project="lpsel", tags=["one"])
    tracker.start("select", {"pct": 10, "judge": {"url": "http://very-secret-value@host"}}, run_dir, group="tests")
    tracker.use_artifact(Artifact("scores", "scores-abc", scores))
    tracker.log({"target/nll": 1.5}, step=3)
    tracker.log({"records/epoch": 1, "records/lp": Distribution([0.1, np.nan, 0.3, np.inf])})
    tracker.log({"empty": Distribution([np.nan]), "rows": Rows(["row", "text"], [[1, "<b>"], [None, "two"]])})
    tracker.log_artifact(Artifact("subset", "subset-def", scores, metadata={"rows": 4}))
    line = tracker.finish({"n_selected": 4, "bad": float("nan"), "rows_unusable": {"images": 2}})
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    assert line == f"Tracked offline; to upload: wandb sync '{folder}'", "which a shell reads as one path"

    sync(wandb_server, folder)
    first, *_, last = wandb_server.operations["UpsertBucket"]
    assert (first["project"], first["groupName"], first["jobType"]) == ("lpsel", "tests", "select")
    assert (first["displayName"], first["name"]) == ("first", tracked_run(run_dir)["id"])
    assert first["tags"] == ["select", "one"]
    config = {name: entry["value"] for name, entry in json.loads(last["config"]).items()}
    assert config["pct"] == 10
    assert config["judge"] == {"url": "http://***@host"}
    assert config["parents"] == ["scores: scores-abc"]

    ((_, lines),) = wandb_server.history.items()
    metric, records, table = map(json.loads, lines)
    assert (metric["target/nll"], metric["trainer/global_step"]) == (1.5, 3)
    assert sum(records["records/lp"]["values"]) == 2, "only finite values are counted"
    assert records["records/epoch"] == 1
    assert "empty" not in table
    assert table["rows"]["_type"] == "table-file"
    assert (table["rows"]["nrows"], table["rows"]["ncols"]) == (2, 2)
    (kept,) = [body for path, body in wandb_server.uploads.items() if path.endswith(".table.json")]
    assert json.loads(kept)["data"] == [[1, "<b>"], [None, "two"]]

    made = {
        operation["input"]["artifactCollectionName"]: operation["input"]
        for operation in wandb_server.operations["CreateArtifact"]
    }
    assert made["subset-def"]["artifactTypeName"] == "subset"
    assert json.loads(made["subset-def"]["metadata"]) == {"rows": 4}
    (used,) = [operation["input"] for operation in wandb_server.operations["UseArtifact"]]
    parent = made["scores-abc"]
    answered = wandb_server.answer("CreateArtifact", {"input": parent})["createArtifact"]["artifact"]["id"]
    assert (used["artifactID"], used["runName"]) == (answered, first["name"])
    result = {"n_selected": 4, "bad": None, "rows_unusable": {"images": 2}}
    assert wandb_server.summary[first["name"]]["result"] == result
    assert wandb_server.exit_codes == {first["name"]: 0}
    assert not list((tmp_path / "data").rglob("*.parquet*")), "files are read in place"


def test_an_unfinished_command_resumes_its_wandb_run(tmp_path, wandb_server):
    folders, lines = [], []
    for result, nll in ((None, 3.0), ({}, 2.0), ({}, 1.0)):
        tracker = WandbTracker(project="lpsel")
        tracker.start("train", {}, tmp_path)
        tracker.log({"target/nll": nll}, step=int(3 - nll))
        lines.append(tracker.finish(result))
        folders.append(tracker.directory)
        time.sleep(1)  # W&B names a folder by the second
    first, second, third = folders
    uploaded = ([first], [first, second], [third])
    assert lines == [f"Tracked offline; to upload: wandb sync {shlex.join(map(str, every))}" for every in uploaded]
    assert first.name.split("-")[-1] == second.name.split("-")[-1], "the first did not finish"
    assert third.name.split("-")[-1] != first.name.split("-")[-1], "the second did"
    sync(wandb_server, first, second, third)
    values = {run: [json.loads(line)["target/nll"] for line in lines] for run, lines in wandb_server.history.items()}
    assert values == {first.name.split("-")[-1]: [3.0, 2.0], third.name.split("-")[-1]: [1.0]}


def test_with_an_account_a_run_is_online_and_has_the_same_parents(tmp_path, wandb_server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    (scores := tmp_path / "scores.parquet").write_bytes(b"not really Parquet")
    tracker = WandbTracker(project="lpsel")
    tracker.start("select", {}, tmp_path)
    tracker.use_artifact(Artifact("scores", "scores-abc", scores))
    tracker.log({"rows": Rows(["text"], [["one"]])})
    tracker.log_artifact(Artifact("subset", "subset-def", scores))
    assert tracker.finish({}) == f"Tracked at {wandb_server.url}/somebody/lpsel/runs/{tracker.run.id}"
    assert tracked_run(tmp_path) == {"id": tracker.run.id, "project": "lpsel", "entity": "somebody", "finished": True}
    made = [operation["input"]["artifactCollectionName"] for operation in wandb_server.operations["CreateArtifact"]]
    assert {"scores-abc", "subset-def"} <= set(made)
    assert [operation["input"]["runName"] for operation in wandb_server.operations["UseArtifact"]] == [tracker.run.id]
    assert wandb_server.exit_codes == {tracker.run.id: 0}


def test_a_run_is_tracked_offline_if_the_server_rejects_it(tmp_path, wandb_server, monkeypatch, caplog):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    begin = wandb.init

    def reject(**arguments):
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return begin(**arguments)

    monkeypatch.setattr(wandb, "init", reject)
    tracker = WandbTracker(project="lpsel")
    tracker.start("train", {}, tmp_path)
    assert tracker.finish({}).startswith("Tracked offline")
    assert "W&B cannot be reached (no route to host); this run is tracked offline" in caplog.text
    with pytest.raises(UserError, match=r"tracker=wandb: cannot start a run \(no route to host\)"):
        WandbTracker(project="lpsel", mode="online").start("train", {}, tmp_path)


def test_a_rejected_key_means_an_offline_run_or_a_one_line_error(tmp_path, wandb_server, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    wandb_server.rejects = True
    tracker = WandbTracker(project="lpsel")
    tracker.start("train", {}, tmp_path)
    assert tracker.finish({}).startswith("Tracked offline")
    assert "this run is tracked offline" in caplog.text
    with pytest.raises(UserError, match="tracker=wandb: cannot start a run") as caught:
        WandbTracker(project="lpsel", mode="online").start("train", {}, tmp_path)
    assert "\n" not in str(caught.value)
    assert KEY not in caplog.text + str(caught.value)


def test_a_run_that_never_started_has_nothing_to_finish():
    assert WandbTracker(project="lpsel").finish(None) is None


def test_an_account_is_a_key_or_a_netrc_entry(monkeypatch, tmp_path):
    assert not has_account()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_account()
    assert WandbTracker(project="lpsel").mode == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not has_account()


def test_online_without_an_account_is_an_error_without_a_prompt():
    with pytest.raises(UserError, match="Run wandb login") as caught:
        WandbTracker(project="lpsel", mode="online")
    assert (caught.value.name, caught.value.value) == ("tracker.mode", "online")


def test_wandb_mode_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert WandbTracker(project="lpsel").mode == "offline"


def test_an_unknown_mode_is_an_error():
    with pytest.raises(UserError, match="maybe: must be online or offline"):
        WandbTracker(project="lpsel", mode="maybe")
