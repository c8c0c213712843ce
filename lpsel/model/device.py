"""Which device and precision a configuration means on this machine."""

from typing import TYPE_CHECKING

from lpsel.errors import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
ALIASES = {"32": "32-true", "bf16": "bf16-mixed"}


def resolve_precision(requested: str) -> str:
    """Lightning's name of the precision asked for; `auto` is bf16-mixed where a GPU computes it, else 32-true.

    float16 is not among them: its loss scaling does not go with losses that are summed over micro-batches here.

    Raises:
        UserError: any other precision.
    """
    if requested != "auto":
        named = ALIASES.get(str(requested), str(requested))
        if named not in PRECISIONS:
            raise UserError(f"trainer.precision={requested}: must be auto, {', '.join(PRECISIONS)}.")
        return named
    import torch

    # Older GPUs emulate it, slowly.
    computed = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if computed else "32-true"


def lightning_precision(precision: str) -> str:
    """What Lightning is told. Its own bf16-true would round rotary frequencies as well as weights to bfloat16; here the
    weights are loaded in bfloat16, and nothing else changes."""
    return "32-true" if precision == "bf16-true" else precision


def device_of(accelerator: str) -> "torch.device":
    """The device that a run in one process uses.

    Raises:
        UserError: a GPU is asked for where there is none, or a device that is not known here.
    """
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator}: must be one of {', '.join(ACCELERATORS)}.")
    import torch

    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no CUDA device; say trainer=cpu.")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def free_memory() -> None:
    """Give back what a model that was just let go of has taken, before the next is loaded."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
