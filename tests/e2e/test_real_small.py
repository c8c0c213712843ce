"""The experiments on real rows in short, and the tables of docs/results/real-small.md."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("real_small", ROOT / "benchmarks" / "real_small.py")
real_small = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(real_small)


@pytest.fixture
def experiment(tmp_path, as_process):
    """Runs experiment=real-small-alpaca on 12 rows in tmp_path/sweep."""

    def run(model, rows, *overrides):
        done = as_process(
            "train", "experiment=real-small-alpaca", "seed=1", "pct=25", "dataset.limit=12",
            f"experiment.files.alpaca={rows}", f"experiment.files.dolly={rows}", "experiment.held_out=4",
            "experiment.answered=1", "experiment.answer_tokens=2", f"model.path={model}", f"scorer.path={model}",
            "model.recipe.epochs=1", "cluster=none", "tracker=none",
            f"cache_dir={tmp_path}/cache", f"hydra.sweep.dir={tmp_path}/sweep", *overrides,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_an_experiment_resumes_and_its_records_are_those_of_its_runs(experiment, tmp_path, toy_model, instructions):
    given = toy_model, instructions(rows=24), "trainer.precision=32-true", "selection=random,lp_app"
    experiment(*given)
    results = sorted((tmp_path / "sweep").glob("*/result.json"))
    written = [file.stat().st_mtime_ns for file in results]
    assert len(results) == 4 + 3, "random and lp_app at equal rows and at equal tokens; three evaluations"
    experiment(*given)
    assert [file.stat().st_mtime_ns for file in results] == written

    part = real_small.collect([str(tmp_path / "sweep")])
    untrained, *records = sorted(part["records"], key=lambda record: "pct" in record)
    assert (part["unfinished"], untrained["name"]) == (0, "untrained")
    by_name = {(record["name"], record["pct_of"]): record for record in records}
    assert by_name.keys() == {(name, unit) for name in ("random", "lp_app") for unit in ("rows", "tokens")}
    evaluated = json.loads(next((tmp_path / "sweep").glob("evaluate-*-alpaca/result.json")).read_text())
    expected = {model["metrics"]["nll"]["value"] for model in evaluated["models"]}
    assert {record["held_out"]["alpaca"]["nll"]["value"] for record in part["records"]} == expected
    for unit in ("rows", "tokens"):
        random, hard = by_name["random", unit], by_name["lp_app", unit]
        nll = [record["held_out"]["alpaca"]["nll"]["value"] for record in (hard, random)]
        assert hard["minus_random"]["alpaca"]["nll"]["value"] == pytest.approx(nll[0] - nll[1])
        assert random["minus_random"] is None
    all_tokens = by_name["random", "rows"]["cost"]["everything"]["tokens"]
    assert by_name["lp_app", "rows"]["rows"] == by_name["random", "rows"]["rows"] == 3
    assert max(by_name[name, "tokens"]["tokens"] for name in ("random", "lp_app")) <= 0.25 * all_tokens
    chosen = {(each["name"], each["pct_of"]): each for each in part["selections"]}
    assert {key: each["tokens"] for key, each in chosen.items()} == {
        key: each["tokens"] for key, each in by_name.items()
    }
    assert str(tmp_path) not in json.dumps(part), "no folders of this machine"


@pytest.mark.real
def test_an_experiment_on_real_rows_in_short(experiment, tmp_path, real_models, shared_data):
    model, rows = real_models / "smollm2-135m", shared_data / "alpaca.jsonl.xz"
    cheap = [
        "model.max_length=64",
        "scorer.max_length=64",
        "~experiment.evaluate.dolly",
        "~experiment.evaluate.answers",
    ]
    experiment(model, rows, *cheap, "selection=lp_app", "selection.pct_of=tokens")
    evaluated = json.loads(next((tmp_path / "sweep").glob("evaluate-*-alpaca/result.json")).read_text())
    untrained, trained = (model["metrics"]["nll"]["value"] for model in evaluated["models"])
    assert 0 < trained < untrained


def test_means_over_three_seeds_have_t_intervals():
    one = [{"value": 2.0, "low": 1.0, "high": 3.0}]
    assert real_small._cell(one, 1, 3) == "2.000 [1.000, 3.000]"
    three = [{"value": value, "low": 0, "high": 9} for value in (1.0, 2.0, 3.0)]
    # 4.303 (t, two degrees of freedom) x 1 / sqrt(3) = 2.484
    assert real_small._cell(three, 1, 3, "+") == "+2.000 [-0.484, +4.484]"


def test_collected_records_replace_only_those_of_the_same_rule_budget_and_seed():
    def records(*settings):
        return [
            {"name": name, "pct": 20.0, "pct_of": "rows", "seed": seed, "value": value}
            for name, seed, value in settings
        ]

    earlier = {
        "about": {},
        "selections": records(("lp_app", 1, 0)),
        "records": records(("lp_app", 1, 0), ("random", 1, 1)),
    }
    new = {"unfinished": 0, "selections": [], "records": records(("random", 2, 2), ("random", 1, 3))}
    assert real_small.joined(earlier, new) == {
        "unfinished": 0,
        "selections": records(("lp_app", 1, 0)),
        "records": records(("lp_app", 1, 0), ("random", 1, 3), ("random", 2, 2)),
    }
    assert real_small.joined({"about": {}}, new)["records"] == records(("random", 1, 3), ("random", 2, 2))


def test_tables_come_from_the_json_files(tmp_path, monkeypatch):
    def record(name, seed, rows, nll, minus=None):
        estimate = {"value": nll, "low": nll - 1, "high": nll + 1}
        held_out = {"alpaca": {"nll": estimate, "bits_per_byte": estimate}, "dolly": {"nll": estimate}}
        difference = minus and {"value": minus, "low": minus - 0.5, "high": minus + 0.5}
        compared = {"alpaca": {"nll": difference}, "dolly": {"nll": difference}, "answers": {"rouge_l": difference}}
        spent = {"flops": 1e12, "device_seconds": 60.0}
        return {
            "name": name, "pct": 20.0, "pct_of": "rows", "seed": seed, "rows": rows, "tokens": 10 * rows,
            "held_out": held_out | {"answers": {"rouge_l": estimate}}, "minus_random": minus and compared,
            "cost": {"selection": spent, "training": spent, "everything": {"flops": 8e12}},
        }  # fmt: skip

    records = [record("random", seed, 300, nll) for seed, nll in ((1, 1.9), (2, 2.0), (3, 2.1))]
    records += [record("lp_app", seed, 300, nll, nll - 2) for seed, nll in ((1, 2.25), (2, 2.5))]
    monkeypatch.setattr(real_small, "RESULTS", tmp_path)
    (tmp_path / "data").mkdir()
    selected = {
        "name": "lp_app", "pct": 20.0, "pct_of": "tokens", "seed": 1, "rows": 150, "tokens": 9000, "tokens_pct": 19.96,
        "median_response": 80.5, "known": 12, "spearman": {"response_tokens": -0.5},
    }  # fmt: skip
    content = json.dumps({"dataset": "alpaca", "selections": [selected], "records": records})
    (tmp_path / "data" / "real-small-x.json").write_text(content)
    page = real_small.with_tables("a\n<!-- real-small-x -->\nold\n<!-- end -->\nb\n")
    assert real_small.with_tables(page) == page
    assert page.startswith("a\n")
    assert page.endswith("<!-- end -->\nb\n")
    assert "old" not in page
    assert "| lp_app, 20% of tokens | 1 | 150 | 9,000 | 20.0 | 80.5 | 12 | -0.50 |  |" in page
    # 2 ± 4.303 x 0.1 / sqrt(3): Student's t with 2 degrees of freedom
    assert "| random | 1, 2, 3 | 300 | 3,000 | 2.000 [1.752, 2.248] |  |" in page, "one line, t over seeds"
    assert "| lp_app | 1 | 300 | 3,000 | 2.250 [1.250, 3.250] | +0.250 [-0.250, +0.750] |" in page, "over rows"
    assert "| lp_app, 20% of rows | 2 | 1.00e+12 | 1.00e+12 | 25 | 60 | 60 |" in page


def test_the_tables_of_the_page_are_those_of_the_json_files():
    page = real_small.PAGE.read_text()
    assert real_small.with_tables(page) == page
