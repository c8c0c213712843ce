"""What memory-saving choices need beyond the core: optional packages, and a strategy they work with."""

from importlib.util import find_spec
from typing import Any

from lpsel.errors import UserError


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
        UserError: an optimiser without its package or with a strategy it does not know.
    """
    if not isinstance(config.activation_checkpointing, bool):
        raise UserError(f"activation_checkpointing={config.activation_checkpointing}: must be true or false.")
    if not config.optimizer["_target_"].startswith("bitsandbytes."):
        return
    need("bitsandbytes", "quantized", "optimizer=adamw8bit")
    if shards(config.trainer):
        raise UserError(
            "trainer=fsdp optimizer=adamw8bit: bitsandbytes' optimiser does not know sharded weights; say "
            "optimizer=adamw, or trainer=ddp."
        )
