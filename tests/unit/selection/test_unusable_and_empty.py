"""Rows without an answer to learn from, and rows that cannot be used, are not selected."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.errors import UserError
from lpsel.scoring.read import read_scores
from lpsel.scoring.table import ScoreTable
from lpsel.selection import exclusions
from lpsel.selection.select import select
from lpsel.selection.summary import summary

N = 8
KINDS = pa.array([None] * 6 + ["images", "a list as text"]).dictionary_encode()


def table(**fields):
    """LP_app is lowest for row 0, then 1, 2, ...; row i has i + 1 response tokens."""
    tokens = np.arange(1, N + 1, dtype=np.int32)
    nll = np.log(np.array([np.full(N, 10.0), 10 - np.arange(N, dtype=np.float64)]))
    cluster = np.zeros(N, np.int32)
    return ScoreTable(np.arange(N), None, tokens, tokens, np.zeros(N, np.bool_), nll, cluster, **fields)


def selected(table, spec, pct=50):
    return np.flatnonzero(select(table, spec, pct, 0).selected).tolist()


def reasons(table, spec):
    return select(table, spec, 50, 0).to_arrow()["reason"].to_pylist()


def empty(*rows):
    return np.isin(np.arange(N), rows)


def test_empty_answers_give_their_place_to_the_next_rows(make_spec):
    assert selected(table(), make_spec("lp_app")) == [0, 1, 2, 3]
    without = table(empty_answer=empty(0, 2))
    assert selected(without, make_spec("lp_app")) == [1, 3, 4, 5]
    assert reasons(without, make_spec("lp_app")) == ["empty answer", None, "empty answer", *[None] * 5]


def test_an_empty_answer_is_the_reason_where_no_token_is_supervised_either(make_spec):
    both = table(empty_answer=empty(0))
    both.response_tokens[:2] = 0
    assert reasons(both, make_spec("lp_app"))[:3] == ["empty answer", "no supervised token", None]


def test_the_released_budget_and_training_on_everything_keep_empty_answers(make_spec):
    without = table(empty_answer=empty(0, 2))
    assert selected(without, make_spec("lp_app", budget="paper")) == [0, 1, 2, 3]
    assert selected(without, make_spec("full"), pct=100) == list(range(N))


def test_short_answers_are_below_the_floor(make_spec):
    spec = make_spec("lp_app", min_response_tokens=3)
    assert reasons(table(), spec) == ["short answer"] * 2 + [None] * 6
    assert selected(table(), spec) == [2, 3, 4, 5]


def test_a_floor_needs_token_counts(make_spec):
    with pytest.raises(UserError) as caught:
        select(table(tokens_known=False), make_spec("lp_app", min_response_tokens=3), 50, 0)
    assert (caught.value.name, caught.value.value) == ("selection.min_response_tokens", 3)


@pytest.mark.parametrize(("fields", "problem"), [
    ({"min_response_tokens": 0}, "must be an integer, at least 1"),
    ({"min_response_tokens": 2, "budget": "paper"}, "is not part of the released method"),
])  # fmt: skip
def test_a_floor_that_cannot_be_set_is_rejected(make_spec, fields, problem):
    with pytest.raises(UserError) as caught:
        make_spec("lp_app", **fields)
    assert (caught.value.name, caught.value.problem) == ("selection.min_response_tokens", problem)


@pytest.mark.parametrize("budget", ["exact", "paper"])
def test_unusable_rows_are_never_selected_and_have_no_cluster(make_spec, budget):
    selection = select(table(unusable=KINDS), make_spec("lp_app", budget=budget), 100, 0)
    assert np.flatnonzero(selection.selected).tolist() == list(range(6))
    written = selection.to_arrow()
    assert written["reason"].to_pylist() == [None] * 6 + ["unusable: images", "unusable: a list as text"]
    assert written["cluster"].to_pylist() == [0] * 6 + [None] * 2
    assert selection.n_eligible == 6


def test_unusable_rows_may_be_of_many_kinds(make_table, make_spec):
    # A column unusable of the user's own may say something else about every row.
    unusable = pa.array([None, *(f"kind {i}" for i in range(300))])
    selection = select(make_table([[2.0] * 301] * 2, unusable=unusable), make_spec("random"), 1, 0)
    assert np.flatnonzero(selection.selected).tolist() == [0]
    assert selection.to_arrow()["reason"].to_pylist() == [None, *(f"unusable: kind {i}" for i in range(300))]
    assert selection.counts == {f"unusable: kind {i}": 1 for i in range(300)}


def test_the_summary_counts_unusable_rows_and_leaves_them_out_of_means(make_spec):
    statistics = summary(select(table(unusable=KINDS), make_spec("lp_app"), 50, 0), {})
    assert statistics["rows_unusable"] == {"a list as text": 1, "images": 1}
    assert statistics["mean_tokens"]["response"] == {"selected": 2.5, "all": 3.5}
    assert summary(select(table(), make_spec("lp_app"), 50, 0), {})["rows_unusable"] == {}


def test_a_table_in_another_order_takes_both_along():
    order = np.arange(N)[::-1]
    turned = table(empty_answer=empty(1), unusable=KINDS).take(order)
    assert np.flatnonzero(turned.empty_answer).tolist() == [6]
    assert turned.unusable.to_pylist() == KINDS.to_pylist()[::-1]
    assert np.flatnonzero(~turned.usable).tolist() == [0, 1]


def test_scores_read_which_rows_were_skipped(tmp_path):
    columns = {"nll_0": [1.0, None, 2.0], "unusable": pa.array([None, "images", None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet").unusable.to_pylist() == [None, "images", None]
    pq.write_table(pa.table({**columns, "unusable": [1, 2, 3]}), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="column unusable is int64"):
        read_scores(tmp_path / "scores.parquet")


def test_reasons_and_columns_are_documented(make_spec):
    documented = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "files.md").read_text()
    reasons = [value for name, value in vars(exclusions).items() if name.isupper() and isinstance(value, str)]
    assert {"unusable: ", "empty answer", "short answer"} <= set(reasons)
    assert all(f"`{reason}" in documented for reason in reasons)
    columns = select(table(), make_spec("lp_app"), 50, 0).to_arrow().column_names
    assert all(f"`{column}`" in documented for column in columns)
