"""Measure the cost of training: FLOPs, time, memory and throughput of a fit, and the ledger of a whole run."""

import resource
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MATMUL_DTYPES = {"bf16-true": torch.bfloat16, "bf16-mixed": torch.bfloat16, "32-true": torch.float32}
# Dense bfloat16 FLOP/s from NVIDIA's data sheets, for GPUs where Lightning has no value or the one with sparsity
HOPPER = {"NVIDIA H200": 989.4e12, "NVIDIA H200 NVL": 835.5e12, "NVIDIA H100 NVL": 835.5e12}
SPENT = ("tokens", "flops", "device_seconds")


@dataclass(frozen=True)
class Cost:
    tokens: int  # fed in training and recording passes on all ranks, without padding
    flops: float
    seconds: float  # wall-clock time, including model loading and earlier processes up to their last checkpoint
    device_seconds: float  # `seconds` times the number of devices
    peak_memory_bytes: dict[str, int]  # so far in this process, on the host and on its GPU if it has one

    def __add__(self, other: "Cost") -> "Cost":
        """Add the costs of two consecutive fits in one process."""
        memory, others = self.peak_memory_bytes, other.peak_memory_bytes
        return Cost(
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            seconds=round(self.seconds + other.seconds, 3),
            device_seconds=round(self.device_seconds + other.device_seconds, 3),
            peak_memory_bytes={name: max(memory[name], others[name]) for name in memory},
        )


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes, on the host and on its GPU if there is one."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    if torch.cuda.is_available():
        memory["gpu"] = torch.cuda.max_memory_allocated()
    return memory


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s of a device for dense matmuls, or None if it is unknown."""
    from lightning.fabric.utilities.throughput import get_available_flops

    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        if name in HOPPER:
            return HOPPER[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning does not know every device
        return get_available_flops(device, dtype)


def utilization(flops: float, seconds: float, device: torch.device, devices: int, precision: str) -> dict[str, float]:
    """Compute model FLOP/s per device and, for devices with a known peak, model FLOPs utilization in percent."""
    per_second = flops / seconds / devices
    measured = {"flops_per_second_per_device": per_second}
    if peak := peak_flops(device, MATMUL_DTYPES[precision]):
        measured["utilization_percent"] = 100 * per_second / peak
    return measured


def ledger(
    scoring: Mapping[str, Any] | None, training: Mapping[str, Any], everything: Mapping[str, float], n_total: int
) -> dict[str, Any]:
    """Compare the cost of a run with training on all rows: tokens, FLOPs and device seconds of each part.

    Reused scores count in full; `scoring` is None for a rule without scores. The device seconds of training on
    everything are extrapolated from this run's FLOPs. `saved` is negative if the run cost more. Selection plus training
    break even when the subset takes `break_even_pct` percent of the FLOPs of training on everything, which is
    `break_even_rows_pct` percent of all `n_total` rows if they are as long as the rows of this run.
    """
    selection = {name: scoring[name] if scoring else 0 for name in SPENT}
    spent = {name: training[name] for name in SPENT}
    all_flops = everything["flops"]
    all_rows = {**everything, "device_seconds": spent["device_seconds"] * all_flops / spent["flops"]}
    total = {name: selection[name] + spent[name] for name in SPENT}
    break_even_pct = 100 * max(0.0, 1 - selection["flops"] / all_flops)
    return {
        "selection": selection,
        "training": spent,
        "total": total,
        "everything": all_rows,
        "saved": {"flops": all_flops - total["flops"], "share": 1 - total["flops"] / all_flops},
        "break_even_pct": break_even_pct,
        "break_even_rows_pct": min(100.0, break_even_pct * training["rows"] / n_total * all_flops / spent["flops"]),
    }


def describe_ledger(costs: Mapping[str, Any]) -> str:
    """Describe the result of `ledger` in one line."""
    selection, training, everything = (costs[part]["flops"] for part in ("selection", "training", "everything"))
    saved, break_even_pct = costs["saved"]["share"], costs["break_even_pct"]
    difference = f"{saved:.0%} less than" if saved >= 0 else f"{-saved:.0%} more than"
    if selection == 0:
        break_even = ""
    elif break_even_pct > 0:
        rows = f"{costs['break_even_rows_pct']:.0f}% of all rows at the mean length of the selected ones"
        break_even = f"; breaks even at {break_even_pct:.0f}% of these FLOPs, which is {rows}"
    else:
        break_even = "; selection alone costs as much"
    return (
        f"{selection:.3g} FLOPs to select, {training:.3g} to train: "
        f"{difference} training on everything ({everything:.3g}){break_even}"
    )
