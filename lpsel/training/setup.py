"""Training settings that a command shares between scorers and targets: devices, optimizer, memory, tracking.

Does not import Hydra or OmegaConf, so that the library also works without them.
"""

import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.tokens import Tokens
from lpsel.errors import UserError, check_choice, check_flag, check_int, check_package, first_line, is_int
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.fsdp import shards
from lpsel.model.lightning_module import FineTuner
from lpsel.model.load import load_config
from lpsel.model.memory_estimate import PACKS
from lpsel.model.spec import ModelSpec
from lpsel.tracking.tracker import Tracker

# Arguments of Lightning's Trainer that would change what a recipe trains without being part of any cache key.
IN_RECIPE = {
    "accumulate_grad_batches", "check_val_every_n_epoch", "fast_dev_run", "gradient_clip_val", "limit_train_batches",
    "limit_val_batches", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "overfit_batches",
    "val_check_interval",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingSetup:
    """The part of a command's configuration that determines how and where models are trained."""

    trainer: Mapping[str, Any]  # settings of Lightning's Trainer, with its class as `_target_`
    optimizer: Mapping[str, Any]  # settings of the optimizer, with its class as `_target_`
    activation_checkpointing: bool  # keep only the inputs of each layer for the backward pass
    compile: bool | str  # torch.compile the layers, or `auto`: if it saves time on a CPU
    train_tokens: int | str  # largest pack of a training step, or `auto` (`lpsel.training.pack_size`)
    score_tokens: int  # largest pack of a recording pass
    checkpoint_steps: int | str  # optimizer steps between checkpoints, or `auto`
    cache_dir: Path  # for tokens, scores and checkpoints
    run_dir: Path
    tracker: Tracker
    head: str = "own"  # implementation of output head and loss: `own`, or `liger` on a GPU

    def __post_init__(self) -> None:
        check_flag("activation_checkpointing", self.activation_checkpointing)
        check_choice("compile", self.compile, ("auto", True, False))
        self._check_head()
        if self.train_tokens != "auto":
            check_int("train_tokens", self.train_tokens, 1, what="auto or a number of tokens")
        check_int("score_tokens", self.score_tokens, 1, what="a number of tokens")
        if self.checkpoint_steps != "auto":
            check_int("checkpoint_steps", self.checkpoint_steps, 1, what="auto or a number of optimizer steps")
        # Raises UserError for an unknown precision.
        resolve_precision(self.trainer["precision"], self.trainer["accelerator"])
        _check_trainer(self.trainer)
        if self.eight_bits:
            check_package("bitsandbytes", "quantized", "optimizer", "adamw8bit")
            if shards(self.trainer["strategy"]):
                hint = "set optimizer=adamw, or trainer=ddp"
                raise UserError("optimizer", "adamw8bit", "does not support trainer=fsdp (sharded weights)", hint)
        _check_optimizer(self.optimizer)

    def _check_head(self) -> None:
        check_choice("head", self.head, ("own", "liger"))
        if self.head == "liger":
            check_package("liger_kernel", "liger", "head", "liger")
            if self.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
                raise UserError("head", "liger", "its kernels need a GPU", "set head=own")

    @classmethod
    def of(cls, config: Any, cache_dir: Path, run_dir: Path, tracker: Tracker) -> "TrainingSetup":
        """Create the setup from a command's configuration (a DictConfig)."""
        from omegaconf import OmegaConf

        check_flag("dry_run", config.dry_run)
        settings: dict[str, Any] = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        for name in ("trainer", "optimizer"):
            settings[name] = OmegaConf.to_container(config[name], resolve=True)
        return cls(**(settings | {"cache_dir": cache_dir, "run_dir": run_dir, "tracker": tracker}))

    @property
    def device(self) -> torch.device:
        return device_of(self.trainer["accelerator"])

    @property
    def eight_bits(self) -> bool:
        """Whether the optimizer stores its moments in 8 bits."""
        return bool(self.optimizer["_target_"].startswith("bitsandbytes."))

    def precision(self, spec: ModelSpec, path: str) -> str:
        """Resolve the precision of a model's weights and passes, as named in `lpsel.model.device`."""
        hidden_size = load_config(spec, path).get_text_config().hidden_size
        return resolve_precision(self.trainer["precision"], self.trainer["accelerator"], hidden_size)

    def data_module(self, tokens: Tokens, spec: ModelSpec, **options: Any) -> SubsetDataModule:
        """Create a SubsetDataModule for a model; `options` are passed on to it, such as the mask of selected rows."""
        settings: dict[str, Any] = {
            "batch_size": spec.recipe.global_batch,
            "reduction": spec.recipe.reduction,
            "seed": spec.recipe.seed,
            "train_tokens": PACKS[0] if self.train_tokens == "auto" else self.train_tokens,
            "score_tokens": self.score_tokens,
        }
        return SubsetDataModule(tokens, **(settings | options))

    def fine_tuner(self, role: str, spec: ModelSpec, path: str, steps: int, **options: Any) -> FineTuner:
        """Create the FineTuner that trains a model for `steps` optimizer steps; `options` are passed on to it."""
        return FineTuner(
            role,
            spec,
            path,
            partial_of(self.optimizer),
            steps,
            precision=self.precision(spec, path),
            activation_checkpointing=self.activation_checkpointing,
            compiled=self.compile,
            head=self.head,
            **options,
        )


def partial_of(settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Bind the settings as keyword arguments to the callable named by `_target_`."""
    arguments = {name: _instantiate(value) for name, value in settings.items() if not name.startswith("_")}
    return partial(pkgutil.resolve_name(settings["_target_"]), **arguments)


def _instantiate(value: Any) -> Any:
    """Create the objects described by mappings with a `_target_` in a setting, at any depth."""
    if isinstance(value, Mapping) and "_target_" in value:
        return partial_of(value)()
    if isinstance(value, Mapping):
        return {name: _instantiate(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_instantiate(part) for part in value]
    return value


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    if changed := sorted(IN_RECIPE & trainer.keys()):
        hint = "set model.recipe and scorer.recipe, or dataset.limit=N for a short run"
        raise UserError(f"trainer.{changed[0]}", trainer[changed[0]], "changes what the recipe trains", hint)
    check_int("trainer.num_nodes", trainer["num_nodes"], 1, what="a number of machines")
    devices = trainer["devices"]
    is_list = isinstance(devices, Sequence) and not isinstance(devices, str)
    is_count = is_int(devices) and devices >= 1
    if not (is_list or is_count or devices in ("auto", -1)):
        raise UserError("trainer.devices", devices, "must be auto, a number of devices (at least 1), or a list of them")


def _check_optimizer(settings: Mapping[str, Any]) -> None:
    """Check the settings by creating the optimizer for one weight; the learning rate belongs to the recipe."""
    if "lr" in settings:
        hint = "set model.recipe.learning_rate, and scorer.recipe.learning_rate"
        raise UserError("optimizer.lr", settings["lr"], "is not used", hint)
    try:
        partial_of(settings)([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    except Exception as error:  # PyTorch and bitsandbytes raise various types
        arguments = ", ".join(f"{name}={value}" for name, value in settings.items() if not name.startswith("_"))
        problem = f"{settings['_target_']} does not accept {arguments} ({first_line(error)})"
        raise UserError("optimizer", problem=problem, hint="remove the setting that you changed") from error
