"""The tutorials' files and commands with a toy model, and the commands of guides with a real one."""

import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "wrong_input"))
DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIALS = DOCS / "tutorials"
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def commands_of(text):
    """The lines of the page's command blocks that run something; train.py and the like as `lpsel train`."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [
        re.sub(r"^python (train|select|evaluate)\.py", r"lpsel \1", line.removeprefix(".venv/bin/")) for line in lines
    ]
    return [line for line in lines if line.startswith(("lpsel ", "python "))]


def run_on_few_rows(text, names, toy_model, capsys):
    """Run a page's commands on 80 embedded rows with a toy model; `names` are those of the run folders, in order."""
    from in_process import run

    small = {
        "train": f"dataset.synthetic.rows=80 scorer={toy_model} scorer.recipe.learning_rate=1e-3 "
        f"model={toy_model} cluster=none",
        "evaluate": "dataset.limit=4 evaluator.max_new_tokens=4",
    }
    runs = {}
    for line in commands_of(text):
        for name, folder in {**runs, "tiny-target": str(toy_model)}.items():
            line = line.replace(name, folder)
        command = shlex.split(line)[1]
        if command in small:
            line += f" {small[command]} trainer=cpu tracker=none"
        if command == "train" and "dataset=" not in line:
            line += " dataset=embedded"  # which a model of one's own does not imply
        ended = run(line.removeprefix("lpsel "), capsys)
        assert ended.status is None, ended.err
        if command in small:
            runs[names[len(runs)]] = ended.out.splitlines()[-1]
    return [Path(folder) for folder in runs.values()]


@pytest.fixture
def chat_model(with_chat_template):
    """The toy model with a chat template."""
    template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    return str(with_chat_template(template + "{% if add_generation_prompt %}a:{% endif %}"))


