"""Choose the number of CPU threads, and use fewer while other processes compete for the cores."""

import logging
import math
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
LEAST_WAIT = 0.25  # waiting threads that count as one missing core; the system's own processes cause less


@dataclass
class Sharing:
    """How many threads this process uses, and how long they have waited for a core.

    Attributes:
        most: threads to use while cores are free; 1 if the number stays as it is.
        checked: time of the last check, in seconds.
        waited: `seconds_without_core` at the last check.
        contended: whether threads waited for a core before the last check.
        retry: time at which to use all threads again, in seconds.
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
        waiting_threads = (waited - self.waited) / (now - self.checked)  # on average since the last check
        missing_cores = int(waiting_threads + 1 - LEAST_WAIT)
        if missing_cores > 0 and self.contended and threads > 1:
            fewer = max(1, threads - missing_cores)
            torch.set_num_threads(fewer)
            _log_once("Other processes use the CPU: %d instead of %d threads, until cores are free", fewer, self.most)
            self.retry = now + RETRY_SECONDS
        elif threads < self.most and now >= self.retry:
            torch.set_num_threads(self.most)
        self.checked, self.waited, self.contended = now, waited, missing_cores > 0


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

    cores = _threads_at_start()
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = 1 if parameters < SMALL_MODEL else _within_quota(cores)
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


def _within_quota(cores: int) -> int:
    """Limit a number of cores to the CPU quota of this container, rounded up."""
    if not CONTAINER_CORES.is_file():
        return cores
    quota, _, period = CONTAINER_CORES.read_text().partition(" ")
    return cores if quota.strip() == "max" else min(cores, math.ceil(int(quota) / int(period)))
