"""How many rows, and how many from every cluster."""

import re
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from lpsel.data.random_order import TIES, random_keys
from lpsel.errors import UserError
from lpsel.selection.budget import Ties, check_pct, exact_shares, paper_shares, rank_in_clusters, row_budget, thirds

sizes = nps.arrays(np.int64, st.integers(1, 40), elements=st.integers(1, 200))
shares = st.floats(0, 100, exclude_min=True, allow_subnormal=False)


@pytest.mark.parametrize(
    ("pct", "n_total", "rows"),
    [
        (10, 400, 40),
        (33.3, 1000, 333),
        (33.35, 1000, 334),  # 333.5; in binary 33.35 is a little less
        (0.1 * 3, 500, 2),  # 1.5
        (1.1, 50, 1),  # 0.55
        (2.5, 100, 3),  # half up, not to even
        (0.5, 100, 1),
        (100, 7, 7),
        (29, 50, 15),  # 14.5; 0.29 * 50 is 14.499999999999998 in floats
        (1e-05, 10_000_000, 1),
    ],
)
def test_rows_are_the_decimal_percentage_rounded_half_up(pct, n_total, rows):
    assert row_budget(pct, n_total) == rows


@given(shares, st.integers(1, 10**8))
def test_rows_equal_decimal_arithmetic(pct, n_total):
    expected = (Decimal(repr(pct)) * n_total / 100).quantize(Decimal(1), ROUND_HALF_UP)
    assume(expected > 0)
    assert row_budget(pct, n_total) == expected


@pytest.mark.parametrize("pct", [0, -1, 100.1, float("nan"), float("inf"), "ten", None, True])
def test_an_invalid_percentage_is_an_error(pct):
    with pytest.raises(UserError) as caught:
        check_pct(pct)
    assert (caught.value.name, caught.value.problem) == ("pct", "must be in (0, 100]")
    assert caught.value.hint == "set selection=full to use all rows"


def test_less_than_half_a_row_is_an_error_with_the_smallest_valid_percentage():
    with pytest.raises(UserError) as caught:
        row_budget(1, 40)
    assert (caught.value.name, caught.value.value) == ("pct", "1")
    assert caught.value.problem == "is 0.4 of 40 rows, which rounds to 0"
    assert caught.value.hint == "set pct=1.25 or more, which is one row"


@given(st.integers(1, 10**9))
def test_the_smallest_valid_percentage_is_one_row(n_total):
    with pytest.raises(UserError) as caught:
        row_budget(1e-300, n_total)
    smallest = re.match(r"set pct=(\S+) or more", caught.value.hint)[1]
    assert row_budget(float(smallest), n_total) == 1


def test_exact_shares_by_hand():
    # 5 of 10 rows: 1.5, 2.5 and 1 of clusters of 3, 5 and 2. Of equal remainders, the lowest in order comes first.
    assert exact_shares(np.array([3, 5, 2]), 5, np.array([0, 1, 2])).tolist() == [2, 2, 1]
    assert exact_shares(np.array([3, 5, 2]), 5, np.array([1, 0, 2])).tolist() == [1, 3, 1]
    # 4 of 10 rows: 2.4, 1.2 and 0.4.
    assert exact_shares(np.array([6, 3, 1]), 4, np.array([0, 1, 2])).tolist() == [3, 1, 0]
    assert exact_shares(np.array([6, 3, 1]), 4, np.array([2, 1, 0])).tolist() == [2, 1, 1]


@given(sizes, st.data())
def test_exact_shares_add_up_and_stay_within_one_of_the_quota(size, data):
    total = int(size.sum())
    n = data.draw(st.integers(0, total))
    take = exact_shares(size, n, np.arange(len(size)))
    assert take.sum() == n
    assert (take <= size).all()
    assert (take >= 0).all()
    assert (abs(take * total - size * n) < total).all()


def test_a_cluster_can_lose_a_row_to_a_larger_budget():
    """The Alabama paradox: of 10 rows the shares are 4.29, 4.29 and 1.43, of 11 rows 4.71, 4.71 and 1.57."""
    size, order = np.array([6, 6, 2]), np.arange(3)
    assert exact_shares(size, 10, order).tolist() == [4, 4, 2]
    assert exact_shares(size, 11, order).tolist() == [5, 5, 1]


@given(sizes, st.data())
def test_no_cluster_loses_two_rows_to_a_larger_budget(size, data):
    n = data.draw(st.integers(0, int(size.sum()) - 1))
    order = np.arange(len(size))
    assert (exact_shares(size, n + 1, order) - exact_shares(size, n, order)).min() >= -1


