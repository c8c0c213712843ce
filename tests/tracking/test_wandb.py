"""Weights & Biases without an account: what is written offline, read back with wandb's own record types."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lpsel.errors import UserError
from lpsel.tracking.base import Artifact
from lpsel.tracking.wandb import WandbTracker, has_account

BLOCK, FULL, LAST = 32_768, 1, 4


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def records(folder):
    """Everything in an offline run's file, in order: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data = next(Path(folder).glob("offline-run-*/run-*.wandb")).read_bytes()
    assert data[:4] == b":W&B"
    found, whole, at = [], b"", 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def test_an_offline_run_holds_config_metrics_artifacts_and_parents(tmp_path):
    run_dir = tmp_path / "runs" / "first"
    run_dir.mkdir(parents=True)
    scores = tmp_path / "scores.parquet"
    scores.write_bytes(b"not really Parquet")
    tracker = WandbTracker(project="lpsel", group="tests", tags=["one"])
    tracker.start("select", {"pct": 10}, run_dir)
    tracker.used(Artifact("scores", "scores-abc", scores))
    tracker.log({"nll": 1.5})
    tracker.histogram("lp/all", [0.1, np.nan, 0.3])
    tracker.made(Artifact("subset", "subset-def", scores, metadata={"rows": 4}))
    line = tracker.finish({"n_selected": 4, "bad": float("nan")})
    assert line.startswith("Tracked offline; to upload: wandb sync ")
    assert Path(line.rsplit(" ", 1)[1]).is_dir()

    found = records(run_dir / "wandb")
    run = next(r.run for r in found if r.HasField("run"))
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("lpsel", "tests", "select", "first")
    assert set(run.tags) == {"select", "one"}
    config = {u.key or u.nested_key[0]: u.value_json for r in found for u in (*r.run.config.update, *r.config.update)}
    assert config["pct"] == "10"
    assert json.loads(config["parents"]) == ["scores: scores-abc"]
    artifacts = {a.name: a for r in found if r.HasField("request") for a in [r.request.log_artifact.artifact] if a.name}
    artifacts |= {r.artifact.name: r.artifact for r in found if r.HasField("artifact")}
    assert artifacts["scores-abc"].use_after_commit
    assert not artifacts["subset-def"].use_after_commit
    history = {item.key or item.nested_key[0] for r in found for item in r.history.item}
    assert {"nll", "lp/all"} <= history, history


def test_a_run_that_fails_is_marked_so(tmp_path):
    tracker = WandbTracker(project="lpsel")
    tracker.start("train", {}, tmp_path)
    tracker.finish(None)
    assert next(r.exit.exit_code for r in records(tmp_path / "wandb") if r.HasField("exit")) == 1


def test_a_run_that_never_started_has_nothing_to_finish():
    assert WandbTracker(project="lpsel").finish(None) is None


def test_an_account_is_known_by_key_or_netrc(monkeypatch, tmp_path):
    assert not has_account()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert has_account()
    assert WandbTracker(project="lpsel").mode == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_account()


def test_the_environments_mode_counts(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert WandbTracker(project="lpsel").mode == "offline"


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"tracker.mode=maybe: must be online or offline; .* say tracker=none"):
        WandbTracker(project="lpsel", mode="maybe")
