"""rds, task_lp and grape as commands, on a toy model."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lpsel.clustering import embeddings
from lpsel.commands import result_summary
from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError
from lpsel.model.lightning_module import FineTuner


@pytest.fixture
def select(tmp_path, toy_model, instructions):
    """Runs `select` (or another command) on 24 rows; `query` has two of them and two others."""
    rows = [json.loads(line) for line in instructions().read_text().splitlines()]
    others = [{"instruction": "Say hello.", "output": "hello"}, {"instruction": "Count to 9.", "output": "1 2 3 9"}]
    query = tmp_path / "query.jsonl"
    query.write_text("".join(json.dumps(row) + "\n" for row in [rows[3], others[0], rows[20], others[1]]))
    common = [
        "dataset=local", f"dataset.path={tmp_path}/rows.jsonl", "trainer=cpu", "tracker=none", "cluster=none", "pct=25",
        f"cache_dir={tmp_path}/cache", "scorer=local", f"scorer.path={toy_model}", "scorer.recipe.learning_rate=1e-3",
    ]  # fmt: skip

    def start(name, *overrides, command="select"):
        return run(command, [*common, *overrides], tmp_path / "runs" / name)

    start.common = common
    start.rows, start.query = tmp_path / "rows.jsonl", f"query.path={query}"
    return start


def selected(result):
    return np.flatnonzero(pq.read_table(result["selection"])["selected"].to_numpy()).tolist()


def weighted_means(model, path):
    """Position-weighted means of last hidden states, one row at a time, in plain PyTorch; unit length."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    means = []
    for row in Source(DatasetSpec("rows", path=str(path))):
        ids = tokenizer(row.example.embedding_text(), return_tensors="pt").input_ids
        with torch.no_grad():
            states = network(ids).last_hidden_state[0]
        weights = torch.arange(1, len(states) + 1, dtype=torch.float32)
        mean = (weights[:, None] * states).sum(0) / weights.sum()
        means.append((mean / mean.norm()).numpy())
    return np.array(means)


def test_rds_selects_what_an_independent_computation_of_its_vectors_selects(select, toy_model, caplog):
    result = select("rds", "selection=rds", select.query)
    similarity = weighted_means(toy_model, select.query[11:]) @ weighted_means(toy_model, select.rows).T
    scores = pq.read_table(result["selection"])["score"].to_numpy()
    np.testing.assert_allclose(scores, similarity.max(axis=0), atol=1e-5)
    picked = []
    while len(picked) < 6:
        order = np.argsort(-similarity[len(picked) % 4])
        picked.append(next(row for row in order.tolist() if row not in picked))
    assert selected(result) == sorted(picked)
    assert (result["query"]["rows"], result["query"]["rows_in_data"]) == (4, 2)
    assert "2 of 4 rows of query.path are also rows of dataset rows (leakage)" in caplog.text
    assert ("Query", f"4 rows of {select.query[11:]}, 2 also in the data") in result_summary.selection(result)
    caplog.clear()
    again = select("again", "selection=rds", select.query, f"selection.embedder={toy_model}")
    assert "Embedding" not in caplog.text
    assert again["sha256"] == result["sha256"]


def test_rds_embeds_a_row_as_it_is_where_the_model_has_a_chat_template(select, with_chat_template):
    chat = with_chat_template("{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}")
    result = select("chat", "selection=rds", select.query, f"selection.embedder={chat}")
    similarity = weighted_means(chat, select.query[11:]) @ weighted_means(chat, select.rows).T
    np.testing.assert_allclose(pq.read_table(result["selection"])["score"], similarity.max(axis=0), atol=1e-5)


def test_rds_works_with_the_target_and_with_matched_lengths(select, toy_model):
    overrides = ["selection=rds", select.query, "model=local", f"model.path={toy_model}", "model.recipe.epochs=1"]
    trained = select("train", *overrides, "selection.embedder=target", command="train")
    assert trained["n_selected"] == 6
    matched = select("matched", "selection=rds", select.query, "selection.length=matched")
    assert matched["n_selected"] == 6
    with pytest.raises(UserError) as caught:
        select("none", "selection=rds", select.query, "selection.embedder=target")
    assert (caught.value.name, caught.value.value) == ("selection.embedder", "target")


def test_rds_drops_known_and_rising_rows_by_a_scorer_trained_on_the_data_set(select):
    scored = select("scored", "selection=lp_app")
    result = select("rds", "selection=rds", select.query, "selection.known=drop", "selection.rising=drop")
    assert result["scores"] == scored["scores"]
    assert result["scores_reused"]
    nll_0, nll_1 = (pq.read_table(result["scores"])[name].to_numpy() for name in ("nll_0", "nll_1"))
    chosen = selected(result)
    assert (nll_0[chosen] >= np.median(nll_1)).all()
    assert (nll_1[chosen] <= nll_0[chosen]).all()