def test_chats_to_trl(chat_model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from in_process import run

    text = (TUTORIALS / "chats-to-trl.md").read_text()
    chats, train = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("chats.py").write_text(chats.replace("rows=300, held_out=60", "rows=30, held_out=8"))
    Path("train_trl.py").write_text(train)
    runpy.run_path("chats.py")
    chats, held_out = (set(Path(f"{name}.jsonl").read_text().splitlines()) for name in ("chats", "held-out"))
    assert (len(chats), len(held_out), chats & held_out) == (30, 8, set())

    commands = [shlex.split(line.replace(REAL, chat_model)) for line in commands_of(text)]
    assert [command[1] for command in commands] == ["select", "select", "train_trl.py", "evaluate"]
    folder = None
    for program, *arguments in commands:
        if program == "python":
            monkeypatch.setattr(sys, "argv", [argument.replace("RUN_FOLDER", folder) for argument in arguments])
            runpy.run_path(arguments[0])
            continue
        small = {"select": ["cluster=none"], "evaluate": ["dataset.limit=4", "evaluator.max_new_tokens=4"]}
        ended = run(shlex.join([*arguments, "tracker=none", "trainer=cpu", *small[arguments[0]]]), capsys)
        assert ended.status is None, ended.err
        folder = ended.out.splitlines()[-1]
    evaluated = json.loads((Path(folder) / "result.json").read_text())
    assert [model["model"] for model in evaluated["models"]] == [chat_model, "trained"]
    assert evaluated["n"] == 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    from in_process import run

    quickstart = (TUTORIALS.parents[1] / "README.md").read_text().split("## Quickstart\n")[1].split("\n## ")[0]
    shown = re.search(r"```text\n(.*?)```", quickstart, re.DOTALL)[1].splitlines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    first = shlex.split(commands_of(quickstart)[0], comments=True)[1:]
    ended = run(shlex.join([*first, "tracker=none", "trainer=cpu"]), capsys)
    assert ended.status is None, ended.err
    assert [line for line in shown if line not in ended.out.splitlines()] == []


@pytest.mark.slow
def test_first_subset(toy_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    text = (TUTORIALS / "first-subset.md").read_text()
    ranked, at_random, evaluated = run_on_few_rows(text, ("RUN_FOLDER", "RANDOM_RUN", "EVALUATION"), toy_model, capsys)
    rules = [json.loads((run / "result.json").read_text())["rule"] for run in (ranked, at_random)]
    assert rules == ["lp_app_nll", "random"]
    listed = re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE)
    assert listed == ["result.json", "selection.parquet", "subset.jsonl", "model"]
    assert [name for name in listed if not (ranked / name).exists()] == []
    assert len(json.loads((evaluated / "result.json").read_text())["models"]) == 3


@pytest.mark.slow
def test_rows_for_my_task(toy_model, chat_model, tmp_path, monkeypatch, capsys):
    from in_process import run

    text = (TUTORIALS / "rows-for-my-task.md").read_text()
    task, count = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("task.py").write_text(task)
    Path("count.py").write_text(count)
    runpy.run_path("task.py")
    examples, test = (Path(f"{name}.jsonl").read_text().splitlines() for name in ("examples", "test"))
    assert (len(examples), len(test), set(examples) & set(test)) == (20, 60, set())
    assert examples[1] in text
    Path("alpaca.jsonl").write_text("\n".join(test))

    embedded, real = text.split("## 6.")
    runs = run_on_few_rows(embedded, ("RDS_RUN", "TASK_LP_RUN", "RANDOM_RUN", "EVALUATION"), toy_model, capsys)
    results = [json.loads((folder / "result.json").read_text()) for folder in runs]
    assert [result["rule"] for result in results[:3]] == ["rds", "task_lp", "random"]
    assert {result["n_selected"] for result in results[:3]} == {4}, "5% of 80"
    assert results[0]["query"]["rows"] == 20
    assert [model["model"] for model in results[3]["models"]] == [
        str(toy_model),
        *(f"{folder}/model" for folder in runs[:3]),
    ]
    monkeypatch.setattr(sys, "argv", ["count.py", str(runs[0])])
    runpy.run_path("count.py")
    assert re.fullmatch(r"[0-4] of 4", capsys.readouterr().out.strip())

    for line in commands_of(real):
        line = line.replace(REAL, chat_model).replace("Qwen/Qwen3-0.6B", chat_model).replace("alpaca", "alpaca.jsonl")
        ended = run(line.removeprefix("lpsel ") + " trainer=cpu tracker=none", capsys)
        assert ended.status is None, ended.err
        assert json.loads((Path(ended.out.splitlines()[-1]) / "result.json").read_text())["n_selected"] == 3


@pytest.mark.real
def test_the_guides_to_data_and_models_with_a_real_model(real_models, tmp_path, monkeypatch, capsys):
    from in_process import run

    from lpsel.toy.data import generate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    rows = [(row["instruction"], row["output"]) for row in generate("train", rows=5, held_out=0, seed=0, wrong=0.0)]
    objects = (json.dumps({"instruction": question, "output": answer}) for question, answer in rows)
    Path("my.jsonl").write_text("\n".join(objects))
    with open("my.csv", "w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    model = real_models / "smollm2-135m"  # where the Hub's models are on this machine
    local = f"scorer.path={model} cluster.embedder={real_models}/all-minilm-l6-v2 trainer=cpu tracker=none"

    text = "".join((DOCS / "guides" / f"{name}.md").read_text() for name in ("data", "models"))
    commands = [line for line in commands_of(text) if "dataset=my." in line]
    assert [command.split()[1] for command in commands] == ["select", "select", "select", "train"]
    results = []
    for command in commands:
        implied = "" if "scorer=" in command else "scorer=smollm2-135m"
        command = command.removeprefix("lpsel ").replace("FOLDER_OR_HUB_ID", str(model))
        ended = run(f"{command} {implied} {local}", capsys)
        assert ended.status is None, ended.err
        results.append(json.loads((Path(ended.out.splitlines()[-1]) / "result.json").read_text()))
    assert [result["scorer"]["name"] for result in results] == ["smollm2-135m"] * 4
    assert [result["n_selected"] for result in results] == [1] * 4, "10% of 5 rows, rounded half up"
    assert [result["scores_reused"] for result in results] == [False, True, True, True], "the CSV has the same rows"
    assert results[3]["base_model"]["template"] == "alpaca"
    assert (Path(results[3]["model"]) / "config.json").is_file()
