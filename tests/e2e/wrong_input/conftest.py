"""The folder of invalid files, and a machine without a GPU and without the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports tests by path, without their folder


@pytest.fixture(scope="session")
def wrong_files(tmp_path_factory, toy_model):
    from wrong_files import make

    folder = tmp_path_factory.mktemp("wrong") / "files"
    folder.mkdir()
    make(folder, toy_model)
    return folder


@pytest.fixture
def alone(monkeypatch):
    """No GPU, no keys."""
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "LPSEL_DEBUG", "LPSEL_PROMPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return os.environ


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a judge's server that accepts one key and has one model."""
    script = Path(__file__).parents[2] / "unit" / "judging" / "misbehaving_server.py"
    command = [sys.executable, script, tmp_path_factory.mktemp("server") / "log", "--key", "right", "--model", "judge"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.kill()