def test_an_embedder_of_the_selection_that_cannot_be_loaded_is_reported_as_such(select, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be loaded .* Set selection\.embedder=FOLDER") as caught:
        select("broken", "selection=rds", select.query, f"selection.embedder={tmp_path}")
    assert (caught.value.name, caught.value.value) == ("selection.embedder", str(tmp_path))


def test_task_lp_selects_the_largest_relative_drops_after_training_on_the_examples(select):
    result = select("task", "selection=task_lp", select.query)
    records = pq.read_table(result["scores"])
    before, after = records["nll_0"].to_numpy(), records["nll_1"].to_numpy()
    assert selected(result) == sorted(np.argsort(-(before - after) / before)[:6].tolist())
    assert result["query"]["rows_in_data"] == 2
    again = select("again", "selection=task_lp", select.query)
    assert (again["scores_reused"], again["sha256"]) == (True, result["sha256"])
    without = select("without", "selection=task_lp", f"scores={Path(result['scores']).parent}", "pct=50")
    assert without["n_selected"] == 12, "recorded scores need no examples"


def test_a_rule_that_does_not_use_the_examples_says_so(select, caplog):
    warning = "does not use the examples in query.path"
    select("random", "selection=random", select.query)
    assert f"selection=random {warning}; rds and task_lp do." in caplog.text
    caplog.clear()
    select("rds", "selection=rds", select.query)
    assert warning not in caplog.text


def select_and_kill(overrides, run_dir):
    """`select`, whose last rank ends by SIGKILL at its first training step or when it stores its first embeddings."""

    step = FineTuner.training_step

    def kill(*_):
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed(self, batch, i):
        if batch.micro_batches:
            kill()
        return step(self, batch, i)

    FineTuner.training_step, embeddings._write = killed, kill
    run("select", overrides, run_dir)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("rule", "statuses"), [("rds", [-9]), ("task_lp", [1, -9])])
def test_two_ranks_select_the_same_rows_for_a_task_after_a_kill(select, tmp_path, as_ranks, rule, statuses):
    asked = [f"selection={rule}", select.query]
    alone = select("alone", *asked, f"cache_dir={tmp_path}/alone")

    def on(ranks):
        return [*select.common, *asked, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={ranks}"]

    world, run_dir = len(statuses), tmp_path / "runs" / "ranks"
    assert as_ranks(world, select_and_kill, on(world), run_dir, may_fail=True) == statuses
    as_ranks(2, run, "select", on(2), run_dir)
    assert selected(json.loads((run_dir / "result.json").read_text())) == selected(alone)


@pytest.mark.parametrize("rule", ["rds", "task_lp"])
def test_rules_for_a_task_need_examples_of_it(select, rule):
    with pytest.raises(UserError) as caught:
        select("none", f"selection={rule}")
    assert (caught.value.name, caught.value.value) == ("query.path", "null")


def test_other_rules_report_examples_that_are_in_the_data(select):
    result = select("random", "selection=random", select.query)
    assert (result["query"]["rows_in_data"], result["n_selected"]) == (2, 6)


def test_grape_selects_the_answer_that_the_target_finds_most_likely(select, toy_model):
    # 24 rows with 7 prompts: 29% are exactly one answer to each.
    target = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1"]
    result = select("grape", "selection=grape", "pct=29", *target, command="train")
    nll = pq.read_table(result["scores"])["nll_0"].to_numpy()
    best = [min(range(first, 24, 7), key=lambda row: nll[row]) for first in range(7)]
    assert selected(result) == sorted(best)
    recorded = select("recorded", "selection=grape", "pct=29", f"scores={Path(result['scores']).parent}")
    assert recorded["sha256"] == {name: result["sha256"][name] for name in recorded["sha256"]}
    rows = [json.loads(line) | {"task": number % 2} for number, line in enumerate(select.rows.read_text().splitlines())]
    select.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_column = select("column", "selection=grape", "selection.group=task", "pct=8")
    assert selected(by_column) == sorted(min(range(first, 24, 2), key=lambda row: nll[row]) for first in (0, 1))


def test_grape_needs_several_answers_to_a_prompt(select):
    lines = select.rows.read_text().splitlines()[:7]
    select.rows.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        select("grape", "selection=grape")
    assert (caught.value.name, caught.value.problem) == ("selection.group", "no two of 7 rows have the same prompt")
