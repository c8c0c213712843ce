"""Shared benchmark code: interleaved rounds, ratios, agreement checks, matmul rate, peak memory, tables, JSON.

A ratio compares two contestants in the same round, so that other load on the machine affects both. The median and range
of the ratios over all rounds are reported.
"""

import argparse
import ctypes
import gc
import json
import logging
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lpsel.model.copies import end_with_parent
from lpsel.model.device import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
from lpsel.storage import finite

HERE = Path(__file__).resolve().parent
PACKAGES = ("lpsel", "torch", "lightning", "transformers", "accelerate", "lm-eval", "numpy", "pandas")
AGREEMENT = 1e-3  # nats; in float32, contestants that differ by more do not compute the same thing
FAST_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}  # as Linux names what x86 and Arm CPUs multiply bfloat16 with


@dataclass
class Run:
    """Result of one contestant in one round.

    Attributes:
        seconds: duration of the timed part, excluding loading and tokenizing.
        tokens: tokens fed, excluding padding; the same for all contestants of a comparison.
        nll: NLL of each row or optimizer step, to check that contestants agree.
        extra: additional measurements of this contestant.
    """

    seconds: float
    tokens: int
    nll: NDArray[np.float64] = field(repr=False)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


Contestant = Callable[..., Run]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON files")
    parser.add_argument("--tiny", action="store_true", help="the smallest form, to see that everything runs")
    return parser


def quiet_libraries() -> None:
    """Silence all output of contestants and their libraries except errors."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    set_verbosity_error()
    disable_progress_bar()
    for name in ("lm_eval", "lm-eval", "lightning.pytorch", "lightning.fabric", "accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def interleave(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Run every contestant once per round, rotating their order by one from round to round."""
    names = list(contestants)
    results: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            print(f"round {number + 1} of {rounds}: {name}", flush=True)
            gc.collect()  # the previous model and trainer are a reference cycle that holds device memory
            usual_allocation()
            results[name].append(contestants[name]())
    return results


def usual_allocation() -> None:
    """Restore the malloc thresholds that glibc arrives at by itself, undoing lpsel's settings from its own run."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        library.malloc_trim(0)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def in_words(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"


def check_agreement(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], who: str, limit: float = AGREEMENT
) -> float:
    """Return the largest difference between the NLLs of two contestants in nats.

    Raises:
        SystemExit: it exceeds `limit`, so their speeds are not comparable.
    """
    difference = float(np.abs(ours - theirs).max())
    if not difference <= limit:
        raise SystemExit(f"{who}: differs from lpsel by {difference:.3g} nats (at most {limit:g}); nothing compared.")
    return difference


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def stopwatch(device: str) -> Callable[[], float]:
    """Start a stopwatch; the returned function synchronizes the device and returns the elapsed seconds."""
    synchronize(device)
    started = time.perf_counter()

    def seconds() -> float:
        synchronize(device)
        return time.perf_counter() - started

    return seconds


def matmul_rate(dtype: torch.dtype, hidden: int, intermediate: int, device: str, repeats: int = 5) -> float:
    """Measure matmul FLOP/s: the best over a model's shape and two large squares, each the best of `repeats`."""
    shapes = [(4096, hidden, intermediate)]
    if hidden > 64:  # of a model that is more than a toy
        shapes += [(side, side, side) for side in ((4096, 8192) if device == "cuda" else (2048, 4096))]
    best = 0.0
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        a @ b
        for _ in range(repeats):
            seconds = stopwatch(device)
            a @ b
            best = max(best, 2 * rows * inner * columns / seconds())
    return best


def run_command(
    command: Sequence[str], environment: Mapping[str, str] | None = None, checkout: Path = HERE.parent
) -> dict[str, float]:
    """Run Python with these arguments in a checkout; return seconds, CPU seconds, and the peak resident bytes.

    CPU seconds are those of all its processes, the peak is that of one of them.

    Args:
        environment: all environment variables; by default those of this process.
    """
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=checkout, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            log.seek(0)
            raise SystemExit(f"{command[0]} failed: {log.read()[-2000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": 1024 * usage.ru_maxrss}


def touch(model: Any) -> None:
    """Read every weight once, since memory-mapped weights are loaded only when they are read."""
    for weight in model.parameters():
        weight.sum()


def peak_above_weights(device: str, contestant: Contestant, *args: Any, **kwargs: Any) -> int:
    """Measure the peak memory of `contestant` in bytes above that with its weights loaded, in a separate process.

    On a CPU, this is resident memory as counted by Linux (VmHWM - VmRSS); on a GPU, memory allocated by PyTorch.
    """
    # A process that has touched CUDA, as some imports do, must not be forked.
    context = multiprocessing.get_context("spawn") if device == "cuda" else imported()
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_measure_peak, device, torch.get_num_threads(), contestant, args, kwargs).result()


def imported() -> Any:
    """Return a context that forks processes from a server in which everything is already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["transformers", "lpsel.model.lightning_module", "lm_eval.models.huggingface", "harness"]
    )
    return context


def _measure_peak(device: str, threads: int, contestant: Contestant, args: Any, kwargs: Any) -> int:
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    quiet_libraries()
    loaded = 0

    def on_ready(model: Any) -> None:
        nonlocal loaded
        touch(model)
        loaded = begin_peak(device)

    contestant(*args, **kwargs, on_ready=on_ready)
    return peak_memory(device) - loaded


def begin_peak(device: str = "cpu") -> int:
    """Reset the peak and return the current memory in bytes: of PyTorch's allocator on a GPU, otherwise resident."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what comes
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak_memory(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def resident(name: str, pid: int | str = "self") -> int:
    """Read a field of /proc/PID/status in bytes, 0 if it has none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table; the first column is text, all others are numbers."""
    table = Table(title=title, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def write(out: Path, name: str, options: argparse.Namespace, device: str, figures: Mapping[str, Any]) -> Path:
    """Write OUT/NAME.json: machine, versions, options, and results with the raw numbers of every round."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    about = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "device": _describe(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
    }
    path.write_text(json.dumps(finite({**about, **figures}), indent=2, allow_nan=False, default=_plain) + "\n")
    print(f"\n{path}")
    return path


def _plain(value: Any) -> Any:
    """Convert runs to JSON, without the NLL of every row."""
    if isinstance(value, Run):
        figures = {"seconds": value.seconds, "tokens": value.tokens, "tokens_per_second": value.rate, **value.extra}
        return finite(figures)
    return finite(value.tolist()) if isinstance(value, np.ndarray | np.generic) else str(value)


def _describe(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    fast = sorted(flags & FAST_BFLOAT16) or ["no bfloat16 instructions"]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {' and '.join(fast)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
