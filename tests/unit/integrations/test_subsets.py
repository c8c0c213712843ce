"""Other frameworks read a subset without conversion."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source

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


ODD = [
    {"instruction": "Add 1 and 2.", "input": "", "output": 3},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"prompt": "Name a color.", "completion": " red"},
    {"instruction": "Explain.", "output": "Because\u2028it is so."},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hey"},
        ]
    },
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
    {"instruction": "Scale.", "output": "x", "weight": 0.5, "tags": ["a", None]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "id": "x-1"},
]


@pytest.mark.parametrize("part", [ODD, ODD[4:] + ODD[:4], ODD[1:] + ODD[:1]], ids=["first", "second", "odd"])
def test_datasets_reads_rows_of_mixed_forms(part, tmp_path):
    from datasets import load_dataset

    path, chosen = every_second(part, tmp_path)
    rows = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert [{key: value for key, value in row.items() if value is not None} for row in rows] == chosen


GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "frameworks.md"
ALPACA = [{"instruction": f"Count to {n}.", "input": "words" * (n % 2), "output": "one"} for n in range(8)]
CHATS = [
    {"messages": [{"role": "system", "content": "Be brief."}] * (n % 2) + [
        {"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": "one"},
    ]} for n in range(8)
]  # fmt: skip


def configuration(language):
    """The only block of the guide in a language."""
    return re.search(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]


def llama_factory(entry, row):
    """The system prompt and the turns of a row, by the rules of LLaMA-Factory's data/README.md."""
    columns, tags = entry["columns"], entry.get("tags", {})
    if entry.get("formatting", "alpaca") == "alpaca":
        question = "\n".join(filter(None, (row[columns["prompt"]], row[columns["query"]])))
        return "", [("user", question), ("assistant", row[columns["response"]])]
    turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in row[columns["messages"]]]
    system = turns.pop(0)[1] if turns[0][0] == tags["system_tag"] else ""
    role = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant"}
    return system, [(role[name], text) for name, text in turns]


def axolotl(entry, row):
    """The turns of a row, by axolotl's documentation of `type: alpaca` and `type: chat_template`."""
    assert set(entry) <= {"path", "ds_type", "type", "field_messages"}
    if entry["type"] == "alpaca":
        question = "\n".join(filter(None, (row["instruction"], row["input"])))
        return "", [("user", question), ("assistant", row["output"])]
    assert entry["type"] == "chat_template"
    turns = [(turn["role"], turn["content"]) for turn in row[entry["field_messages"]]]
    return (turns[0][1], turns[1:]) if turns[0][0] == "system" else ("", turns)


@pytest.mark.parametrize("program", ["LLaMA-Factory", "axolotl"])
@pytest.mark.parametrize(("form", "position"), [(ALPACA, 0), (CHATS, 1)], ids=["alpaca", "chats"])
def test_the_configuration_of_the_guide_reads_a_subset(program, form, position, tmp_path):
    from datasets import load_dataset

    path, chosen = every_second(form, tmp_path)
    if program == "axolotl":
        entry, read = yaml.safe_load(configuration("yaml"))["datasets"][position], axolotl
        file, kind = entry["path"], entry["ds_type"]
    else:
        entry, read = list(json.loads(configuration("json")).values())[position], llama_factory
        file, kind = entry["file_name"], "json"
    rows = load_dataset(kind, data_files=file.replace("SUBSET", str(path)), split="train", cache_dir=str(tmp_path))
    source = Source(DatasetSpec("subset", str(path)))
    assert len(rows) == len(chosen) == 4
    for row, expected in zip(rows, source, strict=True):
        turns = [(turn.role, turn.content) for turn in expected.example.turns]
        system = turns.pop(0)[1] if turns[0][0] == "system" else ""
        if expected.example.input:
            turns[0] = ("user", f"{turns[0][1]}\n{expected.example.input}")
        assert read(entry, row) == (system, turns)


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
