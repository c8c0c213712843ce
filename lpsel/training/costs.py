"""How fast a fit is, how busy its devices are and how much memory it takes, step by step, for whoever tracks it."""

import resource
import sys
import time
import warnings
from typing import Any

import lightning as L
import torch

from lpsel.data.packing import OptimizerStep

PEAK_OF = {"bf16-true": torch.bfloat16, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Meter(L.Callback):
    """Logs the tokens per second of every optimiser step and the peak memory so far.

    Only the rank that tracks has one, so that nothing is gathered: its own tokens stand for those of every rank.

    Attributes:
        seconds: spent in optimiser steps; recording passes and loading are not in it.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self.last
        tokens = sum(micro.tokens for micro in batch.micro_batches)
        measured = {"tokens_per_second": trainer.world_size * tokens / (now - self.last)}
        measured |= {f"peak_{where}_memory_gib": size / 2**30 for where, size in peak_memory().items()}
        for name, value in measured.items():
            pl_module.log(f"{self.role}/{name}", value, batch_size=1, on_step=True, on_epoch=False)
        self.last = now


def peak_memory() -> dict[str, int]:
    """Bytes that this process has taken at most so far, of the host and of its GPU where it has one."""
    # ru_maxrss counts kibibytes on Linux, bytes on macOS.
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    if torch.cuda.is_available():
        memory["gpu"] = torch.cuda.max_memory_allocated()
    return memory


def utilisation(flops: float, seconds: float, device: torch.device, devices: int, precision: str) -> dict[str, float]:
    """Model FLOPs per second and device and, where Lightning knows what the device can do, the share of it, in percent.

    Args:
        flops: of `seconds` of training on all devices together.
        precision: as `lpsel.model.device` names it.
    """
    from lightning.fabric.utilities.throughput import get_available_flops

    per_second = flops / seconds / devices
    made = {"flops_per_second_per_device": per_second}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a device it does not know
        possible = get_available_flops(device, PEAK_OF.get(precision, torch.float32))
    if possible:
        made["utilisation_percent"] = 100 * per_second / possible
    return made
