"""Redundant rows: a correct relative ranking finds what is not redundant, and a broken one does not.

The embedded pool is redundant: 92% of the rows are of three easy tasks; random rows contain 8% others.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.toy.data import EASY

POOL = {"rows": 6000, "held_out": 500, "seed": 1, "wrong": 0.0, "redundancy": 0.92, "levels": 1}
VARIED = 1 - POOL["redundancy"]
INVERTED = ("selection=combine", "selection.combine={lp_app_nll: -1}")


@pytest.fixture(scope="module")
def pool():
    return [row.raw for row in Source(DatasetSpec("embedded", synthetic=POOL))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def common(folder):
    return [
        *(f"dataset.synthetic.{name}={value}" for name, value in POOL.items()),
        "trainer=cpu", "trainer.precision=32-true", "tracker=none", f"cache_dir={folder}/cache",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def select(folder, common):
    """Runs `select` on the pool; the first call trains the scorer."""
    return lambda name, *overrides: run("select", [*common, "pct=20", "seed=1", *overrides], folder / name)


@pytest.fixture(scope="module")
def relative(select):
    return select("relative", "selection=lp_app_nll")


def selected(result):
    return np.flatnonzero(pq.read_table(result["selection"])["selected"].to_numpy())


def varied(result, pool):
    """The fraction of the selected rows that is not of the redundant kind."""
    rows = [pool[index] for index in selected(result)]
    return np.mean([row["task"] not in EASY for row in rows])


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_relative_ranking_finds_rows_that_are_not_redundant(relative, pool):
    assert varied(relative, pool) > 2.5 * VARIED


@pytest.mark.slow
def test_the_inverted_ranking_selects_redundant_rows_only(select, relative, pool):
    inverted = select("inverted", *INVERTED)
    assert varied(inverted, pool) < VARIED / 3


@pytest.mark.slow
def test_the_diagnosis_says_that_the_inverted_ranking_selects_what_is_learned(select, relative):
    inverted, some = select("inverse", *INVERTED), select("random", "selection=random")
    learned = [result["diagnosis"]["learned"] for result in (relative, inverted)]
    assert learned[0] < 120 < 1080 < learned[1]  # of 1,200 rows
    warned = [
        any("learns them early" in warning for warning in result["diagnosis"]["warnings"])
        for result in (relative, inverted, some)
    ]
    assert warned == [False, True, False]


@pytest.mark.slow
def test_records_of_other_rows_select_as_chance_does(select, relative, pool, tmp_path):
    table = pq.read_table(relative["scores"])
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = table
    for name in ("nll_0", "nll_1"):
        column = table.schema.get_field_index(name)
        shuffled = shuffled.set_column(column, name, table[name].take(order))
    pq.write_table(shuffled.drop_columns(["id"]), tmp_path / "scores.parquet")
    result = select("shuffled", "selection=lp_app_nll", f"scores={tmp_path}/scores.parquet")
    assert varied(result, pool) < 1.6 * VARIED


@pytest.mark.slow
def test_every_topic_contributes_its_share_which_a_ranking_without_clusters_does_not_give(select, relative, pool):
    def shares(rows):
        topics = [pool[index]["topic"] for index in rows]
        return np.array([topics.count(topic) for topic in ("text", "facts", "numbers")]) / len(rows)

    ignored = select("ignored", "selection=lp_app_nll", "cluster=none")
    everything = shares(range(len(pool)))
    np.testing.assert_allclose(shares(selected(relative)), everything, atol=1 / 1200)
    assert np.abs(shares(selected(ignored)) - everything).max() > 0.05


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_held_out_rows_are_best_after_the_relative_ranking_and_worst_after_its_inverse(folder, common):
    rules = {"relative": ("selection=lp_app_nll",), "random": ("selection=random",), "inverted": INVERTED}
    settings = [*common, "pct=20", "seed=1", "model.recipe.epochs=4"]
    trained = [run("train", [*rule, *settings], folder / f"train-{name}") for name, rule in rules.items()]
    models = ",".join(str(Path(result["model"]).parent) for result in trained)
    evaluating = [f"models=[{models}]", "evaluator.max_new_tokens=32"]
    measured = run("evaluate", [*evaluating, *common], folder / "evaluate")["models"]
    nll, match = ([model["metrics"][name]["value"] for model in measured] for name in ("nll", "exact_match"))
    assert nll == sorted(nll)
    assert match == sorted(match, reverse=True)
