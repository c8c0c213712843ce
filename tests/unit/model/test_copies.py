import operator
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lpsel.errors import UserError
from lpsel.model import copies
from lpsel.model.copies import Copies, devices_for
from lpsel.model.device import device_of

# Functions that other processes can import: a copy is the name of its device, or the function that it names.


def test_results_come_in_the_order_of_the_batches_whoever_computes_them():
    batches = [str(i) for i in range(20)]
    with Copies(str, ["a", "b"]) as two:
        results = list(two.map(operator.concat, batches))
    assert [result[1:] for result in results] == batches
    assert {result[0] for result in results} <= {"a", "b"}
    with Copies(str, ["a"]) as one:
        assert list(one.map(operator.concat, batches)) == [f"a{batch}" for batch in batches]


def test_batches_are_made_as_they_are_needed():
    made = []
    with Copies(str, ["a", "b"]) as two:
        results = two.map(operator.concat, (made.append(i) or str(i) for i in range(20)))
        assert next(results)[1:] == "0"
        assert len(made) == copies.AHEAD * 2 + 1
        assert len(list(results)) == 19


def test_an_error_of_a_copy_is_that_of_the_command():
    with Copies(device_of, ["gpu", "gpu"]) as two, pytest.raises(UserError) as raised:
        list(two.map(operator.eq, [0]))
    assert (raised.value.name, raised.value.value) == ("trainer.accelerator", "gpu")


def test_an_error_ends_the_processes_at_once():
    started, two = time.monotonic(), Copies(pkgutil.resolve_name, ["time:sleep"] * 2)
    with pytest.raises(KeyError):
        interrupted(two)
    assert time.monotonic() - started < 30


def interrupted(two):
    with two:
        next(two.map(operator.call, [0, 60]))
        raise KeyError


KILLED = """
import operator, os, pkgutil, signal
from lpsel.model.copies import Copies
with Copies(pkgutil.resolve_name, ["time:sleep"] * 2) as two:
    next(two.map(operator.call, [0, 60, 60]))
    print(*two.pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_of_a_killed_command_end():
    """Without PyTorch, so that it starts at once."""
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    assert len(ended.stdout.split()) == 2
    for pid in ended.stdout.split():
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize(("rows", "devices"), [(0, 1), (255, 1), (256, 2), (10_000, 8)])
def test_every_gpu_is_used_where_there_are_enough_rows(monkeypatch, rows, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert devices_for(torch.device("cuda"), rows, 128) == [torch.device("cuda", i) for i in range(devices)]
    assert devices_for(torch.device("cpu"), rows, 128) == [torch.device("cpu")]


def test_ranks_of_a_launcher_use_one_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert devices_for(torch.device("cuda"), 10_000, 128) == [torch.device("cuda")]


def test_a_process_uses_the_gpu_of_its_copy_by_default(monkeypatch):
    """Otherwise, each process would also allocate memory on the first GPU, and Triton would start kernels there."""
    gpu, chosen = torch.device("cuda", 3), []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(copies._Worker, "unused_devices", SimpleNamespace(get=lambda: gpu), raising=False)
    monkeypatch.setattr(copies._Worker, "model", None)
    assert copies._call(str, lambda model, batch: model + batch, "!") == "cuda:3!"
    assert chosen == [gpu]
