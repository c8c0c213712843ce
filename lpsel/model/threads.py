"""Choose the number of CPU threads, and use fewer while other processes compete for the cores."""

import logging
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_log_once = cache(log.info)

SMALL_MODEL = 10_000_000  # parameters; below, one thread is faster than several
CONTAINER_CORES = Path("/sys/fs/cgroup/cpu.max")  # "max" or microseconds of CPU time, and the period in microseconds
TASKS = Path("/proc/self/task")  # Linux; elsewhere, the number of threads does not change
CHECK_SECONDS = 1.0
RETRY_SECONDS = 60.0
LEAST_WAIT = 0.25  # of a core; the system's own processes cause less


@dataclass
class Sharing:
    """How many threads this process uses, and how long they have waited for a core.

    Attributes:
        most: threads to use while cores are free; 1 if the number stays as it is.
        checked: time of the last check, in seconds.
        waited: seconds for which the threads of this process had been ready to run by then, without a core.
        contended: whether they waited before the last check.
        retry: when to use all threads again.
    """

    most: int = 1
    checked: float = 0.0
    waited: float = 0.0
    contended: bool = False
    retry: float = 0.0

    def check(self) -> None:
        """Use fewer threads if they wait for cores, and all threads again a minute later.

        OpenMP's threads spin between matmuls, because waking a sleeping thread takes longer than a small matmul. If
        fewer cores are free than there are threads, most of that time is taken from each other
        (docs/results/benchmarks.md).
        """
        now = time.monotonic()
        if self.most == 1 or now - self.checked < CHECK_SECONDS:
            return
        import torch

        waited, threads = seconds_without_core(), torch.get_num_threads()
        missing = int((waited - self.waited) / (now - self.checked) + 1 - LEAST_WAIT)  # cores, rounded up
        if missing > 0 and self.contended and threads > 1:
            fewer = max(1, threads - missing)
            torch.set_num_threads(fewer)
            _log_once("Other processes use the CPU: %d instead of %d threads, until cores are free", fewer, self.most)
            self.retry = now + RETRY_SECONDS
        elif threads < self.most and now >= self.retry:
            torch.set_num_threads(self.most)
        self.checked, self.waited, self.contended = now, waited, missing > 0


_sharing = Sharing()


def choose_threads(parameters: int, module: Any) -> None:
    """Use one CPU thread for a small model, otherwise one per core that this process may use and that is free.

    Does nothing if OMP_NUM_THREADS is set.

    Args:
        parameters: number of parameters of the model.
        module: the part of it that every forward pass calls; before that, the number of threads is adapted
            (see `Sharing.check`).
    """
    import torch

    at_start = _threads_at_start()
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = 1 if parameters < SMALL_MODEL else _granted(at_start)
    torch.set_num_threads(threads)
    _sharing.most = threads if TASKS.is_dir() else 1
    _sharing.checked, _sharing.waited = time.monotonic(), seconds_without_core()
    module.register_forward_pre_hook(_before_pass)


def _before_pass(module: Any, _: Any) -> None:
    if next(module.parameters()).device.type == "cpu":
        _sharing.check()


def seconds_without_core() -> float:
    """Return for how long all threads of this process were ready to run but had no core, in seconds; 0 if unknown."""
    total = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])  # nanoseconds
        except (OSError, IndexError):  # the thread has ended
            continue
    return total / 1e9


@cache
def _threads_at_start() -> int:
    import torch

    return torch.get_num_threads()


def _granted(cores: int) -> int:
    """Limit PyTorch's core count to the CPU quota of this container."""
    allowed = CONTAINER_CORES.read_text().split() if CONTAINER_CORES.is_file() else ["max"]
    return cores if allowed[0] == "max" else min(cores, -(-int(allowed[0]) // int(allowed[1])))
