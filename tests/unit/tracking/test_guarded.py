"""A tracker that fails costs a warning, not the run."""

import json

import pytest

from lpsel.commands.job import run
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.guarded import Guarded
from lpsel.tracking.tracker import Distribution, Rows, Tracker


class Broken(Tracker):
    """Starts, and then fails at everything."""

    keeps = True

    def log(self, values, step=None):
        raise RuntimeError("the server is on fire\nand more")

    used = made = finish = log


class Listening(Tracker):
    """Keeps what it is told in a list that all instances share."""

    keeps = True
    told: list = []  # noqa: RUF012

    def log(self, values, step=None):
        self.told.append(dict(values))


@pytest.fixture
def given(toy_model, instructions, tmp_path):
    scorer = ["scorer=local", f"scorer.path={toy_model}", "scorer.recipe.epochs=2"]
    target = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1"]
    data = ["dataset=local", f"dataset.path={instructions(rows=12)}", "cluster=none", "pct=50", "trainer=cpu"]
    return [*scorer, *target, *data, f"cache_dir={tmp_path}/cache", "selection=lp_app"]


def test_a_training_run_outlives_its_tracker(given, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lpsel.tracking.csv.CSVTracker", Broken)
    result = run("train", [*given, "tracker=csv"], tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["training"] == result["training"]
    said = [record.message for record in caplog.records if record.message.startswith("Tracking")]
    assert said == [
        f"Tracking: {what} failed (the server is on fire); the run goes on without"
        for what in ("log", "used", "made", "finish")
    ]


def test_errors_of_starting_are_the_users():
    class Refusing(Tracker):
        def start(self, *_):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Guarded(Refusing()).start("train", {}, None)
    Guarded(Tracker()).used(Artifact("scores", "a", None))


def test_what_a_training_run_and_an_evaluation_tell(given, tmp_path, monkeypatch):
    monkeypatch.setattr("lpsel.tracking.csv.CSVTracker", Listening)
    monkeypatch.setattr(Listening, "told", told := [])
    result = run("train", [*given, "tracker=csv"], tmp_path / "run")

    steps = [of for of in told if "target/nll" in of]
    assert len(steps) == result["training"]["steps"]
    assert all(of["target/tokens_per_second"] > 0 for of in steps)
    assert steps[0]["target/peak_host_memory_gib"] > 0.1
    (busy,) = [of for of in told if "target/flops_per_second_per_device" in of]
    assert 0 < busy["target/flops_per_second_per_device"] < 1e15

    by_epoch = [of for of in told if "records/epoch" in of]
    assert [of["records/epoch"] for of in by_epoch] == [0, 1]
    assert [set(of) & {"records/nll", "records/lp_app"} for of in by_epoch] == [
        {"records/nll"},
        {"records/nll", "records/lp_app"},
    ]
    assert all(isinstance(of["records/nll"], Distribution) for of in by_epoch)

    (table,) = [of["rows"] for of in told if "rows" in of]
    assert table.columns[:4] == ["rows", "index", "score", "chosen"]
    shown = [row[0] for row in table.rows]
    assert [shown.count(what) for what in ("first", "last", "random")] == [10, 10, 10]
    scores = [row[2] for row in table.rows if row[0] == "first"]
    assert scores == sorted(scores)
    assert table.rows[0][-2].startswith("Count to")

    (costs,) = [of for of in told if "ledger" in of]
    ledger = result["ledger"]
    assert costs["ledger/selection_flops"] == ledger["selection"]["flops"]
    assert costs["ledger/saved_percent"] == pytest.approx(100 * ledger["saved"]["share"])
    assert [row[0] for row in costs["ledger"].rows] == ["selection", "training", "total", "everything"]

    told.clear()
    rows = [text for text in given if text.startswith(("dataset", "cache_dir", "trainer"))]
    asked = [*rows, "evaluator.max_new_tokens=2", f"models=[{tmp_path}/run]", "tracker=csv"]
    evaluated = run("evaluate", asked, tmp_path / "evaluation")["models"][0]
    (figures,) = told
    name, nll = evaluated["name"], evaluated["metrics"]["nll"]
    assert [figures[f"{name}/nll{end}"] for end in ("", "/low", "/high")] == [nll["value"], nll["low"], nll["high"]]
    assert [name, "nll", nll["value"], nll["low"], nll["high"]] in figures["evaluation"].rows
    assert isinstance(figures["evaluation"], Rows)
