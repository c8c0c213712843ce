"""A percentage of the tokens of all rows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.commands.result_summary import statistics
from lpsel.errors import UserError
from lpsel.selection.select import select
from lpsel.selection.summary import summary


def test_the_hardest_rows_that_fit_are_selected(make_table, make_spec):
    # Prompts have 10 tokens: the rows have 20, 30, 40, 50 and 60, 200 in all. Hardest first: rows 4, 2, 0, 1, 3.
    table = make_table([[100.0] * 5, [30, 20, 40, 10, 50]], response_tokens=[10, 20, 30, 40, 50])

    def rows(pct):
        return np.flatnonzero(select(table, make_spec("lp_app", pct_of="tokens"), pct, 0).selected).tolist()

    assert rows(50) == [2, 4], "60 + 40 tokens are exactly half"
    assert rows(49) == [4]
    assert rows(60) == [0, 2, 4]
    assert rows(15) == [4], "at least one row"
    assert rows(100) == [0, 1, 2, 3, 4]


def test_the_budget_is_exact(make_table, make_spec):
    # Rows of one token, so that 29% of 100 tokens are 29 rows; in floats, 29 / 100 * 100 is 28.999999999999996.
    table = make_table([[100.0] * 100, np.linspace(10, 50, 100)])
    table = replace(table, prompt_tokens=np.zeros(100, np.int32))
    assert select(table, make_spec("lp_app", pct_of="tokens"), 29, 0).n_selected == 29


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(5, 60), st.floats(10, 100), st.sampled_from(["none", "matched"]))
def test_one_more_row_would_be_too_many_tokens(make_table, make_spec, data, n, pct, length):
    response = np.array(data.draw(st.lists(st.integers(1, 400), min_size=n, max_size=n)))
    table = make_table([[100.0] * n, data.draw(st.permutations(range(1, n + 1)))], response_tokens=response)
    tokens, budget = table.prompt_tokens + response, pct / 100 * (10 * n + response.sum())
    chosen = select(table, make_spec("lp_app", pct_of="tokens", length=length), pct, 0)
    assert chosen.n_selected == 1 or tokens[chosen.selected].sum() <= budget
    if chosen.n_selected < n:
        next_pct = 100 * (chosen.n_selected + 1) / n
        more = select(table, make_spec("lp_app", length=length), min(next_pct, 100), 0)
        assert more.n_selected == chosen.n_selected + 1
        assert tokens[more.selected].sum() > budget


@pytest.mark.parametrize("rule", ["random", "longest", "s2l"])
def test_clusters_contribute_their_shares(make_table, make_spec, rule):
    rng = np.random.default_rng(0)
    response, cluster = rng.integers(1, 200, 400), np.repeat([0, 1], 200)
    table = make_table(rng.uniform(1, 9, (4, 400)), cluster, response)
    spec = make_spec(rule, pct_of="tokens", **({"trajectory_clusters": 5} if rule == "s2l" else {}))
    chosen = select(table, spec, 25, 0)
    tokens = 10 + response
    assert 0.24 < tokens[chosen.selected].sum() / tokens.sum() <= 0.25
    first, second = np.bincount(cluster[chosen.selected])
    assert abs(first - second) <= 1


def test_token_counts_are_needed(make_table, make_spec):
    table = make_table([[4.0, 4.0], [2.0, 3.0]], tokens_known=False)
    with pytest.raises(UserError, match=r"selection\.pct_of=tokens: these scores have no token counts"):
        select(table, make_spec("lp_app", pct_of="tokens"), 50, 0)


def test_the_summary_has_the_percentage_of_the_tokens(make_table, make_spec):
    table = make_table([[100.0] * 5, [30, 20, 40, 10, 50]], response_tokens=[10, 20, 30, 40, 50])
    characters = {side: {"selected": 1.0, "all": 1.0} for side in ("prompt", "response")}

    def described(pct):
        chosen = select(table, make_spec("lp_app", pct_of="tokens"), pct, 0)
        return statistics(summary(chosen, characters))[0][1]

    assert described(50) == "2 of 5 rows (50% of the tokens, budget exact)"
    assert described(49) == "1 of 5 rows (30% of the tokens, 49% requested, budget exact)"
