"""Rules that pick one row after another, against what one finds by hand and by trying everything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data.random_order import TIES, random_keys
from lpsel.selection import coverage
from lpsel.selection.select import select


def picked(table, spec, n):
    """Rows in the order in which they are picked."""
    selection = select(table, spec, 100 * n / len(table), 0)
    assert selection.n_selected == n
    rows = np.flatnonzero(selection.selected)
    return rows[np.argsort(selection.score[rows])].tolist()


def plane(*points):
    return np.array(points, np.float32)


def test_k_center_goes_to_the_farthest_row(make_table, make_spec):
    # The mean is (3.5, 0), nearest to row 1; then 4 at distance 7, then 0 at 3, then 3 at 1.5.
    vectors = plane([0, 0], [3, 0], [3, 0], [4.5, 0], [10, 0], [0.5, 0])
    table = make_table([[2.0] * 6], vectors=vectors)
    spec = make_spec("k_center", clusters="none", embedder="any")
    assert picked(table, spec, 4) == [1, 4, 0, 3]
    assert picked(table, spec, 6) == [1, 4, 0, 3, 5, 2], "the same content comes last"


def test_k_center_leaves_out_rows_without_supervised_tokens(make_table, make_spec):
    table = make_table([[2.0] * 4], response_tokens=[1, 1, 1, 0], vectors=plane([0, 0], [1, 0], [2, 0], [99, 0]))
    selection = select(table, make_spec("k_center", clusters="none", embedder="any"), 75, 0)
    assert selection.selected.tolist() == [True, True, True, False]
    assert selection.counts == {"no supervised token": 1}
    assert np.isnan(selection.score[3])


def test_k_center_may_pick_its_share_of_every_cluster(make_table, make_spec):
    vectors = plane([0, 0], [1, 0], [2, 0], [50, 0], [51, 0], [52, 0], [53, 0], [90, 0])
    table = make_table([[2.0] * 8], cluster=[0, 0, 0, 1, 1, 1, 1, 1], vectors=vectors)
    selection = select(table, make_spec("k_center", embedder="any"), 37.5, 0)
    # 3 of 8 rows: 1.125 and 1.875. Nearest to the mean of each, then the farthest from there.
    assert np.flatnonzero(selection.selected).tolist() == [1, 6, 7]
    assert selection.score[[1, 6, 7]].tolist() == [0, 0, 1]


def test_facility_location_stands_for_the_most_rows(make_table, make_spec):
    # Three rows along x, two along y, one along -x.
    vectors = plane([1, 0], [2, 0], [1, 0], [0, 1], [0, 5], [-1, 0])
    table = make_table([[2.0] * 6], id=None, vectors=vectors)  # without ids, ties go to the lower index
    assert picked(table, make_spec("facility_location", clusters="none", embedder="any"), 4) == [0, 3, 5, 1]


def test_similarities_that_do_not_fit_are_computed_again(make_table, make_spec, monkeypatch):
    table = make_table([[2.0] * 90], vectors=np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    spec = make_spec("facility_location", clusters="none", embedder="any")
    kept = picked(table, spec, 40)
    monkeypatch.setattr(coverage, "KEPT_BYTES", 0)
    monkeypatch.setattr(coverage, "BLOCK_BYTES", 4 * 90 * 7)
    assert picked(table, spec, 40) == kept


def test_rows_that_are_equally_good_are_picked_in_the_order_of_their_content(make_table, make_spec):
    ids = [f"row-{i}" for i in range(30)]
    columns = {"c": np.repeat([1.0, 2.0], 15), "q": np.ones(30)}
    table = make_table([[2.0] * 30], id=ids, columns=columns, vectors=np.ones((30, 2), np.float32))
    by_content = np.argsort(random_keys(ids, np.arange(30), TIES)).tolist()
    for rule in ("k_center", "facility_location"):
        assert picked(table, make_spec(rule, clusters="none", embedder="any"), 30) == by_content
    deita = make_spec("deita", complexity="c", quality="q", columns=["c", "q"], clusters="none", embedder="any")
    selected = np.flatnonzero(select(table, deita, 20, 0).selected)
    assert set(selected) == set([row for row in by_content if row >= 15][:6])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 60), st.data())
def test_lazy_greedy_is_greedy(make_table, make_spec, seed, n, data):
    vectors = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    k = data.draw(st.integers(1, n))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float64)
    similarity = np.maximum(unit @ unit.T, 0)
    found = picked(make_table([[2.0] * n], vectors=vectors), make_spec("facility_location", embedder="any"), k)
    covered = np.zeros(n)
    for row in found:
        gains = np.maximum(similarity - covered[:, None], 0).sum(axis=0)
        assert gains[row] == pytest.approx(gains.max(), abs=1e-4)
        covered = np.maximum(covered, similarity[:, row])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.data())
def test_k_center_is_within_twice_the_best_radius(make_table, make_spec, seed, n, data):
    """Picking the farthest row is a 2-approximation (Gonzalez 1985): its centres are at least the radius apart."""
    vectors = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    k = data.draw(st.integers(1, n - 1))
    spec = make_spec("k_center", clusters="none", embedder="any")
    rows = picked(make_table([[2.0] * n], vectors=vectors), spec, k)
    distance = np.linalg.norm(vectors[:, None] - vectors[rows][None], axis=2)
    radius = distance.min(axis=1).max()
    between = distance[rows] + np.diag([np.inf] * k)
    assert between.min() >= radius - 1e-4
    for turn in range(1, k):  # a plain loop: the next row is the one farthest from its nearest picked row
        farthest = max(min(distance[row, :turn]) for row in range(n) if row not in rows[:turn])
        assert min(distance[rows[turn], :turn]) == pytest.approx(farthest, abs=1e-3)


def test_deita_takes_complexity_times_quality(make_table, make_spec):
    columns = {"c": np.array([2.0, 3.0, 1.0, 5.0, np.nan]), "q": np.array([4.0, 2.0, 9.0, 1.0, 9.0])}
    table = make_table([[2.0] * 5], columns=columns)
    spec = make_spec("deita", complexity="c", quality="q", threshold=None, columns=["c", "q"], embedder="x")
    assert not spec.needs_vectors
    selection = select(table, spec, 40, 0)
    assert np.flatnonzero(selection.selected).tolist() == [0, 2]
    assert selection.score == pytest.approx([8, 6, 9, 5, np.nan], nan_ok=True)
    assert selection.counts == {"score is undefined": 1}


def test_deita_passes_over_what_is_near_to_a_picked_row(make_table, make_spec):
    # Scores 9, 8, 7, 6. The cosine of rows 0 and 1 is .96, of 0 and 2 .6, of 2 and 3 1.
    vectors = plane([1, 0], [0.96, 0.28], [0.6, 0.8], [1.2, 1.6])
    columns = {"c": np.array([9.0, 8.0, 7.0, 6.0]), "q": np.ones(4)}
    table = make_table([[2.0] * 4], columns=columns, vectors=vectors)

    def chosen(pct, threshold):
        spec = make_spec(
            "deita", complexity="c", quality="q", threshold=threshold, columns=["c", "q"], clusters="none", embedder="x"
        )
        assert spec.needs_vectors
        return np.flatnonzero(select(table, spec, pct, 0).selected).tolist()

    assert chosen(50, 0.9) == [0, 2]
    assert chosen(50, 0.97) == [0, 1]
    assert chosen(75, 0.9) == [0, 1, 2], "too few differ: the best of those passed over follows"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 30), st.floats(0.1, 1), st.data())
def test_deita_is_a_loop_over_the_rows_by_score(make_table, make_spec, seed, n, threshold, data):
    rng = np.random.default_rng(seed)
    columns, vectors = {"c": rng.random(n), "q": rng.random(n)}, rng.normal(size=(n, 2)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    k = data.draw(st.integers(1, n))
    order = np.argsort(-columns["c"] * columns["q"]).tolist()
    kept: list[int] = []
    for row in order:
        if all(unit[row] @ unit[other] < threshold for other in kept):
            kept.append(row)
    expected = [*kept[:k], *[row for row in order if row not in kept]][:k]
    options = {"complexity": "c", "quality": "q", "threshold": threshold, "columns": ["c", "q"]}
    spec = make_spec("deita", clusters="none", embedder="x", **options)
    table = make_table([[2.0] * n], columns=columns, vectors=vectors)
    assert set(np.flatnonzero(select(table, spec, 100 * k / n, 0).selected)) == set(expected)
