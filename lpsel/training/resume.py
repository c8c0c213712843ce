"""A training that goes on where the last one ended: when its state is kept, and how a new process takes it up."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.distributed import Interrupted, pending_signal
from lpsel.training.checkpoint import Checkpoints

log = logging.getLogger(__name__)

AUTO = "auto"
SHARE = 0.02  # of the training's time that checkpoints may take, with checkpoint_steps=auto
FIRST = 10  # steps after which the first is made, which shows what one takes


class Resume(L.Callback):
    """Keeps a training's state every few steps, and puts the newest into a training that starts.

    Other callbacks' state (`Callback.state_dict`) goes with it, so this one comes last of them. Steps that were made
    before come as empty batches. At the end of an epoch that is recorded, the state is always kept: what is recorded
    then are the losses of these very weights, whoever computes them. When a signal asks to end, all ranks end
    together, at the end of a step or batch.

    Attributes:
        before: seconds and device seconds that went into what was taken up.

    Args:
        title: what the log calls the training.
        folder: for the checkpoints.
        data: what is trained on.
        every: steps from one checkpoint to the next, or `auto`: as many as make checkpoints cost SHARE of the time.
    """

    def __init__(self, title: str, folder: Path, data: SubsetDataModule, every: int | str) -> None:
        self.title, self.folder, self.data = title, folder, data
        self.auto = every == AUTO
        self.every = FIRST if self.auto else int(every)
        self.before = {"seconds": 0.0, "device_seconds": 0.0}
        self.started = time.monotonic()
        self.since = self.step = 0
        self.training = 0.0  # seconds of the `since` steps

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.checkpoints = Checkpoints(self.folder, trainer.strategy)
        found = self.checkpoints.load(pl_module.language_model, trainer.optimizers[0])
        if found is None:
            return
        scheduler: Any = pl_module.lr_schedulers()
        scheduler.load_state_dict(found["scheduler"])
        for group, rate in zip(trainer.optimizers[0].param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        epoch, self.step = found["epoch"], found["step"]
        self.data.made = (epoch, found["epoch_step"])
        loop: Any = trainer.fit_loop
        for state in (loop.epoch_progress.current, loop.epoch_progress.total):
            state.ready = state.started = state.processed = state.completed = epoch
        # Lightning's `global_step` and the step that loggers see; the steps of this epoch that come empty are counted.
        loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = self.step
        loop.epoch_loop._batches_that_stepped = self.step - found["epoch_step"]
        for callback in _stateful(trainer):
            callback.load_state_dict(found["callbacks"][callback.state_key])
        nan = float("nan")
        metrics = {name: nan if value is None else value for name, value in found["metrics"].items()}
        trainer.callback_metrics.update(metrics)
        self.before = found["cost"]
        log.info("%s: goes on after step %s of epoch %s", self.title, found["epoch_step"], epoch + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        if not batch.micro_batches:
            return
        now = time.monotonic()
        self.training += now - self.last
        self.step, self.since = self.step + 1, self.since + 1
        ends = batch_idx + 1 == self.data.steps_per_epoch or trainer.should_stop
        signal = _signal_to_any(trainer)
        if signal or self.since >= self.every or (ends and self.data.record):
            self._save(trainer, pl_module, batch_idx + 1)
        if signal:
            saved = f"saved after step {batch_idx + 1} of epoch {trainer.current_epoch + 1}"
            raise Interrupted(signal, saved, all_ranks=True)
        self.last = time.monotonic()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MicroBatch, *_: Any
    ) -> None:
        if signal := _signal_to_any(trainer):
            raise Interrupted(signal, "the losses recorded so far are kept", all_ranks=True)

    def cost(self, trainer: L.Trainer) -> dict[str, float]:
        """Seconds and device seconds up to now, with those of earlier attempts up to the state that was taken up."""
        seconds = time.monotonic() - self.started
        return {
            "seconds": round(self.before["seconds"] + seconds, 3),
            "device_seconds": round(self.before["device_seconds"] + seconds * trainer.world_size, 3),
        }

    def _save(self, trainer: L.Trainer, pl_module: Any, epoch_step: int) -> None:
        began = time.monotonic()
        rest = {
            "epoch": trainer.current_epoch,
            "epoch_step": epoch_step,
            "step": self.step,
            "scheduler": pl_module.lr_schedulers().state_dict(),
            "callbacks": {callback.state_key: callback.state_dict() for callback in _stateful(trainer)},
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "cost": self.cost(trainer),
        }
        self.checkpoints.save(self.step, pl_module.language_model, trainer.optimizers[0], rest)
        if self.auto:
            took = time.monotonic() - began
            needed = max(FIRST, math.ceil(took * self.since / (SHARE * self.training)))
            needed = trainer.strategy.broadcast(needed)  # ranks measure differently
            if not self.every / 2 <= needed <= self.every * 2:
                log.info(
                    "%s: a checkpoint takes %.1f s; one every %s steps in %s", self.title, took, needed, self.folder
                )
            self.every = needed
        self.since, self.training = 0, 0.0


def _stateful(trainer: Any) -> list[L.Callback]:
    return [callback for callback in trainer.callbacks if callback.state_dict()]


def _signal_to_any(trainer: L.Trainer) -> int | None:
    """The signal that asked some rank to end; the others take it for SIGTERM."""
    asked = pending_signal()
    if trainer.strategy.reduce_boolean_decision(asked is not None, all=False):
        return asked or 15
    return None
