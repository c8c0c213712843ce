"""s2l: equal numbers from clusters of loss trajectories, by the published algorithm in plain Python."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lpsel.data.random_order import random_keys
from lpsel.scoring.read import read_scores
from lpsel.selection import trajectories as module
from lpsel.selection.budget import Ties
from lpsel.selection.select import select
from lpsel.selection.trajectories import equal_shares, s2l, trajectory_clusters_of


def by_hand(cluster, key, n):
    """Algorithm 1 of S2L: clusters from the smallest, each with an equal part of what is left of the budget.

    Returns the rows that are certain (every cluster's share rounded down) and, of each cluster, one row more.
    """
    clusters = sorted({*cluster} - {-1}, key=lambda c: (list(cluster).count(c), c))
    left, certain, next_rows = n, [], []
    for position, c in enumerate(clusters):
        rows = sorted(np.flatnonzero(cluster == c), key=lambda row: key[row])
        share = min(left / (len(clusters) - position), len(rows))
        certain += rows[: int(share + 1e-9)]
        next_rows += rows[int(share + 1e-9) : int(share + 1e-9) + 1]
        left -= share
    return certain, next_rows


@pytest.mark.parametrize("n", [1, 7, 30, 60, 99])
def test_shares_are_those_of_the_published_algorithm(n):
    rng = np.random.default_rng(n)
    cluster = np.sort(rng.choice([0, 1, 2, 3, 4], 100, p=[0.04, 0.06, 0.2, 0.3, 0.4])).astype(np.int32)
    key = rng.random(100)
    rows = rng.permutation(100)
    picked = equal_shares(cluster, key, Ties(None, np.arange(100)), rows, n).tolist()
    certain, next_rows = by_hand(cluster, key, n)
    assert len(picked) == len(set(picked)) == n
    assert set(certain) <= set(picked) <= {*certain, *next_rows}
    sizes = np.bincount(cluster)[cluster[picked]]
    assert (np.diff(sizes) >= 0).all(), "the smallest clusters come first"


def three_kinds(make_table, **fields):
    """60, 30 and 10 rows that learn at once, late, and never."""
    curves = np.repeat([[4.0, 1, 0.5, 0.5], [4, 4, 3, 1], [4, 4, 4, 4]], [60, 30, 10], axis=0).T
    noise = np.random.default_rng(0).normal(0, 0.02, curves.shape)
    return make_table(np.exp(curves + noise), **fields)


def spec_of(make_spec, **fields):
    return make_spec("s2l", clusters="none", trajectory_clusters=3, **fields)


def test_every_kind_of_trajectory_contributes_equally(make_table, make_spec):
    selection = select(three_kinds(make_table), spec_of(make_spec), 45, 0)
    # 45 rows: 10 of the smallest, then 17 or 18 of each of the others.
    per_kind = [int(rows.sum()) for rows in np.split(selection.selected, [60, 90])]
    assert per_kind[2] == 10
    assert sorted(per_kind[:2]) == [17, 18]
    assert len({tuple(select(three_kinds(make_table), spec_of(make_spec), 45, s).selected) for s in range(5)}) == 5


@pytest.mark.parametrize("fields", [{"length": "matched"}, {"clusters": "shared"}])
def test_every_kind_contributes_where_few_rows_come_from_every_length_or_cluster(make_table, make_spec, fields):
    # 50 kinds of constant loss and 400 rows: 40 from each of 10 lengths, or 4 from each of 100 clusters. With the same
    # kinds in every part, at most 40 or 4 would contribute; by chance, a kind has 8 rows with a deviation below 3.
    kind, copies = np.tile(np.arange(50), 100), np.repeat(np.arange(100), 50)
    nll = np.tile(1.0 + kind, (4, 1))
    table = make_table(np.exp(nll), cluster=copies, response_tokens=copies % 10 + 1)
    spec = make_spec("s2l", **{"clusters": "none", "trajectory_clusters": 50, **fields})
    count = np.bincount(kind[select(table, spec, 8, 0).selected], minlength=50)
    assert count.sum() == 400
    assert 1 <= count.min() <= count.max() <= 20


def test_trajectories_that_are_not_finite_are_left_out_with_a_reason(make_table, make_spec):
    table = three_kinds(make_table, response_tokens=[1] * 99 + [0])
    nll = table.nll.copy()
    nll[1, 0], nll[3, 1] = np.inf, np.nan
    selection = select(replace(table, nll=nll), spec_of(make_spec), 45, 0)
    assert selection.counts == {"no supervised token": 1, "trajectory is not finite": 2}
    assert not selection.selected[[0, 1, 99]].any()


def test_the_order_of_rows_does_not_change_the_trajectory_clusters(make_table, make_spec):
    rng = np.random.default_rng(3)
    table = make_table(np.exp(rng.random((4, 300)) * 3))
    order = rng.permutation(300)
    selected = select(table, spec_of(make_spec), 30, 1).selected
    moved = replace(table.take(order), index=np.arange(300))
    assert (select(moved, spec_of(make_spec), 30, 1).selected == selected[order]).all()


def test_of_many_trajectories_some_are_clustered_and_the_others_join_the_nearest_mean(monkeypatch):
    nll = np.random.default_rng(5).random((2_000, 4))
    monkeypatch.setattr(module, "MOST_ROWS", 500)
    cluster = trajectory_clusters_of(nll, 7, seed=0)
    assert (cluster[:500] == trajectory_clusters_of(nll[:500], 7, seed=0)).all()
    means = np.array([nll[:500][cluster[:500] == c].mean(axis=0) for c in range(7)])
    nearest = ((nll[500:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (cluster[500:] == nearest).mean() > 0.999, "float32 may decide otherwise where two means are equally near"


def test_on_released_records_clusters_are_nearest_and_the_overlap_with_lp_app_is_chance(shared_data, make_spec):
    shared_data("perplexities_alpaca.npz")
    table = read_scores(shared_data.folder / "perplexities_alpaca.npz", "opt-350m")
    table = replace(table, id=pa.array([f"{row:032x}" for row in range(len(table))]))
    ranking = s2l(table, seed=42)
    cluster, key = ranking.pick.args[:2]
    assert (key == random_keys(table.id, table.index, 42)).all()
    rows = np.flatnonzero(cluster >= 0)
    curves = table.nll.T[rows]
    centers = np.array([curves[cluster[rows] == c].mean(axis=0) for c in range(100)])
    distance = ((curves[:, None] - centers) ** 2).sum(axis=2)
    own = distance[np.arange(len(rows)), cluster[rows]]
    assert (own > distance.min(axis=1) + 1e-3).mean() < 0.01, "a row is in the cluster with the nearest mean"

    spec = make_spec("s2l", clusters="none")
    selected = select(table, spec, 10, 42).selected
    certain, next_rows = by_hand(cluster, key, 5200)
    assert set(certain) <= set(np.flatnonzero(selected)) <= {*certain, *next_rows}
    lowest = select(table, make_spec("lp_app", clusters="none"), 10, 42).selected
    assert (selected & lowest).sum() / selected.sum() == pytest.approx(0.047, abs=0.01), "chance is 0.1"
