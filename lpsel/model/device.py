"""Which device and precision a configuration means on this machine."""

from typing import TYPE_CHECKING

from lpsel.errors import UserError

if TYPE_CHECKING:
    import torch


def resolve_precision(requested: str) -> str:
    """Lightning's name of the precision that `auto` stands for: bf16-mixed where a GPU computes it, else 32-true."""
    if requested != "auto":
        return str(requested)
    import torch

    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def device_of(accelerator: str) -> "torch.device":
    """The device that a run in one process uses.

    Raises:
        UserError: a GPU is asked for where there is none.
    """
    import torch

    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no CUDA device; say trainer=cpu.")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
