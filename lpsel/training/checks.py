"""What memory-saving choices need beyond the core: optional packages, and a strategy they work with."""

from importlib.util import find_spec
from typing import Any

from omegaconf import ListConfig

from lpsel.errors import UserError, first_line, is_int


def need(package: str, extra: str, asked: str) -> None:
    """Make sure of an optional package before anything that needs it is loaded.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f"{asked}: needs the package {package}; pip install 'lpsel[{extra}]'.")


def shards(trainer: Any) -> bool:
    """Whether a trainer's configuration shards the weights over its devices (FSDP)."""
    strategy = trainer.strategy
    if isinstance(strategy, str):
        return "fsdp" in strategy
    from hydra.utils import get_class
    from lightning.pytorch.strategies import ModelParallelStrategy

    return issubclass(get_class(strategy["_target_"]), ModelParallelStrategy)


def check_training(config: Any) -> None:
    """Find what is wrong with the way a model is to be trained, whichever model it is.

    Args:
        config: a command's configuration: optimizer, trainer, activation_checkpointing.

    Raises:
        UserError: an optimiser without its package, with a strategy it does not know or with an argument it does not
            take; a number of devices or tokens that is none.
    """
    for name in ("activation_checkpointing", "compile", "dry_run"):
        if not isinstance(config[name], bool):
            raise UserError(f"{name}={config[name]}: must be true or false.")
    for name in ("train_tokens", "score_tokens"):
        if not is_int(config[name]) or config[name] < 1:
            raise UserError(f"{name}={config[name]}: must be a whole number of tokens, at least 1.")
    every = config.checkpoint_steps
    if every != "auto" and not (is_int(every) and every >= 1):
        raise UserError(f"checkpoint_steps={every}: must be auto or a whole number of optimiser steps, at least 1.")
    _check_devices(config.trainer)
    if config.optimizer["_target_"].startswith("bitsandbytes."):
        need("bitsandbytes", "quantized", "optimizer=adamw8bit")
        if shards(config.trainer):
            raise UserError(
                "trainer=fsdp optimizer=adamw8bit: bitsandbytes' optimiser does not know sharded weights; say "
                "optimizer=adamw, or trainer=ddp."
            )
    _check_optimizer(config.optimizer)


def _check_optimizer(node: Any) -> None:
    """Make the optimiser of one weight."""
    import torch
    from hydra.utils import instantiate

    try:
        instantiate(node, _convert_="all")([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    except Exception as error:  # PyTorch and bitsandbytes each raise their own
        given = ", ".join(f"{name}={value}" for name, value in node.items() if not name.startswith("_"))
        raise UserError(
            f"optimizer: {node['_target_']} does not take {given} ({first_line(error)}); leave out what you changed."
        ) from error


def _check_devices(trainer: Any) -> None:
    if not is_int(trainer.num_nodes) or trainer.num_nodes < 1:
        raise UserError(f"trainer.num_nodes={trainer.num_nodes}: must be a whole number of machines, at least 1.")
    devices = trainer.devices
    known = isinstance(devices, ListConfig) or devices in ("auto", -1) or (is_int(devices) and devices >= 1)
    if not known:
        raise UserError(f"trainer.devices={devices}: must be auto, a number of devices, at least 1, or a list of them.")
