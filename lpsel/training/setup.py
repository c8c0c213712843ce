"""How one command trains and scores models, whichever model it is: devices, optimizer, memory, tracking."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from lpsel.config import build
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.tokens import Tokens
from lpsel.model.adapter import Adapter
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.lightning_module import FineTuner
from lpsel.model.loss import Measure
from lpsel.model.spec import ModelSpec
from lpsel.tracking.tracker import Tracker
from lpsel.training.checks import check_training


@dataclass(frozen=True)
class TrainingSetup:
    """The part of a command's configuration that says how models are trained, and where.

    Attributes:
        trainer: configuration of Lightning's Trainer.
        optimizer: configuration of the optimizer.
        activation_checkpointing: keep only the inputs of each layer for the backward pass.
        compile: run the layers through torch.compile.
        train_tokens, score_tokens: largest pack of a training step and of a recording pass, in tokens.
        checkpoint_steps: optimizer steps from one checkpoint to the next, or `auto`.
        cache_dir: of tokens, scores and checkpoints.
        run_dir: folder of the run.
        tracker: of the run.
    """

    trainer: DictConfig
    optimizer: DictConfig
    activation_checkpointing: bool
    compile: bool
    train_tokens: int
    score_tokens: int
    checkpoint_steps: int | str
    cache_dir: Path
    run_dir: Path
    tracker: Tracker

    @classmethod
    def of(cls, config: DictConfig, cache_dir: Path, run_dir: Path, tracker: Tracker) -> "TrainingSetup":
        """The setup in a command's configuration.

        Raises:
            UserError: a value is invalid, or a package it needs is not installed.
        """
        check_training(config)
        given = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        return cls(**(given | {"cache_dir": cache_dir, "run_dir": run_dir, "tracker": tracker}))

    @property
    def device(self) -> torch.device:
        """Where models run.

        Raises:
            UserError: trainer.accelerator is not available.
        """
        return device_of(self.trainer.accelerator)

    @property
    def precision(self) -> str:
        """Of weights and passes, as `lpsel.model.device` names it."""
        return resolve_precision(self.trainer.precision)

    @property
    def optimizer_settings(self) -> Any:
        """The optimizer's configuration as plain values, for keys of the cache."""
        return OmegaConf.to_container(self.optimizer, resolve=True)

    def data_module(
        self,
        tokens: Tokens,
        spec: ModelSpec,
        *,
        mask: NDArray[np.bool_] | None = None,
        record: bool = False,
        score_tokens: int | None = None,
    ) -> SubsetDataModule:
        """Batches of `tokens`, N rows, for a model: trained on where `mask`, bool (N,), is true, or on all rows."""
        return SubsetDataModule(
            tokens,
            mask=mask,
            batch_size=spec.recipe.batch_size,
            seed=spec.recipe.seed,
            train_tokens=self.train_tokens,
            score_tokens=self.score_tokens if score_tokens is None else score_tokens,
            few_shapes=self.compile,
            record=record,
        )

    def fine_tuner(
        self,
        role: str,
        spec: ModelSpec,
        path: str,
        steps: int,
        *,
        adapter: Adapter | None = None,
        measure: Measure | None = None,
    ) -> FineTuner:
        """The LightningModule that trains a model for `steps` optimizer steps, the horizon of its schedule.

        Args:
            measure: what recording passes return of every supervised token, instead of its NLL.
        """
        return FineTuner(
            role,
            spec,
            path,
            build(self.optimizer),
            steps,
            precision=self.precision,
            adapter=adapter,
            activation_checkpointing=self.activation_checkpointing,
            compiled=self.compile,
            measure=measure,
        )
