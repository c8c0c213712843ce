"""Count the floating-point operations of training and recording passes, including attention.

`lengths` and `supervised` are the numbers of tokens and of supervised tokens of each row, shape (N,).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.tokens import Tokens
from lpsel.model.load import text_decoder

Times = NDArray[np.int64]  # how often each row has been fed, shape (N,)


def forward_flops(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> float:
    """Count the operations of one forward pass over rows, with the output head on supervised tokens only.

    2 per weight and token for the layers, 2 x 2 x heads x head size x T^2 / 2 per layer for causal attention, 2 x
    hidden x vocabulary per supervised token for the head (Kaplan et al. 2020, table 1, with the head separate). 4-bit
    weights count like other weights; in mixtures, only the experts that a token is routed to count.
    """
    weights, _, attention = _products(model, lengths, supervised)
    return weights + attention


def training_flops(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> float:
    """Count the operations of one forward and backward pass over rows.

    For every matmul, the backward pass has one of the same size for the gradient of the input, and another for the
    gradient of the weight if the weight is trained: 6 operations per trained weight and token, 4 per frozen one.
    Attention needs both. Ignores recomputation by activation checkpointing, and savings from frozen embeddings.
    """
    weights, trained_weights, attention = _products(model, lengths, supervised)
    return 2 * (weights + attention) + attention + trained_weights


def count_work(model: Any, tokens: Tokens, trained_N: Times | int = 0, recorded_N: Times | int = 0) -> dict[str, float]:
    """Count the tokens, without padding, and FLOPs of training on and recording each row a given number of times."""

    def rows(times_N: Times | int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.repeat(tokens.lengths, times_N), np.repeat(tokens.response_tokens, times_N)

    return {
        "tokens": int((tokens.lengths * (trained_N + recorded_N)).sum()),
        "flops": training_flops(model, *rows(trained_N)) + forward_flops(model, *rows(recorded_N)),
    }


def _products(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> tuple[float, float, float]:
    """Count a forward pass's operations: matmuls with all weights, with trained weights only, and attention."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    embeddings = {id(model.get_input_embeddings().weight), id(head)}
    layers = [
        (_size(parameter) * _used_fraction(name, config), parameter.requires_grad)
        for name, parameter in text_decoder(model).named_parameters()
        if id(parameter) not in embeddings
    ]
    used = sum(size for size, _ in layers)  # weights that each token uses
    trained = sum(size for size, is_trained in layers if is_trained)
    length = lengths.astype(np.float64)
    per_token = 2.0 * length.sum()
    per_label = 2.0 * supervised.sum(dtype=np.float64)
    all_weights = per_token * used + per_label * _size(head)
    trained_weights = per_token * trained + per_label * _size(head) * head.requires_grad
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 2 * config.num_hidden_layers * width * (length**2).sum()
    return float(all_weights), float(trained_weights), float(attention)


def _used_fraction(name: str, config: Any) -> float:
    """Return the fraction of a parameter that each token uses: below 1 for the experts of a mixture."""
    if ".experts." not in name:
        return 1.0
    counts = (getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    experts = next(filter(None, counts), None)
    return config.num_experts_per_tok / experts if experts else 1.0


def _size(parameter: Any) -> int:
    """Return the number of weights in a parameter; 4-bit parameters store two per element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
