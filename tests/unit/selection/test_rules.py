"""Every rule on rows few enough to rank by hand; one of them has no supervised token."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.scoring.metrics import mid_ranks
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
    with pytest.raises(UserError, match=r"selection=longest: these scores do not say how long rows are\. Add columns"):
        select(table, make_spec("longest"), 40, 0)


def test_perplexity_takes_a_band(make_table, make_spec):
    # Ranks of the four rows with a response: 0, 3, 1, 2 around the middle 1.5.
    table = make_table([[4.0, 100.0, 6.0, 7.0, 1.0], [1.0] * 5], response_tokens=TOKENS)
    assert ranking(table, make_spec("perplexity")) == [1, 3, 2, 0]
    assert ranking(table, make_spec("perplexity", band="low")) == [0, 2, 3, 1]
    mid = select(table, make_spec("perplexity", band="mid"), 40, 0)
    assert np.flatnonzero(mid.selected).tolist() == [2, 3]
    assert mid.score == pytest.approx([1.5 / 4, 1.5 / 4, 0.5 / 4, 0.5 / 4, np.nan], nan_ok=True)


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
    with pytest.raises(UserError, match=r"selection=cluster_random: draws whole clusters and there are none"):
        select(make_table([[2.0] * 4]), make_spec("cluster_random", clusters="rule"), 50, 0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("perplexity", {"band": "up"}, "selection.band=up: must be high, low or mid."),
        ("lp", {"basis": "loss"}, "selection.basis=loss: must be perplexity or nll."),
        ("lp", {"band": "high"}, "selection.band=high: selection=lp has no such option; leave it out."),
        ("lp", {"duplicates": "no"}, "selection.duplicates=no: must be keep or drop."),
        ("lp", {"allocation": "even"}, "selection.allocation=even: must be proportional, equal or cluster_mean."),
        ("lp", {"length": "short"}, "selection.length=short: must be none or matched."),
        ("lp", {"clusters": "all"}, "selection.clusters=all: must be shared, rule or none."),
        (
            "lp",
            {"allocation": "equal", "budget": "paper"},
            "selection.allocation=equal: needs selection.budget=exact; budget=paper repeats what was released.",
        ),
        (
            "lp",
            {"allocation": "equal", "clusters": "none"},
            "selection.allocation=equal: needs selection.clusters=shared; selection=lp does not share its rows over "
            "clusters.",
        ),
        (
            "k_center",
            {"budget": "paper"},
            "selection.budget=paper: needs a score for every row, selection=k_center picks rows one after another. "
            "Leave it out, or choose a rule that scores.",
        ),
        (
            "score_column",
            {"column": None, "columns": [None]},
            "selection=score_column: names no column to rank by. Say selection.column=NAME (deita: complexity=, "
            "quality=), a column of numbers in scores=FILE or in the data set.",
        ),
        (
            "score_column",
            {"column": "x", "columns": ["x"], "descending": "yes"},
            "selection.descending=yes: must be true or false.",
        ),
        (
            "deita",
            {"complexity": "x", "quality": "y", "threshold": "near"},
            "selection.threshold=near: must be a number, or null.",
        ),
    ],
)
def test_a_mistyped_option_is_named(make_spec, name, fields, message):
    with pytest.raises(UserError) as error:
        make_spec(name, **fields)
    assert str(error.value) == message


def test_a_column_that_was_not_recorded_is_named(make_table, make_spec):
    with pytest.raises(UserError) as error:
        select(make_table([[2.0] * 4]), make_spec("el2n", columns=["el2n_0"]), 50, 0)
    assert str(error.value) == (
        "selection=el2n: needs the column el2n_0, which these scores lack. Leave scores= out, so that the scorer "
        "records it, or add the column."
    )


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
