"""What a selection is made from is checked, all of it, before a model is loaded."""

import json

import pyarrow.parquet as pq
import pytest

from lpsel.commands.job import run
from lpsel.errors import UserError


@pytest.fixture
def select(tmp_path, toy_model):
    """Runs `lpsel select` on rows with further options."""

    def run_select(rows, *options):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [f"dataset.path={file}", f"scorer.path={toy_model}", f"cache_dir={tmp_path}/cache"]
        fixed = ["dataset=local", "scorer=local", "tracker=none", "pct=50"]
        return run("select", [*fixed, *given, *options], tmp_path / "run")

    return run_select


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["selection=combine", "selection.combine={lp_app: 1, quality: 1}", "cluster=none"], "row 2 has 'n/a'"),
        (["selection=lp_app", "cluster=column", "cluster.column=topic"], "row 2 has only instruction, output, quality"),
    ],
)
def test_columns_are_checked_in_every_row_before_rows_are_scored(select, monkeypatch, options, message):
    monkeypatch.setattr("lpsel.scoring.scorer.scores_for", lambda *_: pytest.fail("rows are scored"))
    row = {"instruction": "Add.", "output": "5"}
    rows = [row | {"quality": 1, "topic": "sums"}, row | {"quality": None, "topic": "sums"}, row | {"quality": "n/a"}]
    with pytest.raises(UserError, match=message):
        select(rows, *options)


def test_rows_without_an_answer_to_train_on_are_not_selected_by_scores_without_token_counts(select, tmp_path):
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    turns = [[question], [question, answer], [question, answer | {"weight": 0}], [question, answer]]
    (tmp_path / "scores.csv").write_text("reward\n4\n1\n3\n2\n")
    ranked = ["selection=score_column", "selection.column=reward", "selection.descending=true", "cluster=none"]
    result = select([{"messages": row} for row in turns], *ranked, f"scores={tmp_path}/scores.csv")
    selection = pq.read_table(result["selection"])
    assert selection["selected"].to_pylist() == [False, True, False, True]
    assert selection["reason"].to_pylist() == ["no supervised token", None, "no supervised token", None]


@pytest.mark.parametrize("ids", [["b", "a"], ["9", "8"], ["a", "b"]])
def test_scores_with_the_ids_of_the_rows_in_another_order_are_rejected(select, tmp_path, ids):
    rows = [{"id": id, "instruction": "Add.", "output": id} for id in ("a", "b")]
    (tmp_path / "scores.csv").write_text(f"id,reward\n{ids[0]},1\n{ids[1]},2\n")
    ranked = ["selection=score_column", "selection.column=reward", "cluster=none", f"scores={tmp_path}/scores.csv"]
    if ids == ["b", "a"]:
        with pytest.raises(UserError, match="row 0 has id b, but row 0 of dataset rows has a"):
            select(rows, *ranked)
    else:  # in the same order, or numbers of the user's own
        assert pq.read_table(select(rows, *ranked)["selection"])["selected"].to_pylist() == [True, False]
