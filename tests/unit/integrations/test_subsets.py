"""Other frameworks read a subset without conversion."""

import json

import pytest

from lpsel.commands.job import run

PAIRS = [{"prompt": f"Count to {n}.", "completion": " " + " ".join(map(str, range(n)))} for n in range(1, 9)]


@pytest.fixture
def subset(tmp_path):
    return every_second(PAIRS, tmp_path)


def every_second(rows, tmp_path):
    """Every second of eight rows, selected by their scores."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["ppl_0,ppl_1", *(f"10,{9 if n % 2 else 2}" for n in range(8))]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    given = ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"scores={tmp_path}/scores.csv", "tracker=none"]
    return run("select", [*given, "cluster=none", "pct=50"], tmp_path / "run")["subset"], rows[1::2]


def test_datasets_reads_it(subset):
    from datasets import load_dataset

    path, chosen = subset
    assert load_dataset("json", data_files=path, split="train").to_list() == chosen


def test_trl_trains_on_it(subset, toy_model, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    path, chosen = subset
    rows = load_dataset("json", data_files=path, split="train")
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
    trainer = SFTTrainer(str(toy_model), args=SFTConfig(str(tmp_path), num_train_epochs=1, **quiet), train_dataset=rows)
    trainer.train()
    assert [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset] == [
        row["prompt"] + row["completion"] + "<eos>" for row in chosen
    ]


def test_trl_trains_on_the_turns_of_chats(toy_model, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    chats = [
        {"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant"), of, strict=True)]}
        for of in ((row["prompt"], row["completion"]) for row in PAIRS)
    ]
    path, chosen = every_second(chats, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
    trainer = SFTTrainer(
        str(toy_model),
        args=SFTConfig(str(tmp_path), num_train_epochs=1, **quiet),
        train_dataset=load_dataset("json", data_files=path, split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    assert [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset] == [
        f"u:{user['content']}<eos>a:{assistant['content']}<eos>"
        for user, assistant in (row["messages"] for row in chosen)
    ]
