"""rds: examples that pick their nearest rows in turn, against sorting all similarities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data.random_order import TIES, random_keys
from lpsel.selection import nearest
from lpsel.selection.nearest import round_robin
from lpsel.selection.select import select


def angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def spec_of(make_spec, **fields):
    return make_spec("rds", **{"clusters": "none", "embedder": "any", **fields})


def by_sorting(query, vectors, rows, n):
    """Round robin as one writes it down: sort all rows for every example, and pop what others have picked."""
    lists = [sorted(rows, key=lambda row: round((1 - float(q @ vectors[row])) * 2**20)) for q in query]
    picked = []
    while len(picked) < n:
        turn = lists[len(picked) % len(query)]
        picked.append(next(row for row in turn if row not in picked))
    return picked


def test_examples_pick_their_nearest_rows_in_turn(make_table, make_spec):
    # Examples at 0 and 90 degrees. Turns: 0 takes row 1 (5), 90 takes 3 (80); 0 takes 0 (10); 90 takes 2 (60).
    table = make_table([[2.0] * 5], vectors=3 * angles(10, 5, 60, 80, 200), query_vectors=7 * angles(0, 90))
    selected = [set(np.flatnonzero(select(table, spec_of(make_spec), 20 * n, 0).selected)) for n in (1, 2, 3, 4)]
    assert selected == [{1}, {1, 3}, {0, 1, 3}, {0, 1, 2, 3}]
    score = select(table, spec_of(make_spec), 20, 0).score
    assert score == pytest.approx(np.cos(np.deg2rad([10, 5, 30, 10, 110])), abs=1e-6)


def test_an_example_gives_way_to_one_that_picked_its_nearest_row_before(make_table, make_spec):
    # Both are nearest to row 0; the second takes row 2 (30 degrees away) instead of row 1 (40).
    table = make_table([[2.0] * 3], vectors=angles(2, -37, 33), query_vectors=angles(0, 3))
    assert select(table, spec_of(make_spec), 67, 0).selected.tolist() == [True, False, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 9), st.data())
def test_tiles_and_bounded_lists_pick_as_sorting_everything_does(seed, m, q, data):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(m + 5, 3)).astype(np.float32)
    vectors[rng.random(m + 5) < 0.2] = vectors[0]  # ties
    # Along an axis, so that products are exact: those of equal rows may be rounded differently in other tiles.
    query = (rng.choice([-1, 1], (q, 1)) * np.eye(3)[rng.integers(3, size=q)]).astype(np.float32)
    rows = rng.permutation(m + 5)[:m]
    n = data.draw(st.integers(1, m))
    expected = by_sorting(query, unit(vectors), rows.tolist(), n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "TILE_BYTES", 4 * q * data.draw(st.integers(1, 20)))
        patch.setattr(nearest, "KEPT", q * data.draw(st.integers(1, 10)))
        assert round_robin(query, vectors, rows, n).tolist() == expected


def test_equally_near_rows_are_picked_in_the_order_of_their_content(make_table, make_spec):
    ids = [f"row-{i}" for i in range(30)]
    table = make_table([[2.0] * 30], id=ids, vectors=angles(*[20] * 30), query_vectors=angles(0, 40))
    selection = select(table, spec_of(make_spec), 20, 0)
    assert set(np.flatnonzero(selection.selected)) == set(np.argsort(random_keys(ids, np.arange(30), TIES))[:6])
    assert selection.n_tied == 30


def test_every_cluster_and_length_contributes_its_share_exactly(make_table, make_spec):
    rng = np.random.default_rng(1)
    table = make_table(
        [[2.0] * 2000],
        cluster=rng.integers(0, 4, 2000),
        response_tokens=rng.integers(1, 500, 2000),
        vectors=rng.normal(size=(2000, 4)).astype(np.float32),
        query_vectors=rng.normal(size=(5, 4)).astype(np.float32),
    )
    shared = select(table, spec_of(make_spec, clusters="shared"), 10, 0)
    assert np.abs(np.bincount(table.cluster[shared.selected]) - np.bincount(table.cluster) / 10).max() < 1
    for clusters in ("none", "shared"):
        matched = select(table, spec_of(make_spec, clusters=clusters, length="matched"), 10, 0)
        assert matched.n_selected == 200
        quantiles = np.quantile(table.response_tokens[matched.selected], [0.25, 0.5, 0.75])
        assert quantiles == pytest.approx(np.quantile(table.response_tokens, [0.25, 0.5, 0.75]), abs=10)
    in_cluster = np.bincount(table.cluster[matched.selected])
    assert np.abs(in_cluster - np.bincount(table.cluster) / 10).max() < 1


@pytest.mark.parametrize("fields", [{"length": "matched"}, {"clusters": "shared"}])
def test_examples_pick_equally_often_where_few_rows_come_from_every_length_or_cluster(make_table, make_spec, fields):
    # 50 examples and 100 rows, from 10 lengths or 100 clusters, each of which has rows near every example.
    vectors = np.tile(np.eye(50, dtype=np.float32), (100, 1))
    copies = np.repeat(np.arange(100), 50)
    table = make_table(
        [[2.0] * 5000], cluster=copies, response_tokens=copies % 10 + 1, vectors=vectors, query_vectors=vectors[:50]
    )
    selected = select(table, spec_of(make_spec, **fields), 2, 0).selected
    assert np.bincount(np.flatnonzero(selected) % 50, minlength=50).tolist() == [2] * 50


def test_rows_whose_vector_is_not_a_number_are_left_out(make_table, make_spec):
    vectors = angles(0, 1, 2, 3)
    vectors[0, 1] = np.nan
    table = make_table([[2.0] * 4], vectors=vectors, query_vectors=angles(0))
    selection = select(table, spec_of(make_spec), 50, 0)
    assert np.flatnonzero(selection.selected).tolist() == [1, 2]
    assert selection.counts == {"score is undefined": 1}