def test_paper_shares_are_ceilings_of_whole_parts():
    size = np.array([1, 50, 101, 300])
    assert paper_shares(size, 1).tolist() == [1, 1, 2, 3]
    assert paper_shares(size, 3).tolist() == [1, 2, 4, 10]  # 33 parts
    assert paper_shares(size, 25).tolist() == [1, 13, 26, 75]


@pytest.mark.parametrize(("pct", "parts"), [(39, 3), (40, 2), (50, 2), (66, 2), (67, 1), (100, 1)])
def test_paper_shares_jump_between_a_third_a_half_and_all(pct, parts):
    assert paper_shares(np.array([60]), pct).tolist() == [60 // parts]


@pytest.mark.parametrize("pct", [1e-300, 5e-324])
def test_a_tiny_percentage_is_one_row_of_every_cluster(pct):
    assert paper_shares(np.array([1, 7]), pct).tolist() == [1, 1]


@given(sizes, shares)
def test_paper_shares_are_the_first_part_of_array_split(size, pct):
    assume(pct > 0.1)
    first = [len(np.array_split(np.arange(s), round(100 / pct))[0]) for s in size]
    assert paper_shares(size, pct).tolist() == first


def ranked_by(cluster, key, ids=None, index=None):
    n = len(key)
    ties = Ties(None if ids is None else pa.array(ids), np.arange(n) if index is None else np.array(index))
    return rank_in_clusters(np.arange(n), None if cluster is None else np.array(cluster, np.int32), np.array(key), ties)


def test_rows_without_ids_are_ranked_by_cluster_then_key_then_index():
    ranked = ranked_by([7, -1, 7, -1, 7], [0.5, 2.0, 0.1, 2.0, 0.5], index=[9, 3, 5, 1, 4])
    assert ranked.row.tolist() == [3, 1, 2, 4, 0]
    assert ranked.cluster.tolist() == [-1, 7]
    assert ranked.size.tolist() == [2, 3]
    assert ranked.rank.tolist() == [0, 1, 0, 1, 2]
    assert ranked.run.tolist() == [0, 0, 1, 2, 2]
    assert ranked.first(np.array([1, 2])).tolist() == [3, 2, 4]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0]), st.sampled_from("abcdef")), min_size=1))
def test_ties_are_in_the_order_of_their_hashes(rows):
    cluster, key, ids = zip(*rows, strict=True)
    count = Counter(zip(cluster, key, strict=True))
    tied = [row for row in range(len(rows)) if count[cluster[row], key[row]] > 1]
    hashes = dict(zip(tied, random_keys([ids[row] for row in tied], np.array(tied), TIES), strict=True))
    expected = sorted(range(len(rows)), key=lambda row: (cluster[row], key[row], hashes.get(row)))
    assert ranked_by(cluster, key, ids).row.tolist() == expected


def test_rows_tied_at_the_cutoff_are_counted_within_their_cluster():
    # One of the two rows at 1 in cluster 0; two of the three at 3 in cluster 1; cluster 2 is selected as a whole.
    ranked = ranked_by([0, 0, 0, 1, 1, 1, 2, 2], [1.0, 1, 2, 3, 3, 3, 4, 4])
    selected = np.array([1, 0, 0, 1, 1, 0, 1, 1], np.bool_)
    assert ranked.tied_at_cutoff(selected) == 2 + 3
    assert ranked.tied_at_cutoff(np.ones(8, np.bool_)) == 0


def test_equal_remainders_do_not_go_to_the_lowest_clusters():
    # 1,000 clusters of 3 rows, of which 500 get the one row that is left over.
    order = ranked_by(np.repeat(np.arange(1000), 3), np.arange(3000.0)).order
    take = exact_shares(np.full(1000, 3), 500, order)
    assert take.sum() == 500
    quarters = take.reshape(4, 250).sum(axis=1)
    assert (abs(quarters - 125) < 4 * np.sqrt(250 * 0.5 * 0.5)).all(), quarters


@given(sizes)
def test_thirds_are_the_parts_of_array_split(size):
    ranked = ranked_by(np.repeat(np.arange(len(size)), size), np.zeros(size.sum()))
    expected = [np.repeat([0, 1, 2], [len(part) for part in np.array_split(np.arange(s), 3)]) for s in size]
    assert (thirds(ranked) == np.concatenate(expected)).all()
