"""Rows, tokenizers and shares at their limits: each has one answer. docs/explanation/nan-and-inf.md lists them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.tokens import tokenize
from lpsel.errors import UserError
from lpsel.model.load import load_tokenizer
from lpsel.model.spec import ModelSpec

EOS = 256  # of the toy model's tokenizer of bytes


@pytest.fixture
def rows(tmp_path):
    """Writes rows of an instruction and an answer; returns the file's path."""

    def write(*pairs):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in pairs))
        return path

    return write


def select(tmp_path, model, data, *more, command="select"):
    given = [
        "dataset=local", f"dataset.path={data}", "scorer=local", f"scorer.path={model}", "scorer.recipe.global_batch=4",
        "scorer.max_length=256", "trainer=cpu", "tracker=none", "cluster=none", f"cache_dir={tmp_path}/cache", *more,
    ]  # fmt: skip
    return run(command, given, tmp_path / "run")


def recorded(result):
    table = pq.read_table(result["scores"])
    return np.array([table[name].to_numpy() for name in table.column_names if name.startswith("nll_")])


def tokens_of(model, data, tmp_path, template="alpaca", max_length=256, tokenizer=None):
    tokenizer = tokenizer or load_tokenizer(ModelSpec("toy", str(model)), str(model))
    return tokenize(Source(DatasetSpec("rows", path=str(data))), tokenizer, template, max_length, tmp_path / "tokens")


# --- few rows, and equal ones


def test_one_row_is_scored_selected_and_trained_on(tmp_path, toy_model, rows):
    model = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1", "model.max_length=256"]
    result = select(tmp_path, toy_model, rows(("Say yes.", "yes")), "pct=100", *model, command="train")
    assert (result["n_total"], result["n_selected"], result["training"]["steps"]) == (1, 1, 1)


def test_no_rows_are_a_user_error(tmp_path, toy_model, rows):
    with pytest.raises(UserError, match=r"rows\.jsonl: no rows\. Set dataset\.path to a dataset with rows\."):
        select(tmp_path, toy_model, rows())


def test_equal_rows_have_equal_losses_and_the_first_are_selected(tmp_path, toy_model, rows):
    result = select(tmp_path, toy_model, rows(*[("Say yes.", "yes")] * 8), "pct=50")
    np.testing.assert_allclose(recorded(result), recorded(result)[:, :1].repeat(8, axis=1), rtol=1e-5)
    alone = select(tmp_path / "alone", toy_model, rows(*[("Say yes.", "yes")] * 8), "pct=50",
                   "selection.duplicates=drop")  # fmt: skip
    assert (result["n_selected"], alone["n_selected"]) == (4, 1)
    assert alone["reasons"] == {"duplicate": 7}


def test_a_percentage_below_half_a_row_is_an_error_with_the_smallest_valid_one(tmp_path, toy_model, rows):
    data = rows(("a", "b"), ("c", "d"), ("e", "f"))
    with pytest.raises(UserError, match=r"pct=16: is 0\.48 of 3 rows, which rounds to 0\. Set pct=16\.67 or more"):
        select(tmp_path, toy_model, data, "pct=16")
    assert select(tmp_path, toy_model, data, "pct=16.67")["n_selected"] == 1


# --- what is supervised


def test_an_empty_answer_supervises_only_eos(tmp_path, toy_model, rows):
    data = rows(("Say nothing.", ""), ("Say a.", "a"))
    tokens = tokens_of(toy_model, data, tmp_path)
    assert tokens.response_tokens.tolist() == [1, 2]
    assert tokens.input_ids(0)[tokens.supervised(0)].tolist() == [EOS]
    assert np.isfinite(recorded(select(tmp_path, toy_model, data, "pct=50"))).all()


def test_eos_written_in_an_answer_is_text_and_does_not_end_it(tmp_path, toy_model, rows):
    tokens = tokens_of(toy_model, rows(("x", "a<eos>b")), tmp_path)
    tokenizer = load_tokenizer(ModelSpec("toy", str(toy_model)), str(toy_model))
    characters = [tokenizer(character).input_ids[0] for character in "a<eos>b"]
    assert tokens.input_ids(0)[tokens.supervised(0)].tolist() == [*characters, EOS]


def test_eos_is_added_to_an_answer_that_ends_in_its_text(tmp_path, toy_model, rows):
    assert tokens_of(toy_model, rows(("x", "a<eos>")), tmp_path).response_tokens.tolist() == [len("a<eos>") + 1]


