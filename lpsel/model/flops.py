"""Floating-point operations of training and recording passes, including attention.

Models are transformers causal language models, with or without an adapter; `lengths` are the tokens of each row and
`supervised` its supervised tokens, shape (N,) each.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.tokens import Tokens

Times = NDArray[np.int64]  # how often each row has been fed, shape (N,)


def forward_flops(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> float:
    """Floating-point operations of one forward pass over rows, with the output head on supervised tokens only.

    2 per weight and token for the layers, 2 x 2 x hidden x T^2 / 2 per layer for causal attention, 2 x hidden x
    vocabulary per supervised token for the head (Kaplan et al. 2020, table 1, with the head separate). 4-bit weights
    count like other weights.
    """
    return _products(model, lengths, supervised).forward


def training_flops(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> float:
    """Floating-point operations of one forward and backward pass over rows.

    For every product, the backward pass has one of the same size for the gradient of the input, and another for the
    gradient of the weight if the weight is trained. Attention multiplies activations only and needs both. The total is
    three times the forward pass if all weights are trained, and two thirds of that for frozen weights: 4 instead of 6
    per weight and token. Recomputation by activation checkpointing is not counted, and neither is that the input of the
    first layer needs no gradient if the embedding is frozen.
    """
    products = _products(model, lengths, supervised)
    return 2 * products.forward + products.attention + products.trainable


def spent(model: Any, tokens: Tokens, trained_N: Times, recorded_N: Times) -> dict[str, float]:
    """Tokens, without padding, and FLOPs of passes over rows.

    Args:
        tokens: of N rows.
        trained_N, recorded_N: how often each row is trained on, and how often it is only recorded, shape (N,).
    """

    def rows(times_N: Times) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.repeat(tokens.lengths, times_N), np.repeat(tokens.response_tokens, times_N)

    return {
        "tokens": int((tokens.lengths * (trained_N + recorded_N)).sum()),
        "flops": training_flops(model, *rows(trained_N)) + forward_flops(model, *rows(recorded_N)),
    }


@dataclass(frozen=True)
class _Products:
    """Operations of a forward pass.

    Attributes:
        weights: products with weights, the head's included.
        trainable: those of them whose weight is trained.
        attention: products of activations with activations.
    """

    weights: float
    trainable: float
    attention: float

    @property
    def forward(self) -> float:
        return self.weights + self.attention


def _products(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> _Products:
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    tables = {id(model.get_input_embeddings().weight), id(head)}
    layers = [p for p in model.parameters() if id(p) not in tables]
    length = lengths.astype(np.float64)
    per_token = 2.0 * length.sum()
    per_label = 2.0 * supervised.sum(dtype=np.float64)
    return _Products(
        weights=float(per_token * sum(map(_size, layers)) + per_label * _size(head)),
        trainable=float(
            per_token * sum(_size(p) for p in layers if p.requires_grad) + per_label * _size(head) * head.requires_grad
        ),
        attention=float(2 * config.num_hidden_layers * config.hidden_size * (length**2).sum()),
    )


def _size(parameter: Any) -> int:
    """The number of weights in a parameter; a 4-bit parameter stores two in each element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
