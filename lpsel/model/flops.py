"""What a pass costs: model floating-point operations, attention counted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def forward_flops(model: Any, lengths: NDArray[np.int32], supervised: NDArray[np.int32]) -> float:
    """Floating-point operations of one forward pass over rows, with the output head on supervised tokens only.

    2 per weight and token for the layers, 2 x 2 x hidden x T^2 / 2 per layer for causal attention, 2 x hidden x
    vocabulary per supervised token for the head (Kaplan et al. 2020, table 1, with the head taken apart). A training
    step costs three times as much.

    Args:
        model: a causal language model of transformers.
        lengths: tokens of each row, shape (N,).
        supervised: supervised tokens of each row, shape (N,).
    """
    config = model.config.get_text_config()
    embeddings = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    layer_weights = sum(p.numel() for p in model.parameters()) - sum(embeddings.values())
    length = lengths.astype(np.float64)
    attention = 2 * config.num_hidden_layers * config.hidden_size * (length**2).sum()
    head = 2.0 * model.get_output_embeddings().weight.numel() * supervised.sum(dtype=np.float64)
    return float(2 * layer_weights * length.sum() + attention + head)
