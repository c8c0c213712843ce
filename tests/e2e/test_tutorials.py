"""The tutorials' files and commands, with a small model in place of the real one."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "wrong_input"))
TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


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
    Path("chats.py").write_text(chats.replace("rows=300", "rows=30"))
    Path("train_trl.py").write_text(train)
    held_out = chats.replace('"train", rows=300, held_out=0', '"held_out", rows=0, held_out=8')
    assert held_out != chats
    Path("held_out.py").write_text(held_out.replace("chats.jsonl", "held-out.jsonl"))
    runpy.run_path("chats.py")
    runpy.run_path("held_out.py")

    lines = [line.strip().replace(REAL, chat_model) for line in text.splitlines() if line.startswith("    ")]
    commands = [shlex.split(line) for line in lines if line.startswith(("lpsel", "python train_trl.py"))]
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
