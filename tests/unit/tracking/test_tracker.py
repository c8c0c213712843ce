"""Trackers: errors that do not stop a run, and what a training run and an evaluation log."""

import json

import pytest

from lpsel.commands.job import run
from lpsel.commands.tracked_values import log_evaluation
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.tracker import Distribution, Rows, SafeTracker, Tracker


class Broken(Tracker):
    """Starts, and then fails in every method."""

    enabled = True

    def log(self, values, step=None):
        raise RuntimeError("the server is on fire\nand more")

    use_artifact = log_artifact = finish = log


class Recording(Tracker):
    """Appends logged values to a list that all instances share."""

    enabled = True
    logged: list = []  # noqa: RUF012

    def log(self, values, step=None):
        self.logged.append(dict(values))


@pytest.fixture
def overrides(toy_model, instructions, tmp_path):
    scorer = ["scorer=local", f"scorer.path={toy_model}", "scorer.recipe.epochs=2"]
    target = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1"]
    data = ["dataset=local", f"dataset.path={instructions(rows=12)}", "cluster=none", "pct=50", "trainer=cpu"]
    return [*scorer, *target, *data, f"cache_dir={tmp_path}/cache", "selection=lp_app"]


def test_a_tracker_that_fails_does_not_stop_the_run(overrides, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lpsel.tracking.csv.CSVTracker", Broken)
    result = run("train", [*overrides, "tracker=csv"], tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["training"] == result["training"]
    warnings = [record.message for record in caplog.records if record.message.startswith("Tracking")]
    assert warnings == [
        f"Tracking: {method} failed (the server is on fire); the run continues"
        for method in ("log", "use_artifact", "log_artifact", "finish")
    ]


def test_an_error_at_the_start_is_raised():
    class Refusing(Tracker):
        def start(self, *_):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        SafeTracker(Refusing()).start("train", {}, None)
    SafeTracker(Tracker()).use_artifact(Artifact("scores", "a", None))


def test_values_that_a_training_run_and_an_evaluation_log(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("lpsel.tracking.csv.CSVTracker", Recording)
    monkeypatch.setattr(Recording, "logged", logged := [])
    result = run("train", [*overrides, "tracker=csv"], tmp_path / "run")

    steps = [values for values in logged if "target/nll" in values]
    assert len(steps) == result["training"]["steps"]
    assert all(values["target/tokens_per_second"] > 0 for values in steps)
    assert steps[0]["target/peak_host_memory_gib"] > 0.1
    (throughput,) = [values for values in logged if "target/flops_per_second_per_device" in values]
    assert 0 < throughput["target/flops_per_second_per_device"] < 1e15

    by_epoch = [values for values in logged if "records/epoch" in values]
    assert [values["records/epoch"] for values in by_epoch] == [0, 1]
    assert [set(values) & {"records/nll", "records/lp_app"} for values in by_epoch] == [
        {"records/nll"},
        {"records/nll", "records/lp_app"},
    ]
    assert all(isinstance(values["records/nll"], Distribution) for values in by_epoch)

    (table,) = [values["rows"] for values in logged if "rows" in values]
    assert table.columns[:4] == ["rows", "index", "score", "chosen"]
    parts = [row[0] for row in table.rows]
    assert [parts.count(part) for part in ("first", "last", "random")] == [10, 10, 10]
    scores = [row[2] for row in table.rows if row[0] == "first"]
    assert scores == sorted(scores)
    assert table.rows[0][-2].startswith("Count to")

    (diagnosed,) = [values for values in logged if "diagnosis/known" in values]
    diagnosis = result["diagnosis"]
    assert diagnosed["diagnosis/spearman/nll_0"] == diagnosis["spearman"]["nll_0"]
    assert diagnosed["diagnosis/median_response/selected"] == diagnosis["median_response"]["selected"]
    assert [[warning] for warning in diagnosis["warnings"]] == diagnosed["diagnosis/warnings"].rows

    (costs,) = [values for values in logged if "ledger" in values]
    ledger = result["ledger"]
    assert costs["ledger/selection_flops"] == ledger["selection"]["flops"]
    assert costs["ledger/saved_percent"] == pytest.approx(100 * ledger["saved"]["share"])
    assert [row[0] for row in costs["ledger"].rows] == ["selection", "training", "total", "everything"]

    logged.clear()
    rows = [text for text in overrides if text.startswith(("dataset", "cache_dir", "trainer"))]
    command = [*rows, "evaluator.max_new_tokens=2", f"models=[{tmp_path}/run]", "tracker=csv"]
    evaluated = run("evaluate", command, tmp_path / "evaluation")["models"][0]
    (values,) = logged
    name, nll = evaluated["name"], evaluated["metrics"]["nll"]
    assert [values[f"{name}/nll{end}"] for end in ("", "/low", "/high")] == [nll["value"], nll["low"], nll["high"]]
    assert [name, "nll", nll["value"], nll["low"], nll["high"]] in values["evaluation"].rows
    assert isinstance(values["evaluation"], Rows)


def test_a_win_rate_without_information_is_not_logged(monkeypatch):
    monkeypatch.setattr(Recording, "logged", logged := [])
    rate = {"n": 60, "win_rate": 50.0, "ci_low": 50.0, "ci_high": 50.0}
    models = [rate | {"name": "judged", "informative": True}, rate | {"name": "flipped", "informative": False}]
    log_evaluation(Recording(), {"models": models, "warnings": ["flipped: The judge carries no information."]})
    (values,) = logged
    assert values["judged/win_rate"] == 50
    assert not [name for name in values if name.startswith("flipped")]
    assert {row[0] for row in values["evaluation"].rows} == {"judged"}
    assert values["warnings"].rows == [["flipped: The judge carries no information."]]
