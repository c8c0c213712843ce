"""The tiny models: Hugging Face folders, built once per set of arguments."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpsel.data.column_forms import Example, Turn
from lpsel.data.templates import render
from lpsel.errors import UserError
from lpsel.toy.data import generate
from lpsel.toy.model import ALPACA, FORMULAS, formulas, make_tiny

ARGUMENTS: dict[str, int] = {"layers": 1, "hidden": 32, "heads": 2, "vocabulary": 400, "pretrain_steps": 3, "seed": 0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return make_tiny(**ARGUMENTS, cache_dir=cache)


def test_folder_loads_like_any_hugging_face_model(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (1, 32, 2)
    assert len(tokenizer) == model.config.vocab_size == 400
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id
    assert (folder / "model.safetensors").is_file()
    prompt = tokenizer("last(cat dog)=", return_tensors="pt")["input_ids"]
    made = model.generate(prompt, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    assert made.shape == (1, prompt.shape[1] + 3)


def test_tokenizer_round_trips_any_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Größe 2048 → 猫 🙂\n\ttabs,  two spaces ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("407")["input_ids"]) == ["4", "0", "7"]


def test_alpaca_prompt_is_short_in_its_tokens(cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny(**{**ARGUMENTS, "vocabulary": 704}, cache_dir=cache))
    rows = list(generate("train", rows=100, held_out=0, seed=5, wrong=0.0))
    lengths = [len(tokenizer(alpaca(row, tokenizer))["input_ids"]) for row in rows]
    assert sum(lengths) / len(lengths) < 65
    assert max(lengths) < 128


def alpaca(row: dict[str, Any], tokenizer: Any) -> str:
    turns = (Turn("user", row["instruction"]), Turn("assistant", row["output"]))
    return render(Example(turns, row["input"]), "alpaca", tokenizer).text


@pytest.mark.parametrize("given", ["", "2, 3"])
def test_the_tokenizer_is_trained_on_the_alpaca_prompt(folder: Path, given: str) -> None:
    row = {"instruction": "Add.", "input": given, "output": "5"}
    assert ALPACA[bool(given)].format(**row) == alpaca(row, AutoTokenizer.from_pretrained(folder))


def test_chat_template_renders_the_turns_and_opens_the_answer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|user|>\nHi\n<|assistant|>\n"
    )
    turns.append({"role": "assistant", "content": "Ho"})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>\nHi\n<|assistant|>\nHo<|end|>\n"


def test_the_same_arguments_give_the_same_weights(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    again = make_tiny(**ARGUMENTS, cache_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state changed"
    assert torch.get_num_threads() == threads
    assert again.parent.name == folder.parent.name
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    one, other = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, again))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_an_existing_folder_is_reused_without_leftovers(folder: Path, cache: Path) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_tiny(**ARGUMENTS, cache_dir=cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lock", "manifest.json", "model"]


def test_a_damaged_model_is_rebuilt(tmp_path: Path) -> None:
    folder = make_tiny(**ARGUMENTS, cache_dir=tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert make_tiny(**ARGUMENTS, cache_dir=tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [{"layers": 2}, {"hidden": 48}, {"heads": 1}, {"vocabulary": 300}, {"pretrain_steps": 0}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_folder(folder: Path, cache: Path, change: dict[str, int]) -> None:
    assert make_tiny(**{**ARGUMENTS, **change}, cache_dir=cache) != folder


def test_pre_training_lowers_the_loss_on_new_formulas(cache: Path) -> None:
    def answer_nll(steps: int) -> float:
        path = make_tiny(**{**ARGUMENTS, "pretrain_steps": steps}, cache_dir=cache)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        losses = []
        for question, answer in islice(formulas(seed=9), 30):
            question_ids = tokenizer(question, return_tensors="pt")["input_ids"]
            answer_ids = tokenizer(answer, return_tensors="pt")["input_ids"]
            ids = torch.cat([question_ids, answer_ids], dim=1)
            labels = ids.clone()
            labels[:, : question_ids.shape[1]] = -100
            with torch.no_grad():
                losses.append(model(input_ids=ids, labels=labels).loss)
        return float(torch.stack(losses).mean())

    assert answer_nll(80) < answer_nll(0) - 0.5


def test_pre_training_text_has_no_held_out_problem() -> None:
    def written(split: str) -> set[str]:
        rows = list(generate(split, rows=2000, held_out=2000, seed=0, wrong=0.0))
        return {
            form.format(task=row["task"], about="", given=row["input"])
            for row in rows
            if row["input"]
            for form in FORMULAS
        }

    questions = {question for question, _ in islice(formulas(seed=0), 20_000)}
    assert questions & written("train"), "no formula in a form that this test knows"
    assert not questions & written("held_out")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"layers": 0}, "tiny.layers"),
        ({"heads": 4, "hidden": 30}, "tiny.heads"),
        ({"vocabulary": 100}, "tiny.vocabulary"),
        ({"pretrain_steps": -1}, "tiny.pretrain_steps"),
    ],
)
def test_an_invalid_argument_is_rejected(tmp_path: Path, change: dict[str, int], name: str) -> None:
    with pytest.raises(UserError) as caught:
        make_tiny(**{**ARGUMENTS, **change}, cache_dir=tmp_path)
    assert (caught.value.name, caught.value.value) == (name, next(iter(change.values())))
