"""Hard rows of every length."""

import json
import lzma
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.errors import UserError
from lpsel.selection.budget import Ties, exact_shares, rank_in_clusters
from lpsel.selection.length_matching import strata
from lpsel.selection.select import select


def test_strata_are_deciles_of_length():
    assert np.bincount(strata(np.arange(100), 10)).tolist() == [10] * 10
    assert len(np.unique(strata(np.arange(1000), 400))) == 40
    assert len(np.unique(strata(np.arange(1000), 5000))) == 100
    assert np.unique(strata(np.full(50, 7), 10)).tolist() == [0], "rows of one length are in one stratum"


def test_the_hardest_of_every_length_are_chosen(make_table, make_spec):
    # LP_app falls with length: without matching, the ten longest of 100 rows are chosen.
    length = np.arange(1, 101)
    table = make_table([[100.0] * 100, length], response_tokens=length)
    unmatched = select(table, make_spec("lp_app"), 10, 0).selected
    assert np.flatnonzero(unmatched).tolist() == list(range(90, 100))
    matched = select(table, make_spec("lp_app", length="matched"), 10, 0).selected
    assert np.flatnonzero(matched).tolist() == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99], "the hardest of every decile"


def test_clusters_may_have_any_numbers(make_table, make_spec):
    """42,949,673 times 100 strata is 4 more than 2^32: in 32 bits, the clusters would share their strata."""
    rng = np.random.default_rng(0)
    length, cluster, perplexity = rng.integers(1, 500, 2000), rng.integers(0, 2, 2000), rng.uniform(1, 9, 2000)
    spec = make_spec("lp_app", length="matched")
    near, far = (
        select(make_table([[10.0] * 2000, perplexity], numbers, length), spec, 20, 0).selected
        for numbers in (cluster, 42_949_673 * cluster)
    )
    assert near.tolist() == far.tolist()


@given(st.data(), st.integers(20, 120), st.floats(5, 100))
def test_without_clusters_every_stratum_gives_its_share(make_table, make_spec, data, n, pct):
    length = np.array(data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)))
    table = make_table([[100.0] * n, data.draw(st.permutations(range(1, n + 1)))], response_tokens=length)
    selection = select(table, make_spec("lp_app", length="matched"), pct, 0)
    stratum = np.unique(strata(length, selection.n_selected), return_inverse=True)[1]
    order = rank_in_clusters(np.arange(n), stratum.astype(np.int32), np.zeros(n), Ties(None, np.arange(n))).order
    quota = exact_shares(np.bincount(stratum), selection.n_selected, order)
    assert np.bincount(stratum[selection.selected], minlength=len(quota)).tolist() == quota.tolist()
    for s in range(len(quota)):
        inside, outside = ((stratum == s) & chosen for chosen in (selection.selected, ~selection.selected))
        if inside.any() and outside.any():
            assert selection.score[inside].max() <= selection.score[outside].min()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["proportional", "equal", "cluster_mean"]))
def test_with_clusters_sizes_are_exact_and_no_stratum_is_far_off(make_table, make_spec, seed, allocation):
    rng = np.random.default_rng(seed)
    n = 2000
    length, cluster = rng.integers(1, 500, n), rng.integers(0, 40, n)
    table = make_table([[10.0] * n, 9 - 8 * (length / 500) ** rng.uniform(0.5, 2, n)], cluster, length)
    matched = select(table, make_spec("lp_app", length="matched", allocation=allocation), 10, 0)
    plain = select(table, make_spec("lp_app", allocation=allocation), 10, 0)
    assert np.bincount(cluster[matched.selected]).tolist() == np.bincount(cluster[plain.selected]).tolist()
    stratum = strata(length, 200)
    count = np.bincount(stratum[matched.selected], minlength=20)
    assert abs(count - exact_shares(np.bincount(stratum), 200, np.arange(20))).sum() / 2 <= 0.05 * 200


@pytest.mark.parametrize("clusters", ["none", "shared"])
def test_rows_for_a_task_have_the_lengths_of_all_rows(make_table, make_spec, clusters):
    rng = np.random.default_rng(2)
    length, cluster = rng.integers(1, 500, 2000), rng.integers(0, 4, 2000)
    drop = 0.5 * length / 500 + 0.1 * rng.random(2000)  # long rows drop most
    table = make_table(np.exp([np.full(2000, 3.0), 3 * (1 - drop)]), cluster, length)
    plain, matched = (
        select(table, make_spec("task_lp", clusters=clusters, length=length), 10, 0) for length in ("none", "matched")
    )
    assert plain.n_selected == matched.n_selected == 200
    stratum = strata(length, 200)
    assert np.bincount(stratum[plain.selected], minlength=20)[:10].sum() == 0
    assert abs(np.bincount(stratum[matched.selected], minlength=20) - 10).sum() / 2 <= (0 if clusters == "none" else 10)
    if clusters == "shared":
        assert np.abs(np.bincount(cluster[matched.selected]) - np.bincount(cluster) / 10).max() < 1
    for s in range(20):
        inside, outside = (drop[(stratum == s) & rows] for rows in (matched.selected, ~matched.selected))
        assert inside.mean() > outside.mean(), "the largest drops of every length"


def test_lengths_must_be_known(make_table, make_spec):
    table = make_table([[10.0] * 3, [1.0, 2, 3]], tokens_known=False)
    with pytest.raises(UserError, match=r"selection\.length=matched: these scores have no token counts"):
        select(table, make_spec("lp_app", length="matched"), 50, 0)


@pytest.fixture(scope="module")
def words_of(shared_data):
    """Words of every response of a released data set."""

    @cache
    def count(data):
        with lzma.open(shared_data.folder / f"{data}.jsonl.xz", "rt") as lines:
            return np.array([len(json.loads(line)["output"].split()) for line in lines])

    return count


@pytest.mark.parametrize("rule", ["lp", "lp_app"])
@pytest.mark.parametrize(
    ("data", "clusters", "within"), [("dolly", "clusters_dolly", 0.08), ("alpaca", "clusters_alpaca_partial", 0.02)]
)
def test_released_scores_choose_far_longer_rows_unless_matched(
    shared_data, words_of, make_table, make_spec, data, clusters, within, rule
):
    """Words stand in for tokens, which the released perplexities do not come with."""
    ppl = shared_data(f"perplexities_{data}.npz")["opt-350m"]
    cluster = shared_data(f"{clusters}.npz")["cluster"]
    words = words_of(data)
    kept = (cluster >= 0) & ~(ppl == 1).all(axis=0) & (words > 0)
    for c in (None, cluster[kept]):
        table = make_table(ppl[:, kept], c, words[kept])
        plain, matched = (select(table, make_spec(rule, length=length), 10, 0) for length in ("none", "matched"))
        assert plain.n_selected == matched.n_selected == (kept.sum() + 5) // 10
        mean = words[kept].mean()
        assert words[kept][plain.selected].mean() > 1.4 * mean
        assert words[kept][matched.selected].mean() == pytest.approx(mean, rel=within)
        assert np.nanmean(matched.score[matched.selected]) < np.nanmean(matched.score), "and still hard"
