"""The device and the precision that a configuration selects on this machine, and how freed memory is reused."""

import ctypes
import gc
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from timeit import repeat
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

# On CPUs: hidden size, and speed of bfloat16 products over float32 ones, from which bf16-mixed with its casts is faster
WIDE, FAST_BFLOAT16 = 256, 1.5
SMALL_MODEL = 10_000_000  # parameters: on its matrices, one thread is faster than several
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
REUSED_BYTES = 96 * 2**20
RETURN_SECONDS = 60.0  # of training, after which freed memory is returned: clearing its pages takes about a second
# Of logits in float32 at a time, a few of which are needed: large enough to keep the device busy. On a GPU, every chunk
# of a training step also reads and writes the gradient of the head.
LOGIT_BYTES, GPU_LOGIT_SHARE = 64 * 2**20, 1 / 64
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"
CONTAINER_CORES = Path("/sys/fs/cgroup/cpu.max")  # "max", or microseconds of CPU time, per so many microseconds


def resolve_precision(requested: str, accelerator: str, hidden_size: int = 0) -> str:
    """Lightning's name of the requested precision; `auto` is bf16-mixed where it is faster, otherwise 32-true.

    It is faster on GPUs that support it, and for models with at least WIDE hidden units on CPUs that multiply bfloat16
    fast. float16 is not supported: its loss scaling does not work with losses that are summed over micro-batches.
    """
    named = ALIASES.get(str(requested), str(requested))
    check_choice("trainer.precision", named, ("auto", *PRECISIONS))
    if named != "auto":
        return named
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)  # older GPUs emulate it slowly
    else:
        fast = hidden_size >= WIDE and bfloat16_speedup() > FAST_BFLOAT16
    return "bf16-mixed" if fast else "32-true"


@cache
def bfloat16_speedup() -> float:
    """How many times as fast this CPU multiplies bfloat16 matrices as float32 ones: about 7 with AMX.

    Measured, because names say little: where a library does not use its instructions, a CPU emulates them.
    """
    import torch

    whole = torch.ones(512, 512)
    half = whole.bfloat16()
    return seconds_on_one_thread(lambda: whole @ whole) / seconds_on_one_thread(lambda: half @ half)


def seconds_on_one_thread(work: Callable[[], Any]) -> float:
    """How long `work` takes on one CPU thread: the shortest of ten times, because other processes may be busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = min(repeat(work, number=1, repeat=10))
    torch.set_num_threads(threads)
    return seconds


def lightning_precision(precision: str) -> str:
    """The precision passed to Lightning: its own bf16-true would also round rotary frequencies to bfloat16."""
    return "32-true" if precision == "bf16-true" else precision


def device_of(accelerator: str) -> "torch.device":
    """The device that a run in one process uses; with `auto` CUDA or the CPU, since Apple's GPUs are untested."""
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
    """Why PyTorch cannot use CUDA: no GPU, no or an old driver, or a build without CUDA."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "no device is visible"


def warn_of_mixed_gpus(count: int) -> None:
    """Warn if the first `count` GPUs of this machine are of several kinds."""
    import torch

    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    if len(names) > 1:
        listed = ", ".join(names)
        log.warning("The GPUs are of several kinds (%s): the slowest and the smallest one limit all of them", listed)


def use_one_device(devices: object, job: int) -> None:
    """Let a process of parallel jobs see one of the visible GPUs, before it uses any. Its later jobs keep that one.

    Raises:
        UserError: `devices`, that of the trainer, asks for several.
    """
    import torch

    if str(devices) not in ("1", "auto") and not started_together():
        problem = "hydra/launcher=joblib runs jobs in parallel, each on one device"
        raise UserError("trainer.devices", devices, problem, "set trainer.devices=1, or remove the launcher")
    if (count := torch.cuda.device_count()) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[job % count]


def total_memory(device: "torch.device") -> int:
    """Bytes of a GPU, or of this machine's memory, within the limit of a container."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    allowed = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else ""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, int(allowed)) if allowed.isdigit() else machine


@cache
def gpu_memory(device: "torch.device") -> int | None:
    """Bytes of a CUDA GPU, free or not, so that what depends on it is the same in every run; None for other devices."""
    return total_memory(device) if device.type == "cuda" else None


def logit_bytes(gpu: float | None) -> float:
    """Bytes of the logits that are computed at a time, on a GPU with so much memory or on a CPU."""
    return LOGIT_BYTES if gpu is None else GPU_LOGIT_SHARE * gpu


def free_memory() -> None:
    """Free the memory of deleted models, before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_threads(parameters: int) -> None:
    """Compute on CPUs with one thread for a small model, otherwise with one for each core this process may use.

    Threads that wait for each other after every small product are slow, and next to other busy processes very slow
    (docs/results/benchmarks.md). A user's OMP_NUM_THREADS is left alone.
    """
    import torch

    at_start = _threads_at_start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if parameters < SMALL_MODEL else _granted(at_start))


@cache
def _threads_at_start() -> int:
    import torch

    return torch.get_num_threads()


def _granted(cores: int) -> int:
    """How many of the cores that PyTorch counts this container may keep busy."""
    allowed = CONTAINER_CORES.read_text().split() if CONTAINER_CORES.is_file() else ["max"]
    return cores if allowed[0] == "max" else min(cores, -(-int(allowed[0]) // int(allowed[1])))


def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks of up to REUSED_BYTES, up to 2 GiB of them, for later allocations.

    By default it returns large blocks to the kernel, which clears every page again: at least a tenth of a pass
    (docs/results/benchmarks.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Let glibc return the pages of freed blocks to the system, wherever they are.

    In training, blocks of many sizes leave holes that are too small for later ones, and more of them with every step.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
