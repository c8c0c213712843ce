"""Selections worked out by hand, and properties that always hold."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.commands.result_summary import statistics
from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.selection.rules import Ranking, Rule
from lpsel.selection.select import select
from lpsel.selection.summary import ends, examples, summary

# LP_app (P_0 = 10): .9 .1 .5 | .2 .8 .3 .7 .6 | .4 and a row without response
PPL_0 = [10.0] * 10
PPL_1 = [1.0, 9.0, 5.0, 8.0, 2.0, 7.0, 3.0, 4.0, 6.0, 10.0]
CLUSTER = [0, 0, 0, 5, 5, 5, 5, 5, 9, 9]
RESPONSE_TOKENS = [4, 4, 4, 4, 4, 4, 4, 4, 4, 0]
CHARACTERS = {"prompt": {"selected": 30.0, "all": 40.0}, "response": {"selected": 9.04, "all": 5.0}}


@pytest.fixture(scope="module")
def table(make_table):
    return make_table([PPL_0, PPL_1], CLUSTER, RESPONSE_TOKENS)


def chosen(selection):
    return np.flatnonzero(selection.selected).tolist()


def test_the_lowest_scores_of_every_cluster_are_chosen(table, make_spec):
    # 4 rows for clusters with 3, 5 and 1 eligible: 1.33, 2.22, 0.44; the last has the largest remainder.
    selection = select(table, make_spec("lp_app"), 40, seed=0)
    assert chosen(selection) == [1, 3, 5, 8]
    assert (selection.n_total, selection.n_eligible, selection.n_selected) == (10, 9, 4)
    assert selection.counts == {"no supervised token": 1}


def test_without_clusters_the_lowest_scores_of_all_are_chosen(table, make_spec):
    assert chosen(select(replace(table, cluster=None), make_spec("lp_app"), 40, seed=0)) == [1, 3, 5, 8]
    assert chosen(select(replace(table, cluster=None), make_spec("lp_app"), 20, seed=0)) == [1, 3]


def test_the_papers_budget_is_a_ceiling_per_cluster_without_exclusions(table, make_spec):
    # 3 parts of 3, 5 and 2 rows: 1, 2, 1. The row without response has learnt nothing: LP_app = 0, the hardest.
    selection = select(table, make_spec("lp_app", budget="paper"), 33, seed=0)
    assert chosen(selection) == [1, 3, 5, 9]
    assert (selection.n_eligible, selection.counts, selection.score[9]) == (10, {}, 0.0)


def test_lp_uses_as_many_epochs_as_its_file_sets(make_table, make_spec):
    # LP over 3 epochs: (10-8)/(10-2) = .25 and (10-7)/(10-4) = .5; over 4: 2/2 = 1 and 3/9.
    table = make_table([[10, 10], [8, 7], [5, 6], [2, 4], [8, 1]])
    assert select(table, make_spec("lp"), 50, 0).score.tolist() == [0.25, 0.5]
    assert select(table, make_spec("lp", epochs=4), 50, 0).score == pytest.approx([1, 1 / 3])


def test_too_few_epochs_are_an_error(table, make_spec):
    with pytest.raises(UserError, match="selection=lp: needs 3 recorded epochs, and these scores have 1"):
        select(table, make_spec("lp"), 10, 0)


def test_undefined_scores_are_left_out_and_counted(make_table, make_spec):
    # P_0 = P_n; rises beyond float64; fine; null in epoch 2
    nll = np.log([[8.0, 1, 9, 7], [4.0, 1, 3, 2], [2.0, 1, 2, np.nan], [8.0, 1, 1, 1]])
    nll[3, 1] = np.inf
    table = replace(make_table(np.exp(nll)), nll=nll, ppl=None)
    selection = select(table, make_spec("lp"), 100, 0)
    assert chosen(selection) == [2]
    assert selection.counts == {"nll is not finite": 1, "score is undefined": 2}
    assert np.isnan(selection.score).tolist() == [True, True, False, True]
    assert select(table, make_spec("lp", budget="paper"), 100, 0).score[[0, 1, 3]].tolist() == [0, 0, 0]


def test_ties_without_ids_and_in_the_papers_budget_go_to_the_lower_index(make_table, make_spec):
    table = make_table([[10.0] * 6, [5.0] * 6], cluster=[1, 0, 1, 0, 1, 0])
    backwards = replace(table, index=table.index[::-1].copy())
    for rows_of, rows in ((table, [0, 1, 2, 3]), (backwards, [2, 3, 4, 5])):
        assert chosen(select(rows_of, make_spec("lp_app", budget="paper"), 50, 0)) == rows
        without = select(replace(rows_of, id=None), make_spec("lp_app", pct=200 / 3), 50, 0)
        assert chosen(without) == rows
        assert without.n_tied == 6


def test_ties_are_broken_by_content_whatever_the_order_of_the_rows(make_table, make_spec):
    # Ratings from 1 to 5 of ten sources, one after another. 400 of the 2,000 rows have a 5, so 10% are half of these.
    rating, source = np.tile([1.0, 2, 3, 4, 5], 400), np.repeat(np.arange(10), 200)
    table = make_table([[2.0] * 2000], columns={"rating": rating})
    spec = make_spec("score_column", column="rating", columns=["rating"], descending=True)
    selection = select(table, spec, 10, 0)
    assert (selection.n_selected, selection.n_tied) == (200, 400)
    assert set(rating[selection.selected]) == {5.0}
    per_source = np.bincount(source[selection.selected])
    assert len(per_source) == 10
    assert (abs(per_source - 20) < 4 * np.sqrt(40 * 0.5 * 0.5)).all(), per_source
    order = np.random.default_rng(0).permutation(2000)
    moved = replace(table.take(order), index=np.arange(2000))
    assert (select(moved, spec, 10, 0).selected == selection.selected[order]).all()
    assert statistics(summary(selection, CHARACTERS))[0][1].endswith("; 400 rows are tied at the cutoff")


def test_random_draws_duplicates_independently(make_table, make_spec):
    # 1,000 contents twice each, 200 rows drawn: both rows of 1,000 x (200 x 199) / (2,000 x 1,999) = 10 contents.
    table = make_table([[2.0] * 2000], id=[f"content {i // 2}" for i in range(2000)])
    drawn = [select(table, make_spec("random"), 10, seed).selected.reshape(1000, 2) for seed in range(40)]
    assert {int(rows.sum()) for rows in drawn} == {200}
    distinct = [int(rows.any(axis=1).sum()) for rows in drawn]
    assert np.mean(distinct) == pytest.approx(190, abs=3 * 3 / np.sqrt(40))
    assert [rows.sum() for rows in np.sum(drawn, axis=0).T] == pytest.approx([4000, 4000], abs=4 * np.sqrt(2000))


def test_full_takes_all_that_can_be_trained_on_whatever_pct_says(table, make_spec):
    selection = select(table, make_spec("full", pct=100), 1, 0)
    assert (selection.n_selected, selection.pct) == (9, 100)
    assert select(table, make_spec("full", pct=100, budget="paper"), 1, 0).n_selected == 10
    assert not make_spec("full", pct=100).uses_clusters


def test_more_than_is_eligible_gives_all_that_is(table, make_spec):
    assert select(table, make_spec("lp_app"), 99, 0).n_selected == 9


def test_random_takes_the_same_number_of_every_cluster_and_no_scores(table, make_spec):
    table = replace(table, nll=np.empty((0, 10)), ppl=None)
    by_seed = [select(table, make_spec("random"), 40, seed) for seed in range(60)]
    assert all(np.bincount(table.cluster[s.selected], minlength=10)[[0, 5, 9]].tolist() == [1, 2, 1] for s in by_seed)
    assert np.any([s.selected for s in by_seed], axis=0).tolist() == [True] * 9 + [False]
    numbers = summary(by_seed[0], CHARACTERS)
    assert numbers["score"] == {"selected": None, "all": None}, "random scores are not summarized"
    assert "Scores" not in dict(statistics(numbers))


def test_buckets_are_thirds_of_every_cluster_by_score(table, make_spec):
    # Cluster 0: .1 | .5 | .9. Cluster 5: .2 .3 | .6 .7 | .8. Cluster 9: .4 alone, in low.
    names = {"low": [1, 3, 5, 8], "mid": [2, 6, 7], "high": [0, 4]}
    for name, rows in names.items():
        selection = select(table, make_spec("lp_app", bucket=name), 100, 0)
        assert chosen(selection) == rows
        assert selection.n_eligible == len(rows)
    column = selection.to_arrow()["bucket"].to_pylist()
    assert column == ["high", "low", "mid", "low", "high", "low", "mid", "mid", "low", None]
    assert selection.counts == {"no supervised token": 1, "in bucket low": 4, "in bucket mid": 3}


def test_a_part_of_a_bucket_is_drawn_at_random(table, make_spec):
    spec = make_spec("lp_app", bucket="low")
    drawn = [chosen(select(replace(table, cluster=None), spec, 10, seed)) for seed in range(40)]
    assert {row for rows in drawn for row in rows} == {1, 3, 5}
    seed = 3
    place = random_keys(table.id, table.index, seed)
    assert drawn[seed] == [min([1, 3, 5], key=lambda row: place[row])]


def test_the_papers_buckets_are_whole_thirds(table, make_spec):
    # With the row without response, whose score is 0: cluster 9 is 9 | 8 | nothing.
    names = {"low": [1, 3, 5, 9], "mid": [2, 6, 7, 8], "high": [0, 4]}
    for name, rows in names.items():
        assert chosen(select(table, make_spec("lp_app", budget="paper", bucket=name), 33, 0)) == rows
    with pytest.raises(UserError, match="pct=1e-310: the released buckets are thirds of a cluster"):
        make_spec("lp_app", budget="paper", bucket="low").percentage(1e-310, 10)
    with pytest.raises(UserError, match="pct=10: the released buckets are thirds of a cluster"):
        select(table, make_spec("lp_app", budget="paper", bucket="low"), 10, 0)


def test_a_rule_may_exclude_rows_with_its_own_reason(table, make_spec):
    @Rule
    def picky(table, *, seed):
        return Ranking(np.arange(10.0), {"too short": np.arange(10) > 7})

    selection = select(table, make_spec("lp_app", rule=picky), 100, 0)
    assert selection.to_arrow()["reason"].to_pylist() == [None] * 8 + ["too short", "no supervised token"]


def test_known_and_rising_rows_are_left_out_with_a_reason(make_table, make_spec):
    # NLL 1, 2, 3, 4 become 1.5, 1, 2 and 2, with a median of 1.75: row 0 is known and rises.
    table = make_table(np.exp([[1.0, 2, 3, 4, 0], [1.5, 1, 2, 2, 0]]), response_tokens=[1, 1, 1, 1, 0])
    assert select(table, make_spec("lp_app", known="drop"), 100, 0).counts == {
        "no supervised token": 1,
        "already known": 1,
    }
    level = select(table, make_spec("perplexity", known="drop", known_level=3), 100, 0)
    assert level.to_arrow()["reason"].to_pylist() == [
        "already known", "already known", None, None, "no supervised token",
    ]  # fmt: skip
    rising = select(table, make_spec("random", rising="drop"), 60, 0)
    assert rising.counts == {"no supervised token": 1, "loss rises": 1}
    assert chosen(rising) == [1, 2, 3]


def test_epochs_that_the_rule_does_not_use_change_nothing(make_table, make_spec):
    # NLL 1, 2, 3, 4 become 1.5, 1, 2, 2 after epoch 1, with a median of 1.75: row 0 is known and rises. After epoch 2,
    # with a median of 0.4, no row would be known and row 3 would rise.
    nll = np.array([[1.0, 2, 3, 4], [1.5, 1, 2, 2], [0.1, 0.3, 0.5, 5]])
    one_epoch, two_epochs = make_table(np.exp(nll[:2])), make_table(np.exp(nll))
    for setting in {"known": "drop"}, {"rising": "drop"}, {"known": "drop", "known_level": 2.5}, {}:
        one, two = (select(each, make_spec("lp_app_nll", **setting), 50, 0) for each in (one_epoch, two_epochs))
        assert one.reason.tolist() == two.reason.tolist()
        assert chosen(one) == chosen(two)
    assert select(two_epochs, make_spec("lp_app_nll", known="drop"), 50, 0).counts == {"already known": 1}
    assert select(two_epochs, make_spec("lp_app_nll", rising="drop"), 50, 0).counts == {"loss rises": 1}


def test_known_and_rising_rows_need_the_records_that_tell_them(make_table, make_spec):
    assert [make_spec("random", **{option: "drop"}).epochs for option in ("known", "rising")] == [1, 1]
    assert make_spec("random", known="drop", known_level=1.0).epochs == 0
    assert make_spec("lp", known="drop").epochs == 3
    with pytest.raises(UserError, match="selection=perplexity: needs 1 recorded epochs, and these scores have 0"):
        select(make_table([[2.0] * 4]), make_spec("perplexity", rising="drop"), 50, 0)


def test_a_level_of_known_rows_needs_the_losses_before_training(make_table, make_spec):
    table = replace(make_table([[2.0] * 4], columns={"x": np.arange(4.0)}), nll=np.empty((0, 4)), ppl=None)
    spec = make_spec("score_column", column="x", columns=["x"], known="drop", known_level=1.0)
    with pytest.raises(UserError) as caught:
        select(table, spec, 50, 0)
    assert caught.value.problem == "needs nll_0, which these scores lack"


def test_a_column_is_recorded_only_where_a_scorer_runs(make_spec):
    column = {"column": "el2n_0", "columns": ["el2n_0"]}
    assert make_spec("score_column", **column).records == ()
    assert make_spec("score_column", **column, epochs=0).records == make_spec("el2n", columns=["el2n_0"]).records


def test_no_eligible_row_is_an_error(make_table, make_spec):
    table = make_table([[1.0, 1.0]], response_tokens=[0, 0])
    with pytest.raises(UserError, match=r"none of 2 rows can be selected \(no supervised token\)"):
        select(table, make_spec("random"), 50, 0)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"budget": "exakt"}, "must be one of exact, paper"),
        ({"bucket": "lowest"}, "must be one of low, mid, high"),
        ({"epochs": 1}, "must be an integer, at least 2"),
        ({"epochs": None}, "must be an integer, at least 2"),
        ({"known": "leave"}, "must be one of keep, drop"),
        ({"known_level": "low"}, "must be a number"),
        ({"rising": True}, "must be one of keep, drop"),
    ],
)
def test_an_invalid_choice_is_an_error(make_spec, fields, problem):
    [(name, value)] = fields.items()
    with pytest.raises(UserError) as caught:
        make_spec("lp", **fields)
    assert (caught.value.name, caught.value.value) == (f"selection.{name}", value)
    assert caught.value.problem == problem


def test_shares_of_all_rows_need_no_clusters_but_buckets_and_rules_do(make_spec):
    assert make_spec("lp").uses_clusters
    assert not make_spec("lp", pct=100).uses_clusters
    assert make_spec("lp", pct=100, bucket="low").uses_clusters
    assert make_spec("cluster_random", pct=100, clusters="rule").uses_clusters
    assert not make_spec("lp", clusters="none", bucket="low").uses_clusters


def test_a_setting_that_does_nothing_is_an_error(make_spec):
    with pytest.raises(UserError) as caught:
        make_spec("lp", known_level=2.5)
    assert (caught.value.name, caught.value.value) == ("selection.known_level", 2.5)
    assert caught.value.problem == "needs selection.known=drop"
    for allocation in ("equal", "cluster_mean"):
        with pytest.raises(UserError) as caught:
            make_spec("lp", allocation=allocation).check_without_clusters()
        assert (caught.value.name, caught.value.value) == ("selection.allocation", allocation)
    make_spec("lp", known="drop", known_level=2.5).check_without_clusters()


def test_an_invalid_percentage_is_an_error_before_scoring(make_spec):
    with pytest.raises(UserError, match="pct=0: must be in"):
        make_spec("lp").percentage(0, 100)
    with pytest.raises(UserError, match="rounds to 0"):
        make_spec("lp").percentage(0.1, 100)
    assert make_spec("lp", budget="paper").percentage(0.1, 100) == 0.1


def test_the_table_has_the_columns_of_the_contract(table, make_spec):
    arrow = select(table, make_spec("lp_app"), 40, 0).to_arrow()
    numbers = {"score": pa.float64(), "cluster": pa.int32()}
    texts = {"bucket": pa.string(), "selected": pa.bool_(), "reason": pa.string()}
    why = {"rank": pa.int32(), "nll_0": pa.float64(), "nll_1": pa.float64(), "response_tokens": pa.int32()}
    assert arrow.schema == pa.schema({"index": pa.int64(), "id": pa.string()} | numbers | texts | why)
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "files.md").read_text()
    section = page.partition("## A selection folder")[2].partition("| reason |")[0]
    first_cells = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    documented = re.findall(r"`(\w+)`", first_cells)
    assert documented == arrow.column_names
    first, second = arrow.slice(8).to_pylist()
    same = {"cluster": 9, "bucket": None, "nll_0": table.nll[0, 8]}
    assert first == same | {
        "index": 8, "id": "row-8", "score": 0.4, "selected": True, "reason": None, "rank": 1,
        "nll_1": table.nll[1, 8], "response_tokens": 4,
    }  # fmt: skip
    assert second == same | {
        "index": 9, "id": "row-9", "score": 0.0, "selected": False, "reason": "no supervised token", "rank": None,
        "nll_0": table.nll[0, 9], "nll_1": table.nll[1, 9], "response_tokens": 0,
    }  # fmt: skip
    bare = replace(table, cluster=None, id=None, nll=np.full((2, 10), np.nan), ppl=None, tokens_known=False)
    arrow = select(bare, make_spec("lp_app", budget="paper"), 40, 0).to_arrow()
    empty = [name for name in arrow.column_names if arrow[name].null_count == 10]
    assert empty == ["id", "cluster", "bucket", "reason", "nll_0", "nll_1", "response_tokens"]


def test_the_selected_rows_of_a_cluster_are_those_with_the_lowest_ranks(table, make_spec):
    # Cluster 0: rows 1, 2, 0 by score. Cluster 5: 3, 5, 7, 6, 4. Cluster 9: row 8; row 9 is not eligible.
    selection = select(table, make_spec("lp_app"), 40, 0)
    assert selection.rank.tolist() == [3, 1, 2, 1, 5, 2, 4, 3, 1, 0]
    assert chosen(selection) == [1, 3, 5, 8]
    without_scores = replace(table, nll=np.empty((0, 10)), ppl=None)
    random = select(without_scores, make_spec("random"), 40, 0)
    assert random.to_arrow()["nll_0"].null_count == 10
    assert sorted(random.rank[random.selected].tolist()) == [1, 1, 1, 2]


def test_undefined_scores_are_null_in_the_table(make_table, make_spec):
    arrow = select(make_table([[2.0, 2], [2, 1], [2, 1], [2, 1]]), make_spec("lp"), 50, 0).to_arrow()
    assert arrow["score"].to_pylist() == [None, 1.0]


def test_the_summary_compares_selected_rows_with_all(table, make_spec):
    prompt_tokens = np.arange(10, dtype=np.int32)
    table = replace(table, prompt_tokens=prompt_tokens)
    numbers = summary(select(table, make_spec("lp_app"), 40, 0), CHARACTERS)
    assert (numbers["n_total"], numbers["n_eligible"], numbers["n_selected"]) == (10, 9, 4)
    assert (numbers["clusters"], numbers["clusters_selected"]) == (3, 3)
    assert numbers["score"]["selected"] == {
        "lowest": pytest.approx(0.1),
        "mean": pytest.approx(0.25),
        "highest": pytest.approx(0.4),
    }
    assert numbers["mean_tokens"]["prompt"] == {"selected": (1 + 3 + 5 + 8) / 4, "all": 4.5}
    assert numbers["mean_tokens"]["response"] == {"selected": 4.0, "all": 3.6}
    assert statistics(numbers) == [
        ("Selection lp_app", "4 of 10 rows (40%, budget exact), from 3 of 3 clusters"),
        ("Scores", "selected 0.1 to 0.4, mean 0.25; all 0 to 0.9, mean 0.45"),
        ("Mean tokens", "prompt 4.2 (all: 4.5), response 4.0 (all: 3.6)"),
        ("Excluded", "no supervised token (1)"),
    ]


def test_without_token_counts_the_summary_has_characters(table, make_spec):
    table = replace(table, tokens_known=False)
    numbers = summary(select(table, make_spec("lp_app"), 40, 0), CHARACTERS)
    assert numbers["mean_tokens"]["prompt"] == {"selected": None, "all": None}
    assert ("Mean characters", "prompt 30.0 (all: 40.0), response 9.0 (all: 5.0)") in statistics(numbers)


def test_a_cluster_below_0_means_no_cluster(table, make_spec):
    table = replace(table, cluster=np.where(table.cluster == 5, -1, table.cluster))
    numbers = summary(select(table, make_spec("lp_app"), 40, 0), CHARACTERS)
    assert statistics(numbers)[0][1].endswith(", from 2 of 2 clusters and 2 of 5 rows without a cluster")


@st.composite
def tables(draw, make_table):
    n = draw(st.integers(1, 60))
    numbers = st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, np.nan, np.inf])
    column = st.lists(numbers, min_size=n, max_size=n)
    cluster = draw(st.none() | st.lists(st.integers(-1, 6), min_size=n, max_size=n))
    tokens = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return make_table([draw(column) for _ in range(4)], cluster, tokens)


@given(st.data(), st.sampled_from(["lp", "lp_app", "random"]), st.floats(0.01, 100), st.integers(0, 3))
def test_laws_of_the_exact_budget(make_table, make_spec, data, rule, pct, seed):
    table, spec = (
        data.draw(tables(make_table)),
        make_spec(rule, bucket=data.draw(st.sampled_from([None, "low", "mid"]))),
    )
    try:
        selection = select(table, spec, pct, seed)
    except UserError:  # less than half a row, or none eligible
        return
    asked = int(np.floor(pct * len(table) / 100 + 0.5))
    assert abs(selection.n_selected - min(asked, selection.n_eligible)) <= (pct * len(table) / 100 % 1 == 0.5)
    assert not selection.selected[table.response_tokens == 0].any()
    assert not selection.selected[selection.reason >= 0].any()
    assert selection.n_eligible + sum(selection.counts.values()) == selection.n_total
    cluster = np.zeros(len(table)) if table.cluster is None else table.cluster
    for c in np.unique(cluster[selection.reason < 0]):
        eligible = (cluster == c) & (selection.reason < 0)
        inside, outside = eligible & selection.selected, eligible & ~selection.selected
        assert abs(inside.sum() - eligible.sum() * selection.n_selected / selection.n_eligible) < 1
        if spec.bucket is None and inside.any() and outside.any():
            assert selection.score[inside].max() <= selection.score[outside].min()


@given(
    st.data(), st.sampled_from(["lp", "lp_app", "random"]), st.sampled_from(["exact", "paper"]), st.floats(0.01, 100)
)
def test_the_order_of_rows_does_not_matter(make_table, make_spec, data, rule, budget, pct):
    table, spec = data.draw(tables(make_table)), make_spec(rule, budget=budget)
    order = np.array(data.draw(st.permutations(range(len(table)))))
    shuffled = replace(
        table,
        index=table.index[order],
        id=table.id.take(pa.array(order)),
        response_tokens=table.response_tokens[order],
        nll=table.nll[:, order],
        ppl=table.ppl[:, order],
        cluster=None if table.cluster is None else table.cluster[order],
    )
    try:
        selected = select(table, spec, pct, seed=1).selected
    except UserError:
        return
    assert (select(shuffled, spec, pct, seed=1).selected == selected[order]).all()


def test_the_summary_shows_both_ends_of_the_ranking(table, make_spec):
    # LP_app .1 .2 .3 .4 ... .9 of rows 1 3 5 8 | 2 7 6 4 0; row 9 cannot be chosen
    selection = select(table, make_spec("lp_app"), 40, 0)
    found = ends(selection)
    assert found["first"].tolist() == found["last"].tolist() == [1, 3, 5, 8, 2, 7, 6, 4, 0]
    texts = {row: f"  Task {row}\nsecond line" for row in range(10)}
    shown = examples(selection, texts, found)
    assert shown["first"][0] == {"index": 1, "id": "row-1", "score": 0.1, "selected": True, "text": "Task 1"}


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan]), min_size=1, max_size=60), st.booleans())
def test_ends_are_the_lowest_and_the_highest_in_order(make_table, make_spec, values, descending):
    values = np.array(values)
    table = make_table([[2.0] * len(values)], columns={"x": values})
    try:
        selection = select(table, make_spec("score_column", column="x", columns=["x"], descending=descending), 100, 0)
    except UserError:  # nothing but NaN
        return
    key = -values if descending else values
    order = [row for row in np.lexsort((np.arange(len(values)), key)) if not np.isnan(values[row])]
    found = ends(selection)
    assert found["first"].tolist() == order[:10]
    assert found["last"].tolist() == order[-10:]


def test_of_tied_rows_the_selected_ones_are_shown_first(make_table, make_spec):
    table = make_table([[2.0] * 200], columns={"x": np.ones(200)})
    selection = select(table, make_spec("score_column", column="x", columns=["x"]), 10, 0)
    assert ends(selection)["first"].tolist() == chosen(selection)[:10]


def test_a_descending_rule_selects_high_scores(make_table, make_spec):
    table = make_table([[2.0] * 4], columns={"x": np.array([1.0, 5.0, 3.0, 2.0])})
    selection = select(table, make_spec("score_column", column="x", columns=["x"], descending=True), 50, 0)
    assert chosen(selection) == [1, 2]
    buckets = select(table, make_spec("score_column", column="x", columns=["x"], descending=True, bucket="high"), 50, 0)
    assert chosen(buckets) == [1], "buckets are thirds by score, whichever end is chosen first"
