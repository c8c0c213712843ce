"""Which prompt and which scorer the rows of a dataset get where the user sets neither."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.templates import holds_conversations

ROOT = Path(__file__).resolve().parents[2]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '<eos>' if m.role == 'assistant' }}{% endfor %}"
INSTRUCTIONS = [{"instruction": f"Count to {i}.", "output": " ".join(map(str, range(i)))} for i in range(1, 13)]
MESSAGES = [
    {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
    for row in INSTRUCTIONS
]


@pytest.fixture(scope="module")
def chat_model(with_chat_template):
    """A model with a chat template."""
    return with_chat_template(CHAT)


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(tmp_path, model, rows, *more):
    """result.json of a training run, and the manifest of its scores."""
    data = written(tmp_path / "rows.jsonl", rows)
    overrides = [
        "dataset=local", f"dataset.path={data}", "scorer=local", f"scorer.path={model}", "model=local",
        f"model.path={model}", "model.recipe.epochs=1", "cluster=none", "trainer=cpu", "tracker=none", "pct=50",
        f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    result = run("train", [*overrides, *more], tmp_path / "run")
    return result, json.loads((Path(result["scores"]).parent / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("rows", "with_template", "expected"),
    [
        (MESSAGES, True, "chat"),
        (MESSAGES, False, "alpaca"),
        (INSTRUCTIONS, True, "alpaca"),
        (MESSAGES[:6] + INSTRUCTIONS[6:], True, "chat"),
        (INSTRUCTIONS[:6] + MESSAGES[6:], True, "alpaca"),
    ],
    ids=[
        "chats",
        "chats without a chat template",
        "instructions",
        "mixed, a chat first",
        "mixed, an instruction first",
    ],
)
def test_conversations_get_the_chat_template_where_there_is_one(
    rows, with_template, expected, tmp_path, chat_model, toy_model, caplog
):
    caplog.set_level(logging.INFO)
    result, manifest = trained(tmp_path, chat_model if with_template else toy_model, rows)
    templates = (result["scorer"]["template"], manifest["template"], result["base_model"]["template"])
    assert templates == (expected,) * 3
    prompt = {"chat": "the tokenizer's chat template", "alpaca": "Alpaca's prompt"}[expected]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Tokens for ")]
    assert len(lines) == 2, "of scorer and target"
    assert all(f": {prompt}; 0 of 12 rows (0.0%) are truncated to 512 tokens, " in line for line in lines)


def test_the_prompt_that_the_dataset_decides_has_the_same_scores_as_one_that_is_set(tmp_path, chat_model):
    first, _ = trained(tmp_path, chat_model, INSTRUCTIONS)
    second, _ = trained(
        tmp_path / "again", chat_model, INSTRUCTIONS, f"cache_dir={tmp_path}/cache", "scorer.template=alpaca"
    )
    assert second["scores_reused"]
    assert second["scores"] == first["scores"]


def test_an_evaluation_on_conversations_uses_the_chat_template_of_each_model(tmp_path, chat_model, toy_model):
    data = written(tmp_path / "rows.jsonl", MESSAGES[:3])
    overrides = [
        "dataset=local", f"dataset.path={data}", f"models=[{chat_model},{toy_model}]", "trainer=cpu", "tracker=none",
        "evaluator.max_new_tokens=2", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    result = run("evaluate", overrides, tmp_path / "run")
    assert [model["template"] for model in result["models"]] == ["chat", "alpaca"]


def test_turns_in_prompt_and_completion_are_a_conversation(tmp_path):
    user, answer = MESSAGES[0]["messages"]
    for row, expected in (
        ({"prompt": [user], "completion": [answer]}, True),
        ({"prompt": "a", "completion": "b"}, False),
    ):
        data = written(tmp_path / f"{expected}.jsonl", [row])
        assert holds_conversations(Source(DatasetSpec("x", str(data)))) is expected


# --- the scorer


def select(tmp_path, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lpsel", "select", *arguments, "cluster=none", "trainer=cpu", "tracker=none"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LPSEL_CACHE": "cache"} | environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )  # fmt: skip


@pytest.fixture
def hub(tmp_path, toy_model):
    """A local Hub cache whose SmolLM2-135M is the toy model."""
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M"
    shutil.copytree(toy_model, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return tmp_path / "hub"


@pytest.mark.slow
def test_rows_of_the_users_own_are_scored_by_a_real_model(tmp_path, hub):
    written(tmp_path / "rows-1.jsonl", INSTRUCTIONS[:6])
    written(tmp_path / "rows-2.jsonl", INSTRUCTIONS[6:])
    done = select(tmp_path, "dataset=rows-*.jsonl", "pct=50%", "hydra.run.dir=run", HF_HUB_CACHE=str(hub))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["scorer"]["name"], result["pct"], result["n_selected"]) == ("smollm2-135m", 50, 6)
    assert "pct=50 of 12 rows is only 6 rows" in done.stderr + done.stdout
    assert "toy" not in done.stderr + done.stdout


def test_the_toy_scorer_on_rows_of_the_users_own_is_a_choice_with_a_warning(tmp_path, toy_model, caplog):
    data = written(tmp_path / "rows.jsonl", INSTRUCTIONS)
    tiny = [
        f"{role}.tiny.{size}" for role in ("scorer", "model") for size in ("pretrain_steps=0", "hidden=16", "heads=2")
    ]
    overrides = [
        "dataset=local", f"dataset.path={data}", "cluster=none", "trainer=cpu", "tracker=none", "pct=100", *tiny,
        "scorer.recipe.epochs=1", "model.recipe.epochs=1", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    run("train", overrides, tmp_path / "run")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(" is a toy")[0] for text in warnings if "is a toy" in text] == [
        "scorer=tiny",
        "model=tiny-target",
    ]
