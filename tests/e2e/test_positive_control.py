"""Redundant rows: a correct relative ranking finds what is not redundant, and a broken one does not.

dataset=embedded-redundant is a pool in which 90% of the rows repeat three easy tasks; random rows contain 10% others.
"""

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source

POOL = {"rows": 4000, "held_out": 300, "seed": 0, "wrong": 0.0, "redundancy": 0.9, "levels": 3}
VARIED = 1 - POOL["redundancy"]


@pytest.fixture(scope="module")
def pool():
    return [row.raw for row in Source(DatasetSpec("embedded-redundant", synthetic=POOL))]


@pytest.fixture(scope="module")
def select(tmp_path_factory):
    """Runs `select` on the pool; the first call trains the scorer."""
    folder = tmp_path_factory.mktemp("control")
    common = [
        "dataset=embedded-redundant", f"dataset.synthetic.rows={POOL['rows']}", "pct=20", "trainer=cpu", "tracker=none",
        "trainer.precision=32-true", "scorer.tiny.pretrain_steps=800", f"cache_dir={folder}/cache",
    ]  # fmt: skip
    return lambda name, *overrides: run("select", [*common, *overrides], folder / name)


@pytest.fixture(scope="module")
def relative(select):
    return select("relative", "selection=lp_app_nll")


def selected(result):
    return np.flatnonzero(pq.read_table(result["selection"])["selected"].to_numpy())


def varied(result, pool):
    """The fraction of the selected rows that is not of the redundant kind."""
    rows = [pool[index] for index in selected(result)]
    return np.mean([row["difficulty"] > 1 or row["task"] not in ("last", "pattern", "words") for row in rows])


@pytest.mark.slow
def test_the_relative_ranking_finds_rows_that_are_not_redundant(relative, pool):
    assert varied(relative, pool) > 2.5 * VARIED


@pytest.mark.slow
def test_the_inverted_ranking_selects_redundant_rows_only(select, relative, pool):
    inverted = select("inverted", "selection=combine", "selection.combine={lp_app_nll: -1}")
    assert varied(inverted, pool) < VARIED / 3


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
    np.testing.assert_allclose(shares(selected(relative)), everything, atol=1 / 800)
    assert np.abs(shares(selected(ignored)) - everything).max() > 0.05
