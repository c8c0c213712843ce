"""Resume training: decide when to save checkpoints, and continue from the newest one in a new process."""

import logging
import math
import time
from pathlib import Path
from signal import SIGTERM
from typing import Any

import lightning as L

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.distributed import Interrupted, pending_signal
from lpsel.model.fsdp import reshard
from lpsel.training.checkpoint import Checkpoints

log = logging.getLogger(__name__)

# With checkpoint_steps=auto:
TIME_FRACTION = 0.02  # fraction of the training time to spend on checkpoints
MIN_STEPS = 10  # minimum number of steps between two checkpoints
BYTES_PER_SECOND = 500e6  # written and hashed, assumed for the first checkpoint; later ones are timed

BATCHES_BETWEEN_CHECKS = 64  # batches of a recording pass between checks for a signal, which synchronize the ranks


class Resume(L.Callback):
    """Saves a checkpoint every few steps, and restores the newest one when training starts.

    It must be the last callback, because it saves the state of the others (`Callback.state_dict`). Steps of an earlier
    process arrive as empty batches. A checkpoint is always saved at the end of a recorded epoch, so that a resumed
    process records losses with the same weights; after the last epoch, it contains only weights.
    After a signal, all ranks stop together, after the current step or after at most BATCHES_BETWEEN_CHECKS batches of a
    recording pass. `every` is the number of steps between checkpoints; `auto` limits the time spent on checkpoints to
    TIME_FRACTION of the training time.

    Attributes:
        step: optimizer steps in all processes.
        step_seconds: time spent on steps in this process, excluding checkpoints and recording passes.
        steps_since_save: steps since the last checkpoint or the start.
        seconds_since_save: time spent on these steps.
        save_seconds: time spent on the last checkpoint; 0 before the first.
        earlier_cost: `cost` of earlier processes, up to the restored checkpoint.
    """

    def __init__(self, title: str, folder: Path, data: SubsetDataModule, every: int | str) -> None:
        self.title, self.folder, self.data = title, folder, data
        self.auto = every == "auto"
        self.every = MIN_STEPS if self.auto else int(every)
        self.earlier_cost = {"seconds": 0.0, "device_seconds": 0.0}
        self.started = time.monotonic()
        self.step = self.steps_since_save = 0
        self.step_seconds = self.seconds_since_save = self.save_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.checkpoints = Checkpoints(self.folder, trainer.strategy)
        reshard(pl_module.loss)  # the recording pass before training has gathered weights
        state = self.checkpoints.load(pl_module.language_model, trainer.optimizers[0])
        if state is None:
            return
        scheduler: Any = pl_module.lr_schedulers()
        scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(trainer.optimizers[0].param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        epoch, self.step, self.earlier_cost = state["epoch"], state["step"], state["cost"]
        self.data.completed = (epoch, state["epoch_step"])
        loop: Any = trainer.fit_loop
        for progress in (loop.epoch_progress.current, loop.epoch_progress.total):
            progress.ready = progress.started = progress.processed = progress.completed = epoch
        # Lightning's `global_step`, and the step of its loggers, which also counts this epoch's empty batches.
        loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = self.step
        loop.epoch_loop._batches_that_stepped = self.step - state["epoch_step"]
        for callback in _stateful(trainer):
            callback.load_state_dict(state["callbacks"][callback.state_key])
        metrics = {name: math.nan if value is None else value for name, value in state["metrics"].items()}
        trainer.callback_metrics.update(metrics)
        log.info("%s: resumes after step %s of epoch %s", self.title, state["epoch_step"], epoch + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.step_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        if not batch.micro_batches:
            return
        seconds = time.monotonic() - self.step_started
        self.step += 1
        self.step_seconds += seconds
        self.steps_since_save += 1
        self.seconds_since_save += seconds
        if self.auto and not self.save_seconds and self.steps_since_save == MIN_STEPS:
            reshard(pl_module.loss)
            size = self.checkpoints.size(pl_module.language_model, trainer.optimizers[0])
            self.every = self._interval(trainer, size / BYTES_PER_SECOND)
        epoch_ends = batch_idx + 1 == self.data.steps_per_epoch or trainer.should_stop
        if pl_module.signaled or self.steps_since_save >= self.every or (epoch_ends and self.data.record):
            self._save(trainer, pl_module, batch_idx + 1)
        if pl_module.signaled:
            saved = f"saved after step {batch_idx + 1} of epoch {trainer.current_epoch + 1}"
            raise Interrupted(pending_signal() or SIGTERM, saved, all_ranks=True)
        self.step_started = time.monotonic()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MicroBatch, batch_idx: int, *_: Any
    ) -> None:
        if trainer.world_size > 1 and (batch_idx + 1) % BATCHES_BETWEEN_CHECKS:
            return
        signal = pending_signal()
        if trainer.strategy.reduce_boolean_decision(signal is not None, all=False):
            raise Interrupted(signal or SIGTERM, "the losses recorded so far are saved", all_ranks=True)

    def cost(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return seconds and device seconds so far, including earlier processes up to the restored checkpoint."""
        seconds = time.monotonic() - self.started
        return {
            "seconds": round(self.earlier_cost["seconds"] + seconds, 3),
            "device_seconds": round(self.earlier_cost["device_seconds"] + seconds * trainer.world_size, 3),
        }

    def _save(self, trainer: L.Trainer, pl_module: Any, epoch_step: int) -> None:
        save_started = time.monotonic()
        reshard(pl_module.loss)  # another callback may have run a recording pass
        progress = {
            "epoch": trainer.current_epoch,
            "epoch_step": epoch_step,
            "step": self.step,
            "scheduler": pl_module.lr_schedulers().state_dict(),
            "callbacks": {callback.state_key: callback.state_dict() for callback in _stateful(trainer)},
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "cost": self.cost(trainer),
        }
        finished = trainer.current_epoch + 1 == trainer.max_epochs and epoch_step == self.data.steps_per_epoch
        optimizer = None if finished else trainer.optimizers[0]
        self.checkpoints.save(self.step, pl_module.language_model, optimizer, progress)
        self.save_seconds = time.monotonic() - save_started
        if self.auto and not finished:
            every = self._interval(trainer, self.save_seconds)
            if not self.every / 2 <= every <= self.every * 2:
                message = "%s: a checkpoint takes %.1f s; saving one every %s steps in %s"
                log.info(message, self.title, self.save_seconds, every, self.folder)
            self.every = every
        self.steps_since_save, self.seconds_since_save = 0, 0.0

    def _interval(self, trainer: L.Trainer, save_seconds: float) -> int:
        """Compute the number of steps between checkpoints from the times of a checkpoint and of the last steps."""
        steps = math.ceil(save_seconds * self.steps_since_save / (TIME_FRACTION * self.seconds_since_save))
        return trainer.strategy.broadcast(max(MIN_STEPS, steps))  # the ranks measure different times


def _stateful(trainer: Any) -> list[L.Callback]:
    return [callback for callback in trainer.callbacks if callback.state_dict()]
