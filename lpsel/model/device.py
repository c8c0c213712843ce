"""Resolve device and precision on this machine, and control how freed memory is reused."""

import ctypes
import gc
import logging
import math
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from timeit import timeit
from typing import TYPE_CHECKING, Any

from lpsel.distributed import started_together
from lpsel.errors import UserError, check_choice, first_line

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_warn_once = cache(log.warning)

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
ALIASES = {"32": "32-true", "bf16": "bf16-mixed"}

# On CPUs, bf16-mixed is faster despite its casts above this hidden size and this speedup of bfloat16 matmuls
WIDE, FAST_BFLOAT16 = 256, 1.5
TIMING_SECONDS, LEAST_RUNS = 0.1, 10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
REUSED_BYTES = 96 * 2**20
RETURN_SECONDS = 60.0  # of training between returns of freed memory; clearing its pages again takes about a second
# Size of a chunk of float32 logits, a few of which exist at a time: large enough to keep the device busy. On a GPU,
# every chunk of a training step also reads and writes the gradient of the head.
LOGIT_BYTES, GPU_LOGIT_SHARE = 64 * 2**20, 1 / 64
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"


def allocator_settings() -> dict[str, str]:
    """Return environment variables for PyTorch's GPU allocator, unless the user has configured it.

    Batches of many sizes would otherwise fragment GPU memory. They must be set before torch is imported.
    """
    configured = os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
    return {} if configured else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def resolve_precision(requested: str, accelerator: str, hidden_size: int = 0) -> str:
    """Return Lightning's name for the requested precision; `auto` is bf16-mixed if that is faster, else 32-true.

    It is faster on GPUs with bfloat16 support, and on CPUs with fast bfloat16 matmuls for models with at least WIDE
    hidden units. float16 is not supported: its loss scaling does not work with losses summed over micro-batches.
    """
    precision = ALIASES.get(str(requested), str(requested))
    check_choice("trainer.precision", precision, ("auto", *PRECISIONS))
    if precision != "auto":
        return precision
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)  # older GPUs emulate it slowly
    else:
        fast = hidden_size >= WIDE and bfloat16_speedup() > FAST_BFLOAT16
    return "bf16-mixed" if fast else "32-true"


@cache
def bfloat16_speedup() -> float:
    """Measure the speedup of bfloat16 over float32 matmuls on this CPU: about 7 with AMX.

    CPU flags are not reliable: if a library does not use the CPU's bfloat16 instructions, it emulates them.
    """
    import torch

    float32 = torch.ones(512, 512)
    bfloat16 = float32.bfloat16()
    return time_ratio(lambda: float32 @ float32, lambda: bfloat16 @ bfloat16)


def time_ratio(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Measure the time of `first` as a multiple of that of `second`, on one CPU thread.

    Both run in turn for TIMING_SECONDS, and the fastest runs count: other processes often interrupt a run, but not all
    of them. A choice that depends on this must not change from run to run.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first_seconds = second_seconds = math.inf
    end, runs = time.perf_counter() + TIMING_SECONDS, 0
    while runs < LEAST_RUNS or time.perf_counter() < end:
        first_seconds = min(first_seconds, timeit(first, number=1))
        second_seconds = min(second_seconds, timeit(second, number=1))
        runs += 1
    torch.set_num_threads(threads)
    return first_seconds / second_seconds


def lightning_precision(precision: str) -> str:
    """Return the precision to pass to Lightning, whose bf16-true would also round rotary frequencies to bfloat16."""
    return "32-true" if precision == "bf16-true" else precision


def device_of(accelerator: str) -> "torch.device":
    """Return the device for a single-process run. `auto` is CUDA or the CPU; Apple's GPUs are untested."""
    check_choice("trainer.accelerator", accelerator, ACCELERATORS)
    import torch

    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        hint = "set trainer=cpu, or install a PyTorch build for the driver of this machine"
        raise UserError("trainer.accelerator", accelerator, f"CUDA does not work here ({cuda_problem()})", hint)
    if accelerator == "auto" and NVIDIA_DRIVER.exists() and not torch.cuda.is_available():
        message = "This machine has an NVIDIA driver, but the CPU is used: %s (trainer=cpu is quiet)"
        _warn_once(message, cuda_problem())
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("trainer.accelerator", "mps", "this machine has no Apple GPU", "set trainer=cpu")
        message = "trainer.accelerator=mps is untested: compare the losses of a few rows with those of trainer=cpu"
        _warn_once(message)
        return torch.device("mps")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def cuda_problem() -> str:
    """Explain why PyTorch cannot use CUDA: no GPU, a missing or old driver, or a build without CUDA."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "no device is visible"


def warn_of_mixed_gpus(count: int) -> None:
    """Warn if the first `count` GPUs of this machine are different models."""
    import torch

    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    if len(names) > 1:
        listed = ", ".join(names)
        log.warning("The GPUs differ (%s): the slowest one and the one with the least memory limit the others", listed)


def use_one_device(devices: object, job: int) -> None:
    """Restrict a worker process of parallel jobs to one visible GPU, before it uses any; its later jobs keep that GPU.

    Raises:
        UserError: `devices`, the trainer's setting, is more than one.
    """
    import torch

    if str(devices) not in ("1", "auto") and not started_together():
        problem = "hydra/launcher=joblib runs jobs in parallel, each on one device"
        raise UserError("trainer.devices", devices, problem, "set trainer.devices=1, or remove the launcher")
    if (count := torch.cuda.device_count()) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[job % count]


def total_memory(device: "torch.device") -> int:
    """Return the memory of a GPU, or of this machine within the container's limit, in bytes."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


@cache
def gpu_memory(device: "torch.device") -> int | None:
    """Return a CUDA GPU's total memory in bytes, None for other devices. Free memory would differ from run to run."""
    return total_memory(device) if device.type == "cuda" else None


def logit_bytes(gpu: float | None) -> float:
    """Return the size of a chunk of logits in bytes, for a GPU with `gpu` bytes of memory, or for a CPU if None."""
    return LOGIT_BYTES if gpu is None else GPU_LOGIT_SHARE * gpu


def free_memory() -> None:
    """Free the memory of deleted models before loading the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reuse_freed_memory() -> None:
    """Make glibc keep freed blocks of up to REUSED_BYTES for later allocations, up to 2 GiB in total.

    By default, it returns large blocks to the kernel, which must clear every page again. That takes at least a tenth
    of a pass (docs/results/benchmarks.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Make glibc return the pages of all freed blocks to the system.

    During training, blocks of many sizes leave more and more holes that are too small for later allocations.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
