"""The data of the explorer: which rows are on the page, their map, and what is cut to fit."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from lpsel.report import explorer
from lpsel.report.explorer import (
    Explorer,
    _compressed,
    _fitting,
    explorer_page,
    fair_sample,
    map_of,
    page_data,
    views,
)


def ids_of(n):
    return pa.array([f"{i * 7919 + 1:032x}" for i in range(n)], pa.large_string())


def of_columns(**columns):
    n = len(next(iter(columns.values())))
    selected = pa.array([i < 3 for i in range(n)])
    rows = pa.table({"index": pa.array(range(n)), "id": ids_of(n), "selected": selected, **columns})
    return Explorer("run", rows, n, "lp_app", "tokens", [], [], [])


def test_a_sample_has_the_share_of_selected_rows():
    selected = np.zeros(52_002, bool)
    selected[np.random.default_rng(0).choice(52_002, 5_200, replace=False)] = True
    table = pa.table({"index": np.arange(52_002), "id": ids_of(52_002), "selected": selected})
    sample = fair_sample(table, 5_000)
    rows = sample["index"].to_numpy()
    assert sample["id"].combine_chunks().equals(ids_of(52_002).take(pa.array(rows)))
    assert len(np.unique(rows)) == 5_000
    assert selected[rows].sum() == 500
    assert np.array_equal(rows, np.sort(rows))
    # Of the others, about as many from each half: within four standard deviations of a fair draw.
    assert abs((rows < 26_001).sum() - 2_500) < 4 * (5_000 / 4) ** 0.5


@given(st.integers(1, 60), st.integers(1, 70), st.randoms())
def test_a_sample_does_not_depend_on_the_order_of_rows_and_has_a_selected_one(n, count, random):
    selected = np.array([random.random() < 0.1 for _ in range(n)])
    order = np.array(random.sample(range(n), n))
    table = pa.table({"index": np.arange(n), "id": ids_of(n), "selected": selected})
    rows, shuffled = (
        fair_sample(table.take(positions), count)["index"].to_numpy()
        for positions in (pa.array(np.arange(n)), pa.array(order))
    )
    assert sorted(shuffled) == rows.tolist()
    assert len(rows) == min(n, count)
    assert selected[rows].any() == selected.any()


def test_the_map_is_the_singular_value_decomposition_of_the_centered_vectors():
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    vectors[7] = np.nan
    found, explained = map_of(vectors)
    known = np.delete(vectors.astype(float), 7, axis=0)
    u, s, _ = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)
    assert np.abs(np.delete(found, 7, axis=0)) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-5)
    assert explained == pytest.approx(s[:2] ** 2 / (s**2).sum(), abs=1e-6)
    assert np.isnan(found[7]).all()
    assert map_of(np.ones((5, 6), np.float32)) == (pytest.approx(np.empty((5, 0))), [])


def test_views_are_those_that_the_columns_allow():
    numbers = pa.array([1.0, 10.0, None, 1000.0])
    assert [view["name"] for view in views(of_columns(nll_0=numbers, nll_1=numbers, length=numbers))] == [
        "NLL before and after"
    ]
    (view,) = views(of_columns(score=numbers, length=numbers))
    assert (view["x"]["column"], view["y"]["column"], view["x"]["log"]) == ("length", "score", True)
    # log10 of 1 and of 1000, less half a percent at either end and with a margin of 3%: a range of 2.97 of 3.
    low, high = np.percentile([0, 1, 3], [0.5, 99.5])
    assert view["x"]["range"] == pytest.approx([low - 0.03 * (high - low), high + 0.03 * (high - low)])
    (view,) = views(of_columns(length=numbers))
    assert (view["x"]["column"], view["y"]["column"]) == ("length", "index")


def test_numbers_are_rounded_and_missing_ones_are_null():
    data = page_data(of_columns(score=pa.array([0.123456789, None, -43.8312345, 2.0])))
    assert data["columns"]["score"] == [0.12346, None, -43.831, 2.0]
    assert data["columns"]["selected"] == [True, True, True, False]


def test_texts_are_cut_and_then_rows_are_drawn_until_the_page_fits(monkeypatch):
    """Random texts: 4 bits in each character, so 600 of them compress to about 300 bytes, 400 in base64."""
    hexadecimal = np.random.default_rng(0).bytes(1_500_000).hex()
    prompts = [hexadecimal[500 * i : 500 * (i + 1)] for i in range(6_000)]
    rows = of_columns(length=pa.array([1] * 6_000), prompt=pa.array(prompts), response=pa.array(["x"] * 6_000))
    for room, longest in ((3_000_000, 600), (1_000_000, 200)):
        packed, cut = _fitting(rows, room)
        assert len(packed) <= room
        assert cut == longest
    assert _fitting(rows, 300_000) == (None, 0)
    monkeypatch.setattr(explorer, "MOST_BYTES", len(_compressed(get_plotlyjs().encode())) + 400_000)
    page = explorer_page(rows)
    assert len(page.encode()) <= explorer.MOST_BYTES
    assert "A sample of 5,000 of 6,000 rows, 2 of them selected" in page
    assert "Texts are cut off after 60 characters." in page
