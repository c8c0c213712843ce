"""Allocation of rows to clusters: equal, by mean hardness, and duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from lpsel.commands.result_summary import statistics
from lpsel.errors import UserError
from lpsel.selection.budget import Ties, capped_shares, hardness_weights, rank_in_clusters
from lpsel.selection.select import select
from lpsel.selection.summary import summary

CHARACTERS = {side: {"selected": 1.0, "all": 1.0} for side in ("prompt", "response")}


def shares(weight, size, n):
    """Of equal remainders, the first cluster comes first."""
    return capped_shares(np.asarray(weight, float), np.asarray(size), n, np.arange(len(size)))


sizes = nps.arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 50))


def test_equal_shares_by_hand():
    ones = np.ones(4)
    # 10 rows for four clusters are 2.5 each: 1 is too small, the others share 9. Of equal remainders the lower first.
    assert shares(ones, np.array([1, 9, 9, 9]), 10).tolist() == [1, 3, 3, 3]
    assert shares(ones, np.array([9, 9, 9, 9]), 10).tolist() == [3, 3, 2, 2]
    reverse = np.array([3, 2, 1, 0])
    assert capped_shares(ones, np.array([9, 9, 9, 9]), 10, reverse).tolist() == [2, 2, 3, 3]
    assert shares(ones, np.array([1, 2, 9, 3]), 15).tolist() == [1, 2, 9, 3]
    assert shares(ones, np.array([5, 5, 5, 5]), 0).tolist() == [0, 0, 0, 0]


def test_weighted_shares_by_hand():
    # 8 rows by 1 : 2 : 5 are 1, 2, 5; with only 2 in the last, 6 are left for 1 : 2.
    assert shares(np.array([1.0, 2.0, 5.0]), np.array([9, 9, 9]), 8).tolist() == [1, 2, 5]
    assert shares(np.array([1.0, 2.0, 5.0]), np.array([9, 9, 2]), 8).tolist() == [2, 4, 2]


@given(sizes, st.data())
def test_equal_shares_fill_like_water(size, data):
    n = data.draw(st.integers(0, int(size.sum())))
    take = shares(np.ones(len(size)), size, n)
    assert take.sum() == n
    assert (take <= size).all()
    assert (take >= 0).all()
    still_open = take[take < size]
    if len(still_open):
        assert take.max() <= still_open.min() + 1, "no cluster gets two more than one that has rows left"


@given(sizes, st.data())
def test_weighted_shares_add_up_and_stay_within_one_of_their_quota(size, data):
    n = data.draw(st.integers(0, int(size.sum())))
    weight = np.array(data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(size), max_size=len(size))))
    take = shares(weight, size, n)
    assert take.sum() == n
    assert ((take >= 0) & (take <= size)).all()
    still_open = take < size
    if still_open.any():
        # One level for all: nobody is more than a row above what the least served would have at its own rate.
        level = ((take + 1) / weight)[still_open].min()
        assert (take <= np.minimum(size, level * weight) + 1 + 1e-6).all()


@given(sizes, st.data())
def test_shares_by_size_are_the_proportional_ones(size, data):
    n = data.draw(st.integers(0, int(size.sum())))
    assert (abs(shares(size.astype(float), size, n) - size * n / size.sum()) < 1 + 1e-9).all()


def test_hardness_is_the_share_of_rows_that_come_after():
    # Keys 1 2 2 4: ranks 0, 1.5, 1.5, 3 of 4, so hardness 7/8, 4/8, 4/8, 1/8.
    ranked = rank_in_clusters(
        np.arange(4), np.array([0, 1, 0, 1], np.int32), np.array([1.0, 2.0, 2.0, 4.0]), Ties(None, np.arange(4))
    )
    weights = hardness_weights(ranked, np.array([1.0, 2.0, 2.0, 4.0])[ranked.row])
    assert weights == pytest.approx([7 / 8 + 4 / 8, 4 / 8 + 1 / 8])


def test_allocations_choose_their_share_of_every_cluster(make_table, make_spec):
    # Cluster 0 has six rows and the higher LP_app, cluster 1 two and the lower.
    table = make_table([[10.0] * 8, [1, 2, 3, 4, 5, 6, 7, 8]], cluster=[0] * 6 + [1] * 2)

    def per_cluster(allocation):
        selected = select(table, make_spec("lp_app", allocation=allocation), 50, 0).selected
        return [int(selected[:6].sum()), int(selected[6:].sum())]

    assert per_cluster("proportional") == [3, 1]
    assert per_cluster("equal") == [2, 2]
    # Hardness 1/16, 3/16 ... 11/16 and 13/16, 15/16: sums 36/16 and 28/16, so 2.25 and 1.75 of 4.
    assert per_cluster("cluster_mean") == [2, 2]


def test_cluster_mean_does_not_depend_on_the_scale_of_scores(make_table, make_spec):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=60)
    chosen = []
    for column in (reward, np.exp(reward), 7 * reward - 100):
        table = make_table([[2.0] * 60], cluster=np.arange(60) % 5, columns={"reward": column})
        spec = make_spec("score_column", column="reward", columns=["reward"], allocation="cluster_mean")
        chosen.append(select(table, spec, 30, 0).selected.tolist())
    assert chosen[0] == chosen[1] == chosen[2]


def test_dropped_duplicates_are_selected_once(make_table, make_spec):
    table = make_table([[10.0] * 6, [1, 9, 9, 8, 8, 2]], response_tokens=[1, 0, 1, 1, 1, 1], id=list("abbccc"))
    kept = select(table, make_spec("lp_app"), 50, 0)
    assert np.flatnonzero(kept.selected).tolist() == [2, 3, 4]
    dropped = select(table, make_spec("lp_app", duplicates="drop"), 50, 0)
    # Row 1 cannot be chosen, so row 2 is the first of its content; of c rows 4 and 5 fall out.
    assert np.flatnonzero(dropped.selected).tolist() == [0, 2, 3]
    assert dropped.counts == {"no supervised token": 1, "duplicate": 2}
    assert dropped.to_arrow()["reason"].to_pylist()[4:] == ["duplicate", "duplicate"]


def test_duplicates_need_ids(make_table, make_spec):
    table = make_table([[10.0] * 2, [1.0, 2.0]], id=None)
    with pytest.raises(UserError, match=r"selection\.duplicates=drop: these rows have no content ids to compare"):
        select(table, make_spec("lp_app", duplicates="drop"), 50, 0)


def test_odd_scores_are_counted(make_table, make_spec):
    # LP: 1.5, -0.5, P_0 = P_n, an infinite record, .5 and a row without response
    ppl = [[10, 10, 8, 10, 10, 1], [4, 12, 6, 4, 8, 1], [5, 8, 7, np.inf, 7, 1], [6, 6, 8, 3, 6, 1]]
    table = make_table(ppl, response_tokens=[1, 1, 1, 1, 1, 0])
    selection = select(table, make_spec("lp"), 50, 0)
    assert selection.odd == {"undefined": 2, "not_finite": 1, "above_1": 1, "below_0": 1}
    assert selection.counts == {"no supervised token": 1, "nll is not finite": 1, "score is undefined": 1}
    assert statistics(summary(selection, CHARACTERS))[-1] == (
        "Odd scores", "2 undefined, 1 of these with a record that is not finite, 1 above 1, 1 below 0",
    )  # fmt: skip
    released = select(table, make_spec("lp", budget="paper"), 50, 0)
    assert released.odd == {"undefined": 3, "not_finite": 1, "above_1": 1, "below_0": 1}
    assert released.score[[2, 3, 5]].tolist() == [0, 0, 0]
    assert statistics(summary(released, CHARACTERS))[-1][1].endswith("1 below 0; undefined scores count as 0")


@pytest.mark.parametrize("name", ["opt-350m", "opt-13b"])
def test_alpacas_released_scores_have_as_many_odd_ones_as_were_measured(shared_data, make_table, make_spec, name):
    table = make_table(shared_data("perplexities_alpaca.npz")[name])
    odd = select(table, make_spec("lp", budget="paper"), 10, 0).odd
    assert 401 <= odd["above_1"] <= 1459
    assert 1 <= odd["below_0"] <= 38
