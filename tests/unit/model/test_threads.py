import os
import subprocess
import sys

import pytest
import torch

from lpsel.model import threads
from lpsel.model.threads import CHECK_SECONDS, RETRY_SECONDS, Sharing, choose_threads

LINUX = pytest.mark.skipif(not threads.TASKS.is_dir(), reason="needs Linux's /proc")


@pytest.fixture(autouse=True)
def threads_afterwards(monkeypatch):
    """Restores the number of threads."""
    monkeypatch.setattr(threads, "_sharing", Sharing())
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_small_model_uses_one_thread_and_a_larger_one_as_many_as_before(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        choose_threads(1_000_000, torch.nn.Linear(1, 1))
        assert torch.get_num_threads() == 1
        choose_threads(135_000_000, torch.nn.Linear(1, 1))
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 4), ("50000 100000", 1), ("150000 100000", 2), ("6400000 100000", 4)]
)
def test_threads_are_at_most_the_cores_that_a_container_grants(monkeypatch, tmp_path, quota, count):
    """`docker run --cpus=1.5` is written as 150,000 microseconds in 100,000."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_threads_at_start", lambda: 4)
    monkeypatch.setattr(threads, "CONTAINER_CORES", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    before = torch.get_num_threads()
    try:
        choose_threads(135_000_000, torch.nn.Linear(1, 1))
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_omp_num_threads_of_the_user_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    choose_threads(1_000_000, torch.nn.Linear(1, 1))
    assert torch.get_num_threads() == before


@pytest.fixture
def machine(monkeypatch):
    """Time and waiting threads of a machine with 16 threads, as a function that lets seconds pass and checks."""
    sharing, clock = Sharing(most=16, checked=100.0), {"now": 100.0, "waited": 0.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(threads, "seconds_without_core", lambda: clock["waited"])
    torch.set_num_threads(16)

    def after(seconds, cores_missing):
        clock["now"] += seconds
        clock["waited"] += cores_missing * seconds
        sharing.check()
        return torch.get_num_threads()

    return after


def test_threads_that_twice_wait_for_cores_are_given_up(machine):
    """8 busy processes on 16 cores: 24 threads get 16 / 24 of a core each, so 16 threads miss 16 / 3 cores."""
    assert machine(CHECK_SECONDS, 0.0) == 16
    assert machine(CHECK_SECONDS, 16 / 3) == 16
    assert machine(CHECK_SECONDS, 16 / 3) == 10
    assert machine(CHECK_SECONDS, 10 / 9) == 9  # 18 threads on 16 cores
    assert machine(CHECK_SECONDS, 9 / 17) == 8
    assert machine(CHECK_SECONDS, 0.0) == 8


def test_all_threads_are_used_again_after_a_minute(machine):
    machine(CHECK_SECONDS, 1.0)
    assert machine(CHECK_SECONDS, 1.0) == 15
    assert machine(RETRY_SECONDS / 2, 0.0) == 15
    assert machine(RETRY_SECONDS / 2, 0.0) == 16


def test_a_short_or_small_wait_changes_nothing(machine):
    assert machine(CHECK_SECONDS, 4.0) == 16
    assert machine(CHECK_SECONDS, 0.2) == 16
    assert machine(CHECK_SECONDS, 4.0) == 16
    assert machine(CHECK_SECONDS / 2, 16.0) == 16


def test_one_thread_remains(machine):
    machine(CHECK_SECONDS, 40.0)
    assert machine(CHECK_SECONDS, 40.0) == 1
    assert machine(CHECK_SECONDS, 40.0) == 1


WORK = """
import time, torch
from lpsel.model import threads
threads._threads_at_start = lambda: 2
threads.SMALL_MODEL = 0
model = torch.nn.Linear(500, 500)
threads.choose_threads(250_000, model)
end = time.monotonic() + 60
while torch.get_num_threads() == 2 and time.monotonic() < end:
    model(torch.ones(2000, 500))
print(torch.get_num_threads())
"""


@LINUX
def test_real_busy_processes_leave_one_thread():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert done.stdout == "1\n"


def test_models_on_a_gpu_are_not_checked(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_threads_at_start", lambda: 2)
    checks = []
    monkeypatch.setattr(Sharing, "check", lambda self: checks.append(1))
    choose_threads(4, on_meta := torch.nn.Linear(2, 2, device="meta"))
    on_meta(torch.ones(1, 2, device="meta"))
    assert not checks
    choose_threads(4, on_cpu := torch.nn.Linear(2, 2))
    on_cpu(torch.ones(1, 2))
    assert checks == [1]
