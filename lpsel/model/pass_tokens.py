"""How many tokens a recording pass takes at once, and what a CPU's C library does with the memory that it frees."""

import ctypes
from typing import Any

# Of the GPU's, since a small model's smaller packs are computed in less time than Python takes to launch their kernels
ACTIVATION_BYTES = {"cpu": 256 * 2**20, "cuda": 512 * 2**20}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
REUSED_BYTES = 96 * 2**20


def reuse_freed_memory() -> None:
    """Let the C library keep blocks of up to REUSED_BYTES that a pass frees, up to 2 GiB of them, for what comes next.

    As it is, glibc gives large blocks back, and the kernel clears every page of the next layer's anew, which
    takes a tenth of a pass and more (docs/results/benchmarks.md). Does nothing where the C library is another.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        change(M_MMAP_THRESHOLD, REUSED_BYTES)
        change(M_TRIM_THRESHOLD, 2**31 - 1)


def pass_tokens(config: Any, precision: str, asked: int, device: str) -> int:
    """The largest pack of a recording pass: `asked`, or as many tokens as keep its activations in ACTIVATION_BYTES.

    A token's are largest inside a layer's MLP: in the precision of the pass a handful of hidden states and four times
    the MLP's inner state, and in float32 the residual stream and its norm.

    Args:
        config: a model's configuration.
        precision: of the pass, as `lpsel.model.device` names it.
        asked: tokens.
        device: where the pass runs, cpu or cuda.
    """
    hidden, inner = config.get_text_config().hidden_size, inner_size(config)
    bytes_each = 4 if precision == "32-true" else 2
    return max(1, min(asked, ACTIVATION_BYTES[device] // (bytes_each * (6 * hidden + 4 * inner) + 4 * 3 * hidden)))


def inner_size(config: Any) -> int:
    """Values of a token inside a layer's MLP, by the names that architectures have for it; else four hidden states."""
    text = config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner")
    return next((size for name in names if (size := getattr(text, name, None))), 4 * text.hidden_size)
