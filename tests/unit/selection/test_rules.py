"""Every rule on rows few enough to rank by hand; one of them has no supervised token."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.scoring.metrics import mid_ranks
from lpsel.selection.rules import PROMPT
from lpsel.selection.select import select

TOKENS = [3, 9, 5, 7, 0]


def ranking(table, spec):
    """Rows in the order in which they are chosen."""
    sizes = [100 * n / len(table) for n in range(1, len(table) + 1)]
    chosen = [set(np.flatnonzero(select(table, spec, pct, 0).selected).tolist()) for pct in sizes]
    order = list(chosen[0])
    for before, after in pairwise(chosen):
        assert before <= after
        order += sorted(after - before)
    return order


def reasons(table, spec):
    return select(table, spec, 100, 0).counts


def test_longest_takes_the_most_supervised_tokens(make_table, make_spec):
    table = make_table([[2.0] * 5], response_tokens=TOKENS)
    selection = select(table, make_spec("longest"), 40, 0)
    assert selection.score.tolist() == TOKENS
    assert selection.descending
    assert ranking(table, make_spec("longest")) == [1, 3, 2, 0]


def test_longest_needs_to_know_lengths(make_table, make_spec):
    table = make_table([[2.0] * 5], tokens_known=False)
    with pytest.raises(UserError, match="selection=longest: these scores have no token counts"):
        select(table, make_spec("longest"), 40, 0)


def test_perplexity_takes_a_band(make_table, make_spec):
    # Ranks of the four rows with a response: 0, 3, 1, 2 around the middle 1.5.
    table = make_table([[4.0, 100.0, 6.0, 7.0, 1.0], [1.0] * 5], response_tokens=TOKENS)
    assert ranking(table, make_spec("perplexity")) == [1, 3, 2, 0]
    assert ranking(table, make_spec("perplexity", band="low")) == [0, 2, 3, 1]
    mid = select(table, make_spec("perplexity", band="mid"), 40, 0)
    assert np.flatnonzero(mid.selected).tolist() == [2, 3]
    assert mid.score == pytest.approx([1.5 / 4, 1.5 / 4, 0.5 / 4, 0.5 / 4, np.nan], nan_ok=True)


def test_grape_takes_the_likeliest_answer_to_every_prompt_first(make_table, make_spec):
    # Prompts 0 0 0 1 1 2 2; ranks of the losses within them. Row 2 has the lowest loss of prompt 0 and an empty answer.
    nll = [[3.0, 2, 1, 5, 4, 9, np.nan]]
    columns = {PROMPT: np.array([0.0, 0, 0, 1, 1, 2, 2])}
    empty = np.arange(7) == 2
    table = make_table(np.exp(nll), columns=columns, empty_answer=empty)
    selection = select(table, make_spec("grape"), 3 / 7 * 100, 0)
    assert np.flatnonzero(selection.selected).tolist() == [1, 4, 5]
    assert np.floor(selection.score) == pytest.approx([1, 0, np.nan, 1, 0, 0, np.nan], nan_ok=True)
    assert selection.counts == {"empty answer": 1, "score is undefined": 1}
    seeds = {tuple(select(table, make_spec("grape"), 15, seed).selected) for seed in range(20)}
    assert len(seeds) == 3, "which prompts come first is random"


def test_grape_ranks_second_answers_after_all_first_ones_even_where_an_option_excludes_the_first(make_table, make_spec):
    # Two answers each to prompts 0, 1 and 2. Row 0, the likeliest of prompt 0, is known: row 1 stays a second answer.
    # Row 4 is unusable: row 5 is the likeliest of prompt 2.
    columns = {PROMPT: np.array([0.0, 0, 1, 1, 2, 2])}
    unusable = pa.array([None, None, None, None, "images", None])
    table = make_table(np.exp([[1.0, 2, 3, 4, np.nan, 5]]), columns=columns, unusable=unusable)
    spec = make_spec("grape", known="drop", known_level=1.5)
    first, second = ({tuple(np.flatnonzero(select(table, spec, pct, seed).selected).tolist()) for seed in range(20)}
                     for pct in (2 / 6 * 100, 3 / 6 * 100))  # fmt: skip
    assert first == {(2, 5)}
    assert second == {(1, 2, 5), (2, 3, 5)}, "which prompts get a second row is random"


def test_grape_needs_a_group(make_spec):
    with pytest.raises(UserError) as caught:
        make_spec("grape", group=None)
    assert (caught.value.name, caught.value.value) == ("selection.group", "null")


def test_grape_keeps_its_ranks_where_clusters_divide_the_answers_to_a_prompt(make_table, make_spec):
    columns = {PROMPT: np.repeat(np.arange(20.0), 2)}
    ppl = np.random.default_rng(0).random((1, 40)) + 1
    table = make_table(ppl, columns=columns, cluster=np.arange(40) % 2)
    best = np.repeat(ppl.reshape(20, 2).min(axis=1), 2) == ppl[0]
    selected = select(table, make_spec("grape"), 25, 0).selected
    assert selected.sum() == 10
    assert (selected <= best).all()


def test_task_lp_takes_the_largest_relative_drops(make_table, make_spec):
    nll = np.array([[4.0, 2, 1, 3, 5], [2, 1.8, 0.9, 3.3, 5]])
    table = make_table(np.exp(nll), response_tokens=TOKENS)
    selection = select(table, make_spec("task_lp"), 40, 0)
    assert selection.score == pytest.approx([0.5, 0.1, 0.1, -0.1, 0])
    assert ranking(table, make_spec("task_lp"))[-1] == 3


def test_ifd_is_the_ratio_of_losses_and_stays_below_1(make_table, make_spec):
    alone = np.array([4.0, 2.0, 5.0, 0.0, np.nan])
    table = make_table(np.exp([[2.0, 3.0, 4.0, 1.0, 0.0]]), response_tokens=TOKENS, columns={"nll_0_noprompt": alone})
    selection = select(table, make_spec("ifd", columns=["nll_0_noprompt"]), 20, 0)
    # 2/4, 3/2, 4/5, undefined, no response
    assert selection.score == pytest.approx([0.5, 1.5, 0.8, np.nan, np.nan], nan_ok=True)
    assert np.flatnonzero(selection.selected).tolist() == [2]
    assert selection.counts == {"no supervised token": 1, "IFD of 1 or more": 1, "score is undefined": 1}


def test_superfilter_is_the_ratio_of_perplexities(make_table, make_spec):
    # P = e^2 / e^4, e^3 / e^2, e^4 / e^5: the order of the ratios of losses is another one
    table = make_table(
        np.exp([[2.0, 3.0, 4.0, 0.1, 0.0]]),
        response_tokens=TOKENS,
        columns={"nll_0_noprompt": np.array([4.0, 2.0, 5.0, 0.3, np.nan])},
    )
    spec = make_spec("superfilter", columns=["nll_0_noprompt"])
    selection = select(table, spec, 20, 0)
    expected = [math.exp(-2), math.e, math.exp(-1), math.exp(-0.2), np.nan]
    assert selection.score == pytest.approx(expected, nan_ok=True)
    assert ranking(table, spec) == [3, 2, 0]
    assert ranking(table, make_spec("ifd", columns=["nll_0_noprompt"])) == [2, 0, 3]


@pytest.mark.parametrize("name", ["ifd", "superfilter"])
def test_ratios_of_losses_that_are_not_finite_are_not_scores(make_table, make_spec, name):
    # 2/4 is the only ratio; without the check, 3 / infinity would be 0, and infinity / 4 "1 or more".
    alone = np.array([4.0, np.inf, 4.0, np.inf, np.nan])
    table = make_table([np.exp([2.0, 3.0, np.inf, np.inf, 2.0])], columns={"nll_0_noprompt": alone})
    selection = select(table, make_spec(name, columns=["nll_0_noprompt"]), 100, 0)
    assert np.isfinite(selection.score).tolist() == [True, False, False, False, False]
    assert selection.selected.tolist() == [True, False, False, False, False]
    assert selection.counts == {"nll is not finite": 3, "score is undefined": 1}


def test_el2n_takes_the_largest_errors(make_table, make_spec):
    table = make_table([[2.0] * 5], response_tokens=TOKENS, columns={"el2n_0": np.array([0.1, 1.4, np.nan, 0.7, 2])})
    spec = make_spec("el2n", columns=["el2n_0"])
    assert ranking(table, spec) == [1, 3, 0]
    assert reasons(table, spec) == {"no supervised token": 1, "score is undefined": 1}


def test_forgetting_counts_rises_and_orders_ties_by_the_last_loss(make_table, make_spec):
    #        row 0  rises twice; 1 once, ends at 3; 2 once, ends at 4; 3 never; 4 has no response
    nll = np.array([[2, 2, 2, 2, 0], [3, 1, 4, 1, 0], [1, 3, 3.8, 1, 0], [2, 3, 3.5, 0.5, 0]])
    table = make_table(np.exp(nll), response_tokens=TOKENS)
    spec = make_spec("forgetting")
    # Ranks of the last loss: 2, 3, 4, 1, 0 of five
    assert select(table, spec, 20, 0).score == pytest.approx([2 + 3 / 6, 1 + 4 / 6, 1 + 5 / 6, 2 / 6, 1 / 6])
    assert ranking(table, spec) == [0, 2, 1, 3]


def test_learning_speed_is_the_mean_drop_over_epochs(make_table, make_spec):
    # 1 - (2 + 1 + 1)/3/4, 1 - (4 + 3 + 2)/3/4, 1 - (1 + 1 + 1)/3/4; L_0 = 0 is undefined
    nll = np.array([[4, 4, 4, 0, 0], [2, 4, 1, 1, 0], [1, 3, 1, 1, 0], [1, 2, 1, 1, 0]])
    table = make_table(np.exp(nll), response_tokens=TOKENS)
    spec = make_spec("learning_speed")
    assert select(table, spec, 20, 0).score[:3] == pytest.approx([2 / 3, 1 / 4, 3 / 4])
    assert ranking(table, spec) == [1, 0, 2]


def test_lp_of_losses_in_place_of_perplexities(make_table, make_spec):
    # Of NLL: (4-2)/(4-1) and (4-3)/(4-2). Of perplexity: near 1 for both.
    table = make_table(np.exp([[4.0, 4.0], [2.0, 3.0], [2.0, 3.0], [1.0, 2.0]]))
    assert select(table, make_spec("lp", basis="nll"), 50, 0).score == pytest.approx([2 / 3, 1 / 2])
    assert select(table, make_spec("lp_app", basis="nll"), 50, 0).score == pytest.approx([2 / 4, 1 / 4])
    e = math.e
    assert select(table, make_spec("lp"), 50, 0).score[1] == pytest.approx((e**4 - e**3) / (e**4 - e**2))


def test_any_column_ranks(make_table, make_spec):
    table = make_table([[2.0] * 5], response_tokens=TOKENS, columns={"reward": np.array([3, -1, np.nan, 2, 9])})
    assert ranking(table, make_spec("score_column", column="reward", columns=["reward"])) == [1, 3, 0]
    assert ranking(table, make_spec("score_column", column="reward", descending=True, columns=["reward"])) == [0, 3, 1]


def test_cluster_random_takes_whole_clusters(make_table, make_spec):
    cluster = np.repeat([3, 5, 8], [6, 2, 4])
    table = make_table([[2.0] * 12], cluster)
    spec = make_spec("cluster_random", clusters="rule")
    drawn = set()
    for seed in range(30):
        selection = select(table, spec, 50, seed)
        assert selection.n_selected == 6
        taken = {c: int(selection.selected[cluster == c].sum()) for c in (3, 5, 8)}
        parts = [c for c in taken if 0 < taken[c] < (cluster == c).sum()]
        assert len(parts) <= 1, "all but the last cluster drawn are whole"
        drawn |= {c for c in taken if taken[c]}
        place = random_keys(table.id, table.index, seed)
        first = min(taken, key=lambda c: place[cluster == c].min())
        assert taken[first] == min(6, (cluster == first).sum())
    assert drawn == {3, 5, 8}


def test_cluster_random_needs_clusters(make_table, make_spec):
    with pytest.raises(UserError, match="selection=cluster_random: needs clusters, and there are none"):
        select(make_table([[2.0] * 4]), make_spec("cluster_random", clusters="rule"), 50, 0)


COLUMNS = {"columns": ["x"]}


@pytest.mark.parametrize(
    ("name", "fields", "option", "problem"),
    [
        ("perplexity", {"band": "up"}, "band", "must be one of high, low, mid"),
        ("lp", {"basis": "loss"}, "basis", "must be one of perplexity, nll"),
        ("lp", {"band": "high"}, "band", "selection=lp has no such option"),
        ("lp", {"duplicates": "no"}, "duplicates", "must be one of keep, drop"),
        ("lp", {"allocation": "even"}, "allocation", "must be one of proportional, equal, cluster_mean"),
        ("lp", {"length": "short"}, "length", "must be one of none, matched"),
        ("lp", {"clusters": "all"}, "clusters", "must be one of shared, rule, none"),
        ("lp", {"allocation": "equal", "budget": "paper"}, "allocation", "is not part of the released method"),
        ("lp", {"allocation": "equal", "clusters": "none"}, "allocation", "needs selection.clusters=shared"),
        ("k_center", {"budget": "paper"}, "budget", "needs a score for every row"),
        ("k_center", {"allocation": "cluster_mean"}, "allocation", "needs a score for every row"),
        ("score_column", {"column": "x", "descending": "yes"} | COLUMNS, "descending", "must be true or false"),
        ("deita", {"complexity": "x", "quality": "y", "threshold": "near"} | COLUMNS, "threshold", "must be a number"),
    ],
)
def test_an_invalid_option_is_an_error(make_spec, name, fields, option, problem):
    with pytest.raises(UserError) as caught:
        make_spec(name, **fields)
    assert (caught.value.name, caught.value.value) == (f"selection.{option}", fields[option])
    assert caught.value.problem.startswith(problem)


def test_a_rule_without_its_column_is_an_error(make_spec):
    with pytest.raises(UserError, match="selection=score_column: needs a column to rank by"):
        make_spec("score_column", column=None, columns=[None])


def test_a_column_that_was_not_recorded_is_an_error(make_table, make_spec):
    with pytest.raises(UserError, match="selection=el2n: needs the column el2n_0, which these scores lack"):
        select(make_table([[2.0] * 4]), make_spec("el2n", columns=["el2n_0"]), 50, 0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_mid_ranks_count_the_rows_below_and_half_the_others_that_tie(values):
    array = np.array(values, np.float64)
    expected = [(array < v).sum() + ((array == v).sum() - 1) / 2 for v in values]
    assert mid_ranks(array).tolist() == expected


RULES = {
    "perplexity": {},
    "cluster_random": {"clusters": "rule"},
    "longest": {},
    "ifd": {"columns": ["nll_0_noprompt"]},
    "superfilter": {"columns": ["nll_0_noprompt"]},
    "el2n": {"columns": ["el2n_0"]},
    "forgetting": {},
    "learning_speed": {},
    "score_column": {"column": "reward", "columns": ["reward"]},
}


@given(st.data(), st.sampled_from(sorted(RULES)), st.sampled_from(["proportional", "equal", "cluster_mean"]))
def test_sizes_are_exact_and_the_order_of_rows_does_not_matter(make_table, make_spec, data, name, allocation):
    n = data.draw(st.integers(4, 30))
    number = st.sampled_from([0.5, 1.0, 2.0, 3.0, np.nan])
    draw = lambda: np.array(data.draw(st.lists(number, min_size=n, max_size=n)))  # noqa: E731
    tokens = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    cluster = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    columns = {"nll_0_noprompt": draw(), "el2n_0": draw(), "reward": draw()}
    table = make_table([draw() for _ in range(4)], cluster, tokens, columns=columns)
    settings = RULES[name] | ({} if name == "cluster_random" else {"allocation": allocation})
    spec = make_spec(name, **settings)
    order = np.array(data.draw(st.permutations(range(n))))
    try:
        selection = select(table, spec, 50, 1)
    except UserError:  # none eligible
        return
    assert selection.n_selected == min((n + 1) // 2, selection.n_eligible)
    shuffled = select(replace(table.take(order), index=table.index[order]), spec, 50, 1)
    assert (shuffled.selected == selection.selected[order]).all()


@pytest.mark.parametrize(
    ("name", "least"),
    [
        *({"lp": 2, "lp_nll": 2, "lp_app": 1, "lp_app_nll": 1, "task_lp": 1, "forgetting": 1}.items()),
        *({"learning_speed": 1, "s2l": 1, "perplexity": 0, "grape": 0, "ifd": 0, "superfilter": 0, "el2n": 0}.items()),
    ],
)
def test_a_rule_has_at_least_the_epochs_of_its_formula(make_spec, name, least):
    assert make_spec(name, epochs=least).epochs == least
    for fewer in (None, least - 1):
        with pytest.raises(UserError) as caught:
            make_spec(name, epochs=fewer)
        assert (caught.value.name, caught.value.value) == ("selection.epochs", fewer)
        assert caught.value.problem == f"must be an integer, at least {least}"
