"""Memory of training and recording passes, estimated from the shapes of a model before it is loaded."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lpsel.model.adapter import Adapter
from lpsel.model.decoder_layers import decoder_layers
from lpsel.model.spec import ModelSpec

QUANTIZED = 0.5 + 1 / 64 + 4 / 16384  # bytes per weight in NF4 with double quantization
MOMENTS_8BIT = 2 + 2 * 4 / 256  # bytes per weight: two moments, and a scale per block of 256

# Of a recording pass; on a GPU, because a small model computes smaller packs faster than Python launches their kernels.
ACTIVATION_BYTES = {"cpu": 256 * 2**20, "cuda": 512 * 2**20}


class DeviceMemory(NamedTuple):
    """Bytes on each device.

    Attributes:
        states: weights, gradients and optimizer moments; exact except for the allocator's overhead.
        gathered: with FSDP, the layer and the root module that are whole while they are used, and their gradients.
        activations: estimate for the largest pack.
    """

    states: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def training_memory(
    model: Any,
    spec: ModelSpec,
    *,
    precision: str,
    eight_bits: bool,
    adapter: Adapter | None,
    checkpointing: bool,
    pack: int,
    shards: int,
) -> DeviceMemory:
    """The memory for training `model` on each device; docs/explanation/memory.md lists the bytes per weight.

    `model` is on the meta device. `pack` is the number of tokens of the largest micro-batch, `shards` the number of
    devices that share one copy, 1 without FSDP.
    """
    computed = 4 if precision == "32-true" else 2
    stored = 2 if precision == "bf16-true" else 4
    trained = stored + stored + (MOMENTS_8BIT if eight_bits else 2 * stored)  # weight, gradient, two moments
    weights = _size(model)
    if adapter is None:
        states = trained * weights / shards
    else:
        layers = adapter.layers(model, spec).values()
        states = trained * sum(adapter.rank * (inputs + outputs) for inputs, outputs in layers)
        linear = _linear_weights(model) if adapter.quantization else 0
        states += QUANTIZED * linear + computed * (weights - linear)
    gathered = 0.0
    if shards > 1:
        layer_sizes = [_size(layer) for layer in decoder_layers(model)]
        gathered = 2.0 * computed * (weights - sum(layer_sizes) + max(layer_sizes))
    return DeviceMemory(states, gathered, _activations(model, computed, checkpointing, pack))


def devices_needed(limit: float, estimate: Callable[[int], DeviceMemory]) -> int | None:
    """The smallest power of two of FSDP devices that need at most `limit` bytes each; None if 1,024 do not suffice."""
    return next((n for n in (2**k for k in range(1, 11)) if estimate(n).total <= limit), None)


def recording_pack(config: Any, precision: str, requested: int, device: str) -> int:
    """Tokens of the largest pack of a recording pass: `requested`, or as many as fit into ACTIVATION_BYTES.

    The activations of a token are largest inside the MLP of a layer: six hidden states and four times the MLP's inner
    state in the precision of the pass, and the residual stream and its norm in float32.
    """
    hidden, inner = config.get_text_config().hidden_size, _inner_size(config)
    bytes_each = 4 if precision == "32-true" else 2
    bytes_per_token = bytes_each * (6 * hidden + 4 * inner) + 4 * 3 * hidden
    return max(1, min(requested, ACTIVATION_BYTES[device] // bytes_per_token))


def _activations(model: Any, computed: int, checkpointing: bool, pack: int) -> float:
    """Bytes saved for the backward pass (Korthikanti et al. 2022, Reducing Activation Recomputation, equation 1).

    Without dropout, and without the attention matrix, which flash attention does not store. A layer saves 8 values of
    the hidden size per token, and two of the inner size of the MLP, four if it is gated. A checkpointed layer saves one
    of the hidden size, and all of them for one layer at a time.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    gated = any("gate_proj" in name for name, _ in model.named_modules())
    layer = 8 * hidden + (4 if gated else 2) * _inner_size(model.config)
    layers = config.num_hidden_layers
    return float(pack * computed * (layers * hidden + layer if checkpointing else layers * layer))


def _inner_size(config: Any) -> int:
    """Values of a token inside the MLP of a layer, under any of its names; by default four hidden states."""
    text = config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner")
    return next((size for name in names if (size := getattr(text, name, None))), 4 * text.hidden_size)


def _size(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _linear_weights(model: Any) -> int:
    from torch import nn

    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
