"""One call of Lightning's Trainer, as scoring and target training both need it."""

import gc
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from lpsel.config import build
from lpsel.console import Advance, track
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.distributed import deferred_signals, is_main_process, started_together
from lpsel.errors import ReportedByMainProcess, UserError, first_line
from lpsel.model.device import lightning_precision
from lpsel.model.flops import spent, training_flops
from lpsel.model.lightning_module import FineTuner
from lpsel.scoring.early_stopping import StopWhenStable
from lpsel.scoring.recorder import before_training
from lpsel.tracking.logger import TrackerLogger
from lpsel.training.costs import Meter, peak_memory, utilisation
from lpsel.training.resume import Resume
from lpsel.training.setup import TrainingSetup


@dataclass(frozen=True)
class Cost:
    """What a fit took.

    Attributes:
        tokens: fed in training and recording passes, padding aside, over all ranks.
        flops: model floating-point operations, attention counted.
        seconds: wall-clock, loading the model included, over all attempts up to what they saved.
        device_seconds: `seconds` times the number of devices.
        peak_memory_bytes: of this process so far, and of its GPU where it has one.
    """

    tokens: int
    flops: float
    seconds: float
    device_seconds: float
    peak_memory_bytes: dict[str, int]

    def __add__(self, other: "Cost") -> "Cost":
        """What two fits of one process took, one after the other."""
        memory, others = self.peak_memory_bytes, other.peak_memory_bytes
        return Cost(
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            seconds=round(self.seconds + other.seconds, 3),
            device_seconds=round(self.device_seconds + other.device_seconds, 3),
            peak_memory_bytes={name: max(memory[name], others[name]) for name in memory},
        )


def fit(
    setup: TrainingSetup,
    module: FineTuner,
    data: SubsetDataModule,
    *,
    epochs: int,
    title: str,
    callbacks: Sequence[L.Callback],
    kept: Path,
    stop: StopWhenStable | None = None,
) -> tuple[L.Trainer, Cost]:
    """Train for `epochs` passes, with a recording pass before and after each where the data module records.

    With 0 epochs, the recording pass before training is all there is. A training of which `kept` has a checkpoint goes
    on from there.

    Args:
        kept: the folder of this training's checkpoints, for the caller to remove once its result is on disk.
        stop: may end the training of an epoch before its last step.

    Raises:
        Interrupted: a signal asks to end; what is done is kept.
    """
    resume = Resume(title, kept, data, setup.checkpoint_steps)
    gc.collect()  # a model trained before this one and its trainer hold each other, and a device's memory
    node = setup.trainer.copy()
    node.precision = lightning_precision(module.precision)
    L.seed_everything(module.spec.recipe.seed, verbose=False)
    progress, meter = FitProgress(title, data), Meter(module.role)
    trainer = _trainer(
        node,
        max_epochs=epochs,
        callbacks=[
            *callbacks,
            *([stop] if stop else []),
            progress,
            *([meter] if setup.tracker.enabled else []),
            resume,
        ],
        logger=TrackerLogger(setup.tracker) if setup.tracker.enabled else False,
        log_every_n_steps=1,
        num_sanity_val_steps=-1 if data.record else 0,
        limit_val_batches=1.0 if data.record else 0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=setup.run_dir,
    )
    # Lightning's own would broadcast from inside the handler, and save a pickle for SLURM.
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = lambda: None
    with deferred_signals(), warnings.catch_warnings():
        # The modules are in evaluation mode on purpose: dropout stays off.
        warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        if epochs:
            trainer.fit(module, datamodule=data)
        else:
            trainer.validate(module, datamodule=data, verbose=False)
    trained_N = data.times_trained(progress.steps)
    recorded_N = data.supervised * (epochs + 1 if data.record else 0) + (stop.times_checked if stop else 0)
    model = module.language_model
    if meter.seconds:
        work = spent(model, data.tokens, trained_N, 0 * trained_N)["flops"]
        where = trainer.strategy.root_device
        busy = utilisation(work, meter.seconds, where, trainer.world_size, module.precision)
        setup.tracker.log({f"{module.role}/{name}": value for name, value in busy.items()}, trainer.global_step)
    return trainer, _cost(spent(model, data.tokens, trained_N, recorded_N), resume.cost(trainer))


def _trainer(node: DictConfig, **arguments: Any) -> L.Trainer:
    if node.num_nodes != 1 and not started_together() and "NODE_RANK" not in os.environ:
        raise UserError(
            f"trainer.num_nodes={node.num_nodes}: this process runs alone and would wait for ever; start it on every "
            "node with torchrun or srun."
        )
    try:
        trainer = build(node)(**arguments)
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        strategy = node.strategy if isinstance(node.strategy, str) else "fsdp"
        asked = f"trainer.accelerator={node.accelerator} trainer.devices={node.devices} trainer.strategy={strategy}"
        raise UserError(f"{asked}: {first_line(error)}; mend it, or say trainer=cpu.") from error
    if started_together() and trainer.world_size not in (1, trainer.num_devices * trainer.num_nodes):
        raise (UserError if is_main_process() else ReportedByMainProcess)(
            f"trainer.num_nodes={trainer.num_nodes} trainer.devices={trainer.num_devices}: {trainer.world_size} ranks "
            "were started; give both as torchrun or srun has them."
        )
    return trainer


def full_training(module: FineTuner, data: SubsetDataModule, epochs: int) -> dict[str, float]:
    """Tokens and FLOPs of training the same model for as many epochs on every row that has a supervised token."""
    lengths, supervised = data.tokens.lengths[data.supervised], data.tokens.response_tokens[data.supervised]
    return {
        "tokens": epochs * int(lengths.sum(dtype="int64")),
        "flops": epochs * training_flops(module.language_model, lengths, supervised),
    }


def _cost(work: dict[str, Any], time_taken: dict[str, Any]) -> Cost:
    return Cost(**work, **time_taken, peak_memory_bytes=peak_memory())


class FitProgress(L.Callback):
    """A bar for each training epoch and each recording pass, in this rank's batches, with its tokens per second.

    Attributes:
        steps: optimiser steps made, by epoch.
    """

    def __init__(self, title: str, data: SubsetDataModule) -> None:
        self.title, self.data = title, data
        self.bar = ExitStack()
        self.advance: Advance
        self.steps: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"][:-1]  # those of the last epoch come once more, empty

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(0)
        self._open(f"{self.title}: epoch {trainer.current_epoch + 1}", self.data.steps_per_epoch, "steps")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        self.steps[-1] += 1
        self.advance(1, tokens=sum(m.tokens for m in batch.micro_batches))
        if batch_idx + 1 == self.data.steps_per_epoch:
            self.bar.close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        when = "before training" if before_training(trainer) else f"after epoch {trainer.current_epoch + 1}"
        self._open(f"{self.title}: recording {when}", len(self.data.rounds_left()), "batches")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MicroBatch, *_: Any
    ) -> None:
        self.advance(1, tokens=batch.tokens)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.close()

    def _open(self, title: str, total: int, unit: str) -> None:
        self.bar.close()  # of an epoch that ended before its last step
        self.advance = self.bar.enter_context(track(title, total, unit))