def test_a_padding_token_equal_to_eos_changes_no_loss(tmp_path, toy_model, rows):
    data = rows(*[(f"Say {i}.", str(i) * (i % 5)) for i in range(8)])
    padded = tmp_path / "padded"
    shutil.copytree(toy_model, padded)
    settings = json.loads((padded / "tokenizer_config.json").read_text())
    (padded / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<eos>"}))
    assert load_tokenizer(ModelSpec("padded", str(padded)), str(padded)).pad_token_id == EOS
    without = recorded(select(tmp_path, toy_model, data, "pct=50"))
    with_pad = recorded(select(tmp_path / "pad", padded, data, "pct=50"))
    np.testing.assert_array_equal(with_pad, without)


def test_without_bos_nothing_predicts_the_first_token_of_a_bare_answer(tmp_path, toy_model, byte_tokenizer, rows):
    """`plain` with an empty prompt: the answer begins the row."""
    data = rows(("", "ab"))
    assert tokens_of(toy_model, data, tmp_path, "plain").response_tokens.tolist() == [2], "b and EOS"
    assert tokens_of(None, data, tmp_path, "plain", tokenizer=byte_tokenizer).response_tokens.tolist() == [3]


def test_rows_longer_than_the_context_are_truncated_and_a_longer_limit_is_rejected(tmp_path, toy_model, rows):
    data = rows(("x" * 600, "never seen"), ("Say a.", "a" * 600), ("Say b.", "b"))
    result = select(tmp_path, toy_model, data, "pct=67")
    table = pq.read_table(result["scores"])
    assert table["truncated"].to_pylist() == [True, True, False]
    assert table["response_tokens"].to_pylist()[0] == 0
    assert result["reasons"] == {"no supervised token": 1}
    problem = r"max_length=513: \S+ has a context of 512 tokens\. Set model\.max_length=512 or less \(scorer\."
    with pytest.raises(UserError, match=problem):
        select(tmp_path / "more", toy_model, data, "pct=50", "scorer.max_length=513")


def test_every_row_may_be_truncated_if_something_of_an_answer_is_left(tmp_path, toy_model, rows):
    result = select(tmp_path, toy_model, rows(*((f"Say {a}.", a * 600) for a in "abcd")), "pct=50")
    assert pq.read_table(result["scores"])["truncated"].to_pylist() == [True] * 4
    assert (result["n_eligible"], result["n_selected"]) == (4, 2)
    with pytest.raises(UserError, match="no row of rows keeps a supervised token"):
        select(tmp_path / "none", toy_model, rows(*(("x" * 600, a) for a in "abcd")), "pct=50")


def test_float16_is_rejected_and_float16_weights_are_computed_in_float32(tmp_path, toy_model, rows):
    data = rows(("Say a.", "a"), ("Say b.", "b"))
    with pytest.raises(
        UserError, match=r"trainer\.precision=16-mixed: must be one of auto, 32-true, bf16-mixed, bf16-true"
    ):
        select(tmp_path, toy_model, data, "pct=50", "trainer.precision=16-mixed")
    half = tmp_path / "half"
    shutil.copytree(toy_model, half)
    weights = {name: w.half() for name, w in load_file(half / "model.safetensors").items()}
    for name in ("gate_proj", "up_proj"):  # whose product passes 65,504, float16's largest number
        weights[f"model.layers.0.mlp.{name}.weight"] *= 10_000
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    with torch.no_grad():
        in_float16 = AutoModelForCausalLM.from_pretrained(half)(torch.arange(20)[None]).logits
    assert not in_float16.isfinite().all()
    assert np.isfinite(recorded(select(tmp_path, half, data, "pct=50"))).all()


# --- tokens that the model does not know


@pytest.fixture
def with_new_tokens(tmp_path, toy_model):
    """The toy model's folder with two added tokens in its tokenizer, and embeddings for the first `known` of them."""

    def make(known, fill):
        folder = tmp_path / "new"
        tokenizer = AutoTokenizer.from_pretrained(toy_model)
        tokenizer.add_tokens(["<call>", "<done>"])  # special ones would stay text in rows
        model = AutoModelForCausalLM.from_pretrained(toy_model)
        if known:
            model.resize_token_embeddings(257 + known, mean_resizing=False)
            with torch.no_grad():
                fill(model.get_input_embeddings().weight)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_a_token_beyond_the_models_embeddings_is_named_with_its_row_before_the_model_is_loaded(
    tmp_path, with_new_tokens, rows, monkeypatch
):
    monkeypatch.setattr("lpsel.model.lightning_module.load_model", lambda *_: pytest.fail("a model was loaded"))
    folder = with_new_tokens(1, lambda weight: None)
    data = rows(("Say a.", "a"), ("Say <call>.", "b"), ("Say <done>.", "c"))
    with pytest.raises(UserError, match=r"new: row 2 has token 258 \(<done>\), but the model has 258 embeddings\."):
        select(tmp_path, folder, data, "pct=50")


def test_an_added_token_that_no_row_contains_is_harmless(tmp_path, with_new_tokens, rows):
    select(tmp_path, with_new_tokens(0, None), rows(("Say a.", "a"), ("Say b.", "b")), "pct=50")


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (lambda weight: weight[257:].zero_(), ["<call>"]),
        (lambda weight: weight[257:].copy_(weight[:257].mean(0)), ["<call>"]),
        (lambda weight: torch.nn.init.normal_(weight[257:]), []),
    ],
)
def test_untrained_new_tokens_are_reported(tmp_path, with_new_tokens, rows, fill, expected, caplog):
    result = select(tmp_path, with_new_tokens(2, fill), rows(("Say a.", "a"), ("Say <call>.", "b")), "pct=50")
    manifest = json.loads(Path(result["scores"]).with_name("manifest.json").read_text())
    assert manifest["untrained_tokens"] == expected
    reports = [line for line in caplog.text.splitlines() if "tokens that the model was never trained on" in line]
    assert [": <call>. " in line for line in reports] == [True] * len(expected)
