"""Every wrong input ends in one line that names the value and the fix, with status 2 and nothing left behind.

messages.json is a snapshot of all messages; `LPSEL_WRITE_GOLDEN=1 pytest tests/e2e/wrong_input` writes it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest
from catalog import CASES, COMMAND_LINE, KINDS, Case
from in_process import console, job, permissions_count, run, watched_loading

from lpsel import __version__
from lpsel.cache import USERS

ROOT = Path(__file__).resolve().parents[3]
MESSAGES = Path(__file__).parent / "messages.json"
PLAIN = ("agreement", "validate", "votes", "report", "publish", "explore")
# A case that needs no environment and no permissions, which root has anyway, stands for its kind.
AS_PROCESS = [next(case for case in kind if case.line[0].islower() and "locked" not in case.line) for kind in KINDS]


def detected_by(case):
    """What is started to see the error: the job that detects it, or the whole command for those of the command line."""
    whole = case in COMMAND_LINE or case.line.split()[0] in PLAIN or "hydra." in case.line
    return console if whole else job


def in_folders(case, tmp_path):
    """The command line with a run folder of its own, and that folder."""
    command, run_dir = case.line.split()[0], tmp_path / "run"
    if command in PLAIN:
        return (case.line if "--out" in case.line else f"{case.line} --out {run_dir}"), run_dir
    return (case.line if "hydra.run.dir" in case.line else f"{case.line} hydra.run.dir={run_dir}"), run_dir


def left_over(run_dir, cache):
    """Files a run that failed may not leave: all but Hydra's, an empty log, whole tokens and locks."""
    written = [p for p in run_dir.rglob("*") if p.is_file() and ".hydra" not in p.parts and p.suffix != ".log"]
    written += [
        p
        for p in cache.rglob("*")
        if p.is_file() and "tokens" not in p.parts and p.suffix != ".lock" and p.name != "lock"
    ]
    return written + [p for p in cache.rglob("*") if "tmp" in p.name.split(".")]


def message_of(status, err):
    """The one line that a command printed before it ended with status 2."""
    ours = [line for line in err.splitlines() if line.startswith("lpsel")]
    assert status == 2, err
    assert len(ours) == 1, err
    assert err.splitlines()[-1] == ours[0], err
    assert "Traceback" not in err
    assert "canary" not in err
    return ours[0]


def normalized(message, *folders):
    """A message without what differs from machine to machine: folders, ports, digests, versions, the Hub's error."""
    for folder in folders:
        message = message.replace(str(folder), "FOLDER")
    message = message.replace(str(ROOT), "ROOT").replace(f"lpsel {__version__}", "lpsel VERSION")
    message = re.sub(r"(on the Hub) \(\w+\)", r"\1 (ERROR)", message)  # by what the machine has of the Hub
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", message)
    message = re.sub(r"/[^ ]*pytest-of-[^/ ]+(/pytest-[0-9]+)?", "TEMPORARY", message)
    return re.sub(r"\b[0-9a-f]{12,64}\b", "DIGEST", message)


def check_snapshot(line, message):
    """Compare a message with its snapshot, or write it."""
    messages = json.loads(MESSAGES.read_text()) if MESSAGES.is_file() else {}
    if os.environ.get("LPSEL_WRITE_GOLDEN"):
        messages[line] = message
        MESSAGES.write_text(json.dumps(dict(sorted(messages.items())), indent=1, ensure_ascii=False) + "\n")
    assert message == messages.get(line)


def paths_in(folder):
    return {os.path.join(parent, name) for parent, *names in os.walk(folder) for name in chain(*names)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_a_wrong_input_ends_in_one_line(case, wrong_files, server, alone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(wrong_files)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    line, run_dir = in_folders(case, tmp_path)
    before = paths_in(wrong_files)
    loaded = []
    started = time.monotonic()
    with watched_loading(loaded), permissions_count():
        ended = run(line.replace("SERVER", server), capsys, detected_by(case))
    seconds = time.monotonic() - started
    message = message_of(ended.status, ended.err)
    assert case.value in message
    check_snapshot(case.line, normalized(message, tmp_path, wrong_files))
    assert left_over(run_dir, tmp_path / "cache") == []
    assert paths_in(wrong_files) == before
    assert loaded == [] or (case.late and "cannot be loaded" in message)
    assert seconds < 20


def test_every_case_is_listed_once_and_has_a_message():
    assert len({case.line for case in CASES}) == len(CASES) >= 150
    assert json.loads(MESSAGES.read_text()).keys() == {case.line for case in CASES}


@pytest.mark.parametrize("case", AS_PROCESS, ids=lambda case: case.line)
def test_a_process_ends_in_the_same_line(case, wrong_files, server, tmp_path, as_process):
    line, run_dir = in_folders(case, tmp_path)
    cache = {"LPSEL_CACHE": str(tmp_path / "cache")}
    ended = as_process(*shlex.split(line.replace("SERVER", server)), cwd=wrong_files, CUDA_VISIBLE_DEVICES="", **cache)
    assert case.value in message_of(ended.returncode, ended.stderr)
    assert left_over(run_dir, tmp_path / "cache") == []


class NoEntry(BaseHTTPRequestHandler):
    """A Hub that rejects every key."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("select dataset.path=someone/rows", "dataset.path=someone/rows"),
        ("select dataset.path=good.jsonl cluster=none scorer.path=someone/model", "someone/model"),
        pytest.param("evaluate model=someone/model", "someone/model", marks=pytest.mark.slow),
    ],
)
def test_a_key_that_the_hub_rejects_ends_in_one_line_without_the_key(line, value, wrong_files, tmp_path):
    hub = ThreadingHTTPServer(("127.0.0.1", 0), NoEntry)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    command, *overrides = line.split()
    environment = os.environ | {
        "LPSEL_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_" + "canary" * 5, "HF_HOME": str(tmp_path / "hub"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, ROOT / f"{command}.py", *overrides, "tracker=none", f"hydra.run.dir={tmp_path}/run"],
        cwd=wrong_files, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    hub.shutdown()
    hub.server_close()
    assert value in message_of(done.returncode, done.stderr)
    assert left_over(tmp_path / "run", tmp_path / "cache") == []


def test_a_valid_command_line_passes_none_of_these_checks(wrong_files, alone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(wrong_files)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path / "cache"))
    case = Case("select dataset.path=good.jsonl scores=scores/good.csv cluster=none tracker=none", "x")
    line, run_dir = in_folders(case, tmp_path)
    ended = run(line, capsys)
    assert ended.status is None
    (user,) = (tmp_path / "cache" / USERS).glob("*.json")
    assert {path.name for path in left_over(run_dir, tmp_path / "cache")} == {
        "run_config.json", "result.json", "selection.parquet", "subset.jsonl", user.name,
    }  # fmt: skip
    with pytest.raises(AssertionError):
        message_of(ended.status, ended.err)
