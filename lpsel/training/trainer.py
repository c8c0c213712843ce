"""Run Lightning's Trainer for a scorer or a target."""

import gc
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lpsel.console import Advance, track
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.distributed import deferred_signals, is_main_process, started_together
from lpsel.errors import ReportedByMainProcess, UserError, first_line
from lpsel.model.device import lightning_precision, warn_of_mixed_gpus
from lpsel.model.flops import count_work
from lpsel.model.lightning_module import FineTuner
from lpsel.tracking.logger import TrackerLogger
from lpsel.training.costs import Cost, peak_memory, utilization
from lpsel.training.pack_size import PackSize
from lpsel.training.resume import Resume
from lpsel.training.setup import TrainingSetup, partial_of


def fit(
    setup: TrainingSetup,
    module: FineTuner,
    data: SubsetDataModule,
    *,
    epochs: int,
    title: str,
    callbacks: Sequence[L.Callback],
    checkpoints: Path,
) -> tuple[L.Trainer, Cost]:
    """Train for `epochs` epochs; if the data module records, also run a recording pass before training and per epoch.

    With 0 epochs, only the recording pass before training runs. Training resumes from a checkpoint if there is one.

    Args:
        callbacks: may end an epoch before its last step (`trainer.should_stop`). A callback that records rows between
            training steps has an attribute `times_checked`: how many times it has fed each row, shape (N,).
        checkpoints: folder for this training run's checkpoints. The caller removes it once the result is on disk.

    Returns:
        The trainer, and the cost of this and of earlier, interrupted processes.

    Raises:
        Interrupted: a signal ended the training; the completed work is saved.
    """
    gc.collect()  # the previous model and trainer are a reference cycle that holds device memory
    L.seed_everything(module.spec.recipe.seed, verbose=False)
    module.tokens_ahead = data.tokens_ahead(epochs)
    progress = FitProgress(title, module.role, data)
    resume = Resume(title, checkpoints, data, setup.checkpoint_steps)
    trainer = _trainer(setup, module, data, epochs, [*callbacks, progress, resume, PackSize(setup, title, data)])
    with deferred_signals(), warnings.catch_warnings():
        # Modules are in evaluation mode on purpose: training steps turn dropout on and off.
        warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        if epochs:
            trainer.fit(module, datamodule=data)
        else:
            trainer.validate(module, datamodule=data, verbose=False)
    model, trained_N = module.language_model, data.times_trained(progress.steps)
    if setup.tracker.enabled and resume.step_seconds:
        flops = count_work(model, data.tokens, trained_N - data.times_trained(progress.earlier_steps))["flops"]
        device = trainer.strategy.root_device
        measured = utilization(flops, resume.step_seconds, device, trainer.world_size, module.precision)
        setup.tracker.log({f"{module.role}/{name}": value for name, value in measured.items()}, trainer.global_step)
    checked_N = sum(getattr(callback, "times_checked", 0) for callback in callbacks)
    recorded_N = data.to_record * (epochs + 1) + checked_N
    work: dict[str, Any] = count_work(model, data.tokens, trained_N, recorded_N)
    return trainer, Cost(**work, **resume.cost(trainer), peak_memory_bytes=peak_memory())


def before_training(trainer: L.Trainer) -> bool:
    """Whether the current pass is the recording pass before training, with or without training after it."""
    return trainer.sanity_checking or trainer.state.fn == TrainerFn.VALIDATING


def full_training(module: FineTuner, data: SubsetDataModule, epochs: int) -> dict[str, float]:
    """Compute the tokens and FLOPs of training the same model on every row that has a supervised token."""
    once = count_work(module.language_model, data.tokens, data.supervised.astype("int64"))
    return {name: epochs * number for name, number in once.items()}


def _trainer(
    setup: TrainingSetup, module: FineTuner, data: SubsetDataModule, epochs: int, callbacks: list[L.Callback]
) -> L.Trainer:
    settings = setup.trainer
    nodes, devices = settings["num_nodes"], settings["devices"]
    if nodes != 1 and not started_together() and "NODE_RANK" not in os.environ:
        problem = "this process was started alone and would wait forever"
        raise UserError("trainer.num_nodes", nodes, problem, "start it on every node with torchrun or srun")
    try:
        trainer: L.Trainer = partial_of({**settings, "precision": lightning_precision(module.precision)})(
            accelerator=setup.device.type,
            max_epochs=epochs,
            callbacks=callbacks,
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
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        strategy = settings["strategy"] if isinstance(settings["strategy"], str) else "fsdp"
        others = f"with trainer.devices={devices} and trainer.strategy={strategy}"
        problem, hint = f"not possible {others} ({first_line(error)})", "change one of them, or set trainer=cpu"
        raise UserError("trainer.accelerator", settings["accelerator"], problem, hint) from error
    if started_together() and trainer.world_size not in (1, trainer.num_devices * trainer.num_nodes):
        error_type = UserError if is_main_process() else ReportedByMainProcess
        raise error_type(
            f"trainer.num_nodes={trainer.num_nodes} trainer.devices",
            trainer.num_devices,
            f"{trainer.world_size} ranks were started",
            "set both to the values given to torchrun or srun",
        )
    if setup.device.type == "cuda" and is_main_process():
        warn_of_mixed_gpus(trainer.num_devices)
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs["gradient_as_bucket_view"] = True  # otherwise DDP holds gradients twice
    # Lightning's own signal handlers would broadcast inside the handler and save a pickle under SLURM.
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = lambda: None
    # With several ranks, its check for signals before a step would wait until the device has finished the last one.
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None
    return trainer


class FitProgress(L.Callback):
    """Shows a progress bar for each epoch and recording pass, in this rank's batches, with tokens per second.

    The tracking rank also logs tokens per second, extrapolated from its own to all ranks, and the peak memory so far.

    Attributes:
        steps: number of optimizer steps in each epoch.
        earlier_steps: `steps` of an earlier, interrupted process.
    """

    def __init__(self, title: str, role: str, data: SubsetDataModule) -> None:
        self.title, self.role, self.data = title, role, data
        self.bar = ExitStack()
        self.advance: Advance
        self.steps: list[int] = []
        self.earlier_steps: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.earlier_steps = state["steps"]
        self.steps = self.earlier_steps[:-1]  # steps of the last epoch are counted again, as empty batches

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(0)
        self._open(f"{self.title}: epoch {trainer.current_epoch + 1}", self.data.steps_per_epoch, "steps")
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        now, tokens = time.perf_counter(), sum(micro.tokens for micro in batch.micro_batches)
        self.steps[-1] += 1
        self.advance(1, tokens=tokens)
        if trainer.logger and batch.micro_batches:
            measured = {"tokens_per_second": trainer.world_size * tokens / (now - self.last)}
            measured |= {f"peak_{where}_memory_gib": size / 2**30 for where, size in peak_memory().items()}
            for name, value in measured.items():
                pl_module.log_number(name, value)
        self.last = now
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
        self.bar.close()  # if the previous epoch ended before its last step
        self.advance = self.bar.enter_context(track(title, total, unit))
