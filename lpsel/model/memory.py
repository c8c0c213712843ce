"""How many tokens a recording pass takes at once, so that its memory does not grow with the batch it is given."""

from typing import Any

ACTIVATION_BYTES = 256 * 2**20


def pass_tokens(config: Any, precision: str, asked: int) -> int:
    """The largest pack of a recording pass: `asked`, or as many tokens as keep its activations in ACTIVATION_BYTES.

    A token's are largest inside a layer's MLP: in the precision of the pass a handful of hidden states and four times
    the MLP's inner state, and in float32 the residual stream and its norm.

    Args:
        config: a model's configuration.
        precision: of the pass, as `lpsel.model.device` names it.
        asked: tokens.
    """
    hidden, inner = config.get_text_config().hidden_size, inner_size(config)
    bytes_each = 4 if precision == "32-true" else 2
    return max(1, min(asked, ACTIVATION_BYTES // (bytes_each * (6 * hidden + 4 * inner) + 4 * 3 * hidden)))


def inner_size(config: Any) -> int:
    """Values of a token inside a layer's MLP, by the names that architectures have for it; else four hidden states."""
    text = config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner")
    return next((size for name in names if (size := getattr(text, name, None))), 4 * text.hidden_size)
