"""The map of what selecting gains by redundancy: from runs to JSON to the table and the figure."""

import json

import pytest

from tests.fixtures.processes import ROOT


@pytest.fixture
def redundancy_map(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import redundancy_map

    return redundancy_map


def record(rule, seed, nll, exact_match, redundancy=0.5):
    pool = {"redundancy": redundancy, "rows": 1500, "pct": 10.0}
    return {"rule": rule, **pool, "seed": seed, "nll": nll, "exact_match": exact_match}


def test_a_gain_compares_the_same_pool_and_seed(redundancy_map):
    records = [
        record("random", 1, 2.0, 0.1),
        record("random", 2, 3.0, 0.2),
        record("lp_app_nll", 1, 1.5, 0.3),
        record("lp_app_nll", 2, 3.25, 0.3),
        record("lp_app_nll", 3, 9.0, 0.9),  # no random rows with this seed
        record("lp_app_nll", 1, 9.0, 0.9, redundancy=0.0),
    ]
    assert redundancy_map.gains(records, "nll") == {(0.5, 1500, 10.0): [-0.5, 0.25]}
    # t(0.975, 1) = 12.706, standard error 0.375
    assert "| 50% | 1,500 | 10% | -0.12 [-4.89, +4.64] |" in redundancy_map.table(records)


def test_the_table_of_the_page_is_that_of_the_json_file(redundancy_map):
    page, text = (
        redundancy_map.PAGE.read_text(),
        redundancy_map.table(json.loads(redundancy_map.DATA.read_text())["records"]),
    )
    assert redundancy_map.between_marks(page, "redundancy-tiny", text) == page


@pytest.mark.slow
def test_records_are_those_of_the_runs(redundancy_map, tmp_path, as_process):
    small = ["dataset.synthetic.redundancy=0,0.8", "dataset.synthetic.rows=100", "pct=30", "seed=1"]
    settings = ["model.recipe.epochs=1", "scorer.recipe.epochs=1", "tracker=none", f"cache_dir={tmp_path / 'cache'}"]
    done = as_process(
        "train", "-m", "experiment=redundancy-tiny", *small, *settings, f"hydra.sweep.dir={tmp_path / 'runs'}"
    )
    assert done.returncode == 0, done.stderr
    records = redundancy_map.collect([str(tmp_path / "runs")])["records"]
    assert [(each["rule"], each["redundancy"], each["rows"], each["pct"], each["seed"]) for each in records] == [
        (rule, redundancy, 100, 30.0, 1) for rule in ("lp_app_nll", "random") for redundancy in (0, 0.8)
    ]
    assert all(each["nll"] > 0 for each in records)
