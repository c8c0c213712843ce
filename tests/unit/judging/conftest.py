"""An unreliable server, pairs whose better answer it knows, and a judge that asks it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lpsel.judging.judge import Pair
from lpsel.judging.openai import OpenAIJudge
from lpsel.judging.verdicts import pairwise

SERVER = Path(__file__).parent / "misbehaving_server.py"


class Running:
    def __init__(self, process, log):
        self.process, self.log = process, log
        self.url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"

    def requests(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def kinds(self):
        return Counter(request["kind"] for request in self.requests())

    def verdicts_by_question(self):
        return Counter(request["question"] for request in self.requests() if request["kind"] == "good")


@pytest.fixture
def serve(tmp_path):
    """Start the server with options; it ends with the test."""
    started = []

    def start(*options):
        log = tmp_path / f"server{len(started)}.jsonl"
        command = [sys.executable, str(SERVER), str(log), *options]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return Running(started[-1], log)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def make_pairs():
    """Pairs whose model answers are worth 0 to 4 and baseline answers 2; for every fifth, the judge prefers A."""

    def make(n):
        return [
            Pair(f"p{i}", f"Request {i}{', always A' if i % 5 == 4 else ''}", "Mine: worth 2", f"Theirs: worth {i % 5}")
            for i in range(n)
        ]

    return make


@pytest.fixture
def make_judge(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(url, **settings):
        return OpenAIJudge(**{"model": "judge", "parser": pairwise, "base_url": url, "max_retries": 8} | settings)

    return make
