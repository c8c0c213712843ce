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
    settings = ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"scores={tmp_path}/scores.csv", "tracker=none"]
    return run("select", [*settings, "cluster=none", "pct=50"], tmp_path / "run")["subset"], rows[1::2]


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


def system_and_turns(row):
    """The system prompt and the turns of a row of a source, its input in the first one."""
    turns = [(turn.role, turn.content) for turn in row.example.turns]
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    if row.example.input:
        turns[0] = ("user", f"{turns[0][1]}\n{row.example.input}")
    return system, turns


forms = pytest.mark.parametrize(("form", "position"), [(ALPACA, 0), (CHATS, 1)], ids=["alpaca", "chats"])


@pytest.mark.parametrize("program", ["LLaMA-Factory", "axolotl"])
@forms
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
        assert read(entry, row) == system_and_turns(expected)


@forms
def test_llama_factory_itself_reads_a_subset(form, position, tmp_path):
    parser = pytest.importorskip("llamafactory.data.parser", reason="pip install --no-deps llamafactory torchaudio")
    from datasets import load_dataset
    from llamafactory.data.converter import get_dataset_converter

    path, chosen = every_second(form, tmp_path)
    (tmp_path / "dataset_info.json").write_text(configuration("json").replace("SUBSET", str(path)))
    name = list(json.loads(configuration("json")))[position]
    (attributes,) = parser.get_dataset_list([name], str(tmp_path))
    assert (attributes.load_from, attributes.dataset_name) == ("file", str(path))
    convert = get_dataset_converter(attributes.formatting, attributes, data_args=None)
    rows = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(chosen) == 4
    for row, expected in zip(rows, Source(DatasetSpec("subset", str(path))), strict=True):
        read = convert(row)
        turns = [(turn["role"], turn["content"]) for turn in (*read["_prompt"], *read["_response"])]
        assert (read["_system"], turns) == system_and_turns(expected)


@forms
def test_axolotl_itself_reads_a_subset(form, position, with_chat_template, tmp_path):
    strategies = pytest.importorskip("axolotl.prompt_strategies", reason="pip install --no-deps axolotl addict")
    from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
    from axolotl.prompters import AlpacaPrompter
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset
    from transformers import AutoTokenizer

    path, chosen = every_second(form, tmp_path)
    entry = yaml.safe_load(configuration("yaml"))["datasets"][position]
    template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(with_chat_template(template))
    settings = DictDefault(sequence_len=2048, train_on_inputs=False)
    strategy = strategies.load(entry["type"], tokenizer, settings, DictDefault(entry))
    if strategy is None:  # `type: alpaca` is in axolotl's own table, which creates this
        strategy = AlpacaPromptTokenizingStrategy(AlpacaPrompter(None), tokenizer, False, 2048)
    rows = load_dataset(entry["ds_type"], data_files=path, split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(chosen) == 4
    for row, expected in zip(rows, Source(DatasetSpec("subset", str(path))), strict=True):
        read = strategy.tokenize_prompt(row)
        supervised = [token for token in read["labels"] if token != -100]
        _, turns = system_and_turns(expected)
        assert tokenizer.decode(supervised).removesuffix("<eos>").endswith(turns[-1][1])
        fed = tokenizer.decode(read["input_ids"])
        assert [line for line in turns[0][1].splitlines() if line not in fed] == []


def test_trl_trains_on_it(subset, toy_model, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    path, chosen = subset
    rows = load_dataset("json", data_files=path, split="train")
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False}
    trainer = SFTTrainer(str(toy_model), args=SFTConfig(str(tmp_path), num_train_epochs=1, **quiet), train_dataset=rows)
    trainer.train()
    for fed, row in zip(trainer.train_dataset, chosen, strict=True):
        assert trainer.processing_class.decode(fed["input_ids"]) == row["prompt"] + row["completion"] + "<eos>"


def test_trl_trains_on_the_turns_of_chats(toy_model, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in PAIRS
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
    for fed, row in zip(trainer.train_dataset, chosen, strict=True):
        user, assistant = row["messages"]
        assert tokenizer.decode(fed["input_ids"]) == f"u:{user['content']}<eos>a:{assistant['content']}<eos>"
