"""What the recorded scores depend on, and what they do not: batches, row order, processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures.configurations import compose
from hydra import initialize_config_dir

from lpsel.commands.job import Job, run
from lpsel.config import build, config_dir
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError
from lpsel.model.load import load_model, load_tokenizer
from lpsel.scoring.read import read_scores
from lpsel.scoring.scorer import scores_for
from lpsel.selection import rules
from lpsel.storage import sha256_of
from lpsel.tracking.tracker import Tracker

ROOT = Path(__file__).resolve().parents[3]
# A rate at which the toy model moves, few steps an epoch, batches of several rows.
RECIPE = ["scorer.recipe.learning_rate=1e-3", "scorer.recipe.global_batch=8", "scorer.max_length=256"]


def score(tmp_path, model, data, *overrides, epochs=2, columns=(), cache="cache", query=None):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        given = [f"scorer.path={model}", f"dataset.path={data}", *RECIPE, *overrides]
        config = compose("select", overrides=["scorer=local", "dataset=local", "trainer=cpu", *given])
    job = Job("select", config, tmp_path / "run", tmp_path / cache, Tracker())
    source, trained_on = Source(build(config.dataset)), query and Source(DatasetSpec("query", path=str(query)))
    return scores_for(job.training_setup(), build(config.scorer), source, epochs, columns, trained_on)


def nll(scores):
    table = pq.read_table(scores.table)
    return np.array([table[name].to_numpy() for name in table.column_names if name.startswith("nll_")])


def test_the_scores_folder_is_the_contracts(tmp_path, toy_model, instructions):
    scores = score(tmp_path, toy_model, instructions())
    table = pq.read_table(scores.table)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("index", "int64"),
        ("id", "string"),
        ("prompt_tokens", "int32"),
        ("response_tokens", "int32"),
        ("truncated", "bool"),
        ("nll_0", "double"),
        ("nll_1", "double"),
        ("nll_2", "double"),
    ]
    assert table["index"].to_pylist() == list(range(24))
    # Row 3 answers "0 1 2 3 #3": ten bytes and EOS.
    assert table["response_tokens"][3].as_py() == 11
    manifest = scores.manifest()
    assert manifest["sha256"] == {"scores.parquet": sha256_of(scores.table)}
    assert manifest["epochs"] == 2
    assert manifest["recipe"]["learning_rate"] == 1e-3
    assert {"dataset_fingerprint", "scorer", "tokenizer_hash", "template_hash", "seed", "precision", "versions",
            "git_commit", "tokens", "flops", "wall_seconds"} <= manifest.keys()  # fmt: skip


def test_the_pass_before_training_is_the_models_own_loss(tmp_path, toy_model, instructions):
    import torch

    data = instructions()
    scores = score(tmp_path, toy_model, data)
    spec = build(compose_scorer(toy_model))
    model, tokenizer = load_model(spec, str(toy_model), torch.float32), load_tokenizer(spec, str(toy_model))
    for i, line in enumerate(data.read_text().splitlines()):
        row = json.loads(line)
        prompt = tokenizer(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{row['instruction']}\n\n### Response:"
        )["input_ids"]
        answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            own = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.item()
        assert nll(scores)[0, i] == pytest.approx(own, rel=1e-4)


def compose_scorer(model):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("select", overrides=["scorer=local", f"scorer.path={model}"]).scorer


def test_training_lowers_the_loss(tmp_path, toy_model, instructions):
    before, after_1, after_2 = nll(score(tmp_path, toy_model, instructions())).mean(axis=1)
    assert before > after_1 > after_2


@pytest.mark.parametrize("budget", [1, 10_000])
def test_scores_do_not_depend_on_the_size_of_batches(tmp_path, toy_model, instructions, budget):
    data = instructions()
    first = score(tmp_path, toy_model, data)
    second = score(tmp_path, toy_model, data, f"train_tokens={budget}", f"score_tokens={budget}", cache="other")
    np.testing.assert_allclose(nll(second), nll(first), rtol=1e-5)


def test_scores_do_not_depend_on_the_order_of_the_rows(tmp_path, toy_model, instructions):
    order = np.random.default_rng(0).permutation(24)
    first = score(tmp_path, toy_model, instructions())
    second = score(tmp_path, toy_model, instructions(name="shuffled.jsonl", order=order))
    np.testing.assert_allclose(nll(second), nll(first)[:, order], rtol=1e-5)


LAUNCHERS = {
    "2 started by Lightning": (2, [sys.executable]),
    "3 started by Lightning": (3, [sys.executable]),
    "2 started by torchrun": (2, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_scores_do_not_depend_on_the_number_of_processes(tmp_path, toy_model, instructions, launcher):
    """25 rows: neither 2 nor 3 processes get equal numbers of them."""
    processes, python = LAUNCHERS[launcher]
    data = instructions(rows=25)
    one = score(tmp_path, toy_model, data)
    command = [
        *python, "select.py", f"scorer.path={toy_model}", f"dataset.path={data}", *RECIPE, "trainer=ddp",
        "trainer.accelerator=cpu", f"trainer.devices={processes}", "selection=lp", "selection.epochs=2", "pct=20",
        "cluster=none", "tracker=none", f"hydra.run.dir={tmp_path}/run", f"cache_dir={tmp_path}/ddp",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/run"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["n_selected"] == 5
    several = pq.read_table(result["scores"])
    manifest = json.loads((Path(result["scores"]).parent / "manifest.json").read_text())
    assert manifest["world_size"] == processes
    for epoch, expected in enumerate(nll(one)):
        np.testing.assert_allclose(several[f"nll_{epoch}"].to_numpy(), expected, rtol=1e-5)


def test_scores_are_found_again(tmp_path, toy_model, instructions):
    data = instructions()
    first, second = score(tmp_path, toy_model, data), score(tmp_path, toy_model, data)
    assert (first.reused, second.reused) == (False, True)
    assert second.folder == first.folder


def test_three_recorded_epochs_serve_where_one_is_needed_and_say_the_same(tmp_path, toy_model, instructions):
    data = instructions()
    three = score(tmp_path, toy_model, data, epochs=3)
    assert score(tmp_path, toy_model, data, epochs=1).folder == three.folder
    one = score(tmp_path, toy_model, data, epochs=1, cache="other")
    np.testing.assert_array_equal(nll(one), nll(three)[:2])


@pytest.mark.parametrize(
    "change", ["scorer.recipe.seed=1", "scorer.max_length=192", "scorer.recipe.learning_rate=2e-3"]
)
def test_another_recipe_is_scored_anew(tmp_path, toy_model, instructions, change):
    data = instructions()
    first = score(tmp_path, toy_model, data, epochs=1)
    second = score(tmp_path, toy_model, data, change, epochs=1)
    assert not second.reused
    assert second.folder != first.folder


def test_scores_name_the_precision_that_auto_selects(tmp_path, toy_model, instructions, monkeypatch):
    data = instructions()
    whole = score(tmp_path, toy_model, data, "trainer.precision=auto", epochs=0)
    monkeypatch.setattr("lpsel.model.device.bfloat16_speedup", lambda: 7.0)
    monkeypatch.setattr("lpsel.model.device.WIDE", 16)
    mixed = score(tmp_path, toy_model, data, "trainer.precision=auto", epochs=0)
    assert (whole.manifest()["precision"], mixed.manifest()["precision"]) == ("32-true", "bf16-mixed")
    assert score(tmp_path, toy_model, data, "trainer.precision=bf16-mixed", epochs=0).folder == mixed.folder
    # bfloat16 has 8 significant bits, so a logit of a few units is off by at most about 0.01.
    np.testing.assert_allclose(nll(mixed), nll(whole), atol=0.05)
    assert not np.array_equal(nll(mixed), nll(whole))


def test_rows_without_a_supervised_token_have_null_records(tmp_path, toy_model, instructions):
    data = instructions(rows=6)
    long = {"instruction": "x" * 300, "input": "", "output": "never seen"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    table = pq.read_table(score(tmp_path, toy_model, data).table)
    assert table["response_tokens"].to_pylist()[-1] == 0
    assert table["truncated"].to_pylist()[-1] is True
    assert [table[f"nll_{e}"].to_pylist()[-1] for e in range(3)] == [None, None, None]
    assert table["nll_0"].null_count == 1


def test_a_scorer_trained_on_the_rows_as_examples_of_a_task_gives_lp_app_nll_with_the_sign_flipped(
    tmp_path, toy_model, instructions
):
    data = instructions()
    usual, by_task = score(tmp_path, toy_model, data, epochs=1), score(tmp_path, toy_model, data, epochs=1, query=data)
    assert by_task.folder != usual.folder
    tables = [read_scores(scores.table) for scores in (usual, by_task)]
    lp_app_nll, drop = rules.lp_app_nll(tables[0], seed=0), rules.task_lp(tables[1], seed=0)
    np.testing.assert_allclose(drop.score, lp_app_nll.score, rtol=1e-4, atol=1e-6)
    assert (drop.descending, lp_app_nll.descending) == (True, False)
    same = score(tmp_path, toy_model, data, epochs=1, query=data)
    assert (same.reused, same.folder) == (True, by_task.folder)


def test_a_scorer_trained_on_examples_of_a_task_is_not_trained_on_the_rows(tmp_path, toy_model, instructions):
    data, query = instructions(), instructions(rows=8, name="query.jsonl")
    scores = score(tmp_path, toy_model, data, epochs=1, query=query)
    # The loss of the same rows among the examples, trained on and recorded there, is the same.
    alone = score(tmp_path, toy_model, query, epochs=1)
    np.testing.assert_allclose(nll(scores)[:, :8], nll(alone), rtol=1e-5)
    assert nll(scores).shape == (2, 24)
    lengths = np.array([pq.read_table(scores.table)[f"{side}_tokens"] for side in ("prompt", "response")]).sum(axis=0)
    assert scores.manifest()["tokens"] == 2 * lengths.sum() + lengths[:8].sum()
    assert scores.manifest()["rows_trained"] == 8


def written(tmp_path, rows):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_may_be_truncated_but_not_every_answer(tmp_path, toy_model):
    """A question of 12 bytes and an answer of 40: 20 tokens keep 8 bytes of the answer, 12 keep none."""
    rows = [{"instruction": f"Question {i:2}?", "output": f"{i:2} " * 13 + "!"} for i in range(20)]
    data = written(tmp_path, [*rows, {"instruction": "x", "output": ["y"]}])
    given = ["dataset.bad_rows=skip", "scorer.template=plain"]
    scores = score(tmp_path, toy_model, data, *given, "scorer.max_length=20", epochs=0)
    table = pq.read_table(scores.table)
    assert table["response_tokens"].to_pylist() == [8] * 20 + [0]
    assert table["truncated"].to_pylist() == [True] * 20 + [False]
    assert np.isfinite(nll(scores)[0, :20]).all()
    with pytest.raises(UserError, match="no row of own keeps a supervised token"):
        score(tmp_path, toy_model, data, *given, "scorer.max_length=12", epochs=0)


def test_rows_with_the_same_first_256_tokens_have_the_losses_of_rows_on_their_own(tmp_path, toy_model):
    import torch

    same = "The same instruction for all rows. " * 8
    rows = [{"instruction": f"{same[:256]}{i}?", "output": f"{i} and {i + 1}"} for i in range(30)]
    given = ["scorer.template=plain", "scorer.max_length=512"]
    scores = score(tmp_path, toy_model, written(tmp_path, rows), *given, epochs=0)
    spec = build(compose_scorer(toy_model))
    model, tokenizer = load_model(spec, str(toy_model), torch.float32), load_tokenizer(spec, str(toy_model))
    for row, recorded in zip(rows, nll(scores)[0], strict=True):
        prompt, answer = (tokenizer(row[side])["input_ids"] for side in ("instruction", "output"))
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        labels = torch.where(torch.arange(ids.shape[1]) < len(prompt), -100, ids)
        with torch.no_grad():
            assert recorded == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-4)


def test_more_epochs_than_the_recipe_has_are_refused(tmp_path, toy_model, instructions):
    with pytest.raises(UserError, match=r"scorer.recipe.epochs=1: the selection needs 3 recorded epochs"):
        score(tmp_path, toy_model, instructions(), "scorer.recipe.epochs=1", epochs=3)


def test_a_rule_that_needs_no_epoch_trains_nothing(tmp_path, toy_model, instructions):
    data = instructions()
    none = score(tmp_path, toy_model, data, epochs=0)
    one = score(tmp_path, toy_model, data, epochs=1)
    assert not one.reused
    np.testing.assert_allclose(nll(none), nll(one)[:1], rtol=1e-6)
    lengths = sum(np.array(pq.read_table(none.table)[f"{side}_tokens"]).sum() for side in ("prompt", "response"))
    assert (none.manifest()["epochs"], none.manifest()["tokens"]) == (0, lengths)
    assert one.manifest()["tokens"] == 3 * lengths
    assert score(tmp_path, toy_model, data, epochs=0).folder == none.folder


def test_more_epochs_serve_where_none_is_needed(tmp_path, toy_model, instructions):
    data = instructions()
    one = score(tmp_path, toy_model, data, epochs=1)
    assert score(tmp_path, toy_model, data, epochs=0).folder == one.folder


def test_further_columns_are_recorded_before_training(tmp_path, toy_model, instructions):
    import torch
    from torch.nn.functional import one_hot

    data = instructions(rows=6)
    long = {"instruction": "x" * 300, "input": "", "output": "never seen"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    scores = score(tmp_path, toy_model, data, epochs=0, columns=("nll_0_noprompt", "el2n_0"))
    table = pq.read_table(scores.table)
    assert table.column_names[-3:] == ["nll_0", "el2n_0", "nll_0_noprompt"]
    assert scores.manifest()["columns"] == ["el2n_0", "nll_0_noprompt"]

    spec = build(compose_scorer(toy_model))
    model, tokenizer = load_model(spec, str(toy_model), torch.float32), load_tokenizer(spec, str(toy_model))
    for i, line in enumerate(data.read_text().splitlines()[:6]):
        row = json.loads(line)
        answer = torch.tensor([[*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]])
        prompt = tokenizer(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{row['instruction']}\n\n### Response:", return_tensors="pt",
        )["input_ids"]  # fmt: skip
        with torch.no_grad():
            alone = model(input_ids=answer, labels=answer).loss.item()  # no BOS: the first token is not predicted
            logits = model(input_ids=torch.cat([prompt, answer], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
        error = (logits.softmax(-1) - one_hot(answer[0], logits.shape[1])).norm(dim=-1).mean().item()
        assert table["nll_0_noprompt"][i].as_py() == pytest.approx(alone, rel=1e-4)
        assert table["el2n_0"][i].as_py() == pytest.approx(error, rel=1e-4)
    assert [table[name][6].as_py() for name in ("nll_0", "nll_0_noprompt", "el2n_0")] == [None] * 3


def test_a_folder_without_the_column_is_not_reused_and_one_with_more_is(tmp_path, toy_model, instructions):
    data = instructions(rows=8)
    plain = score(tmp_path, toy_model, data, epochs=0)
    both = score(tmp_path, toy_model, data, epochs=0, columns=("nll_0_noprompt", "el2n_0"))
    assert not both.reused
    assert both.folder != plain.folder
    assert score(tmp_path, toy_model, data, epochs=0, columns=("el2n_0",)).folder == both.folder
    assert score(tmp_path, toy_model, data, epochs=0).reused


def test_columns_before_training_do_not_depend_on_the_number_of_processes(tmp_path, toy_model, instructions, as_ranks):
    data, columns = instructions(rows=25), ("el2n_0", "nll_0_noprompt")
    one = pq.read_table(score(tmp_path, toy_model, data, epochs=0, columns=columns).table)
    overrides = [
        f"scorer.path={toy_model}", f"dataset.path={data}", *RECIPE, "trainer=ddp", "trainer.accelerator=cpu",
        "trainer.devices=2", "selection=ifd", "selection.columns=[nll_0_noprompt,el2n_0]", "pct=20", "cluster=none",
        "tracker=none", "scorer=local", "dataset=local", f"cache_dir={tmp_path}/ddp",
    ]  # fmt: skip
    as_ranks(2, run, "select", overrides, tmp_path / "run")
    two = pq.read_table(json.loads((tmp_path / "run" / "result.json").read_text())["scores"])
    for name in ("nll_0", *columns):
        np.testing.assert_allclose(two[name].to_numpy(), one[name].to_numpy(), rtol=1e-5)
