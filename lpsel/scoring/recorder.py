"""Callback that records every row's NLL before training and after each epoch."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lpsel.data.packing import MicroBatch
from lpsel.distributed import Interrupted
from lpsel.scoring.store import Parts
from lpsel.training.trainer import before_training

BATCHES_PER_PART = 64


class NLLRecorder(L.Callback):
    """Writes the per-row results of validation passes over the training set, keyed by row index.

    The pass before training is Lightning's sanity check over all batches (`num_sanity_val_steps=-1`), a point where
    every strategy allows a forward pass; if nothing is trained, it is a validation run. Each rank writes its own parts
    without gathering, so results do not depend on batch order, batch size or the number of ranks. The data module skips
    rows that an earlier process has already recorded.

    Args:
        parts: destination, a folder that all ranks can access.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.index_B: list[Tensor] = []
        self.nll_B: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.parts.folder.mkdir(parents=True, exist_ok=True)
        trainer.strategy.barrier("folder of parts created")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.recorded_N = self.parts.of_epoch(_epoch(trainer), len(data.tokens))
        trainer.strategy.barrier("all ranks have read the same parts")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MicroBatch, *_: Any
    ) -> None:
        self.index_B.append(batch.index_B)
        self.nll_B.append(outputs)
        if len(self.nll_B) >= BATCHES_PER_PART:
            self._flush(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._flush(trainer)
        self.parts.wait()
        trainer.strategy.barrier("epoch recorded")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted):
            self._flush(trainer)
            self.parts.wait()

    def _flush(self, trainer: L.Trainer) -> None:
        if self.nll_B:
            index, nll = torch.cat(self.index_B).cpu(), torch.cat(self.nll_B).cpu()
            self.parts.add(_epoch(trainer), trainer.global_rank, index, nll)
        self.index_B, self.nll_B = [], []


def _epoch(trainer: L.Trainer) -> int:
    return 0 if before_training(trainer) else trainer.current_epoch + 1
