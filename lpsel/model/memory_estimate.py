"""What training takes of each device's memory, worked out from the model's shapes before it is loaded.

W weights of the model, A of an adapter, L of the linear layers that are quantised
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lpsel.model.adapter import Adapter
from lpsel.model.decoder_layers import decoder_layers
from lpsel.model.pass_tokens import inner_size
from lpsel.model.spec import ModelSpec

QUANTISED = 0.5 + 1 / 64 + 4 / 16384  # bytes a weight in NF4 with double quantisation
MOMENTS_8BIT = 2 + 2 * 4 / 256  # bytes a weight: two moments, and for each block of 256 a scale


@dataclass(frozen=True)
class Footprint:
    """Bytes on each device.

    Attributes:
        states: weights, gradients and the optimiser's moments; exact but for what the allocator adds.
        gathered: with FSDP, the layer and the root that are whole while they are used, and their gradients.
        activations: an estimate, for the largest pack.
    """

    states: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return self.states + self.gathered + self.activations


def footprint(
    model: Any,
    spec: ModelSpec,
    *,
    precision: str,
    eight_bits: bool,
    adapter: Adapter | None,
    checkpointing: bool,
    pack: int,
    slices: int,
) -> Footprint:
    """What training `model` takes of each device; docs/guides/memory.md has the bytes a weight.

    Args:
        model: of transformers, on the meta device.
        spec: what it was made from.
        precision: Lightning's name of it.
        eight_bits: whether the optimiser keeps its moments in 8 bits.
        adapter: trained in place of all weights.
        checkpointing: layers keep their inputs alone.
        pack: tokens of the largest micro-batch.
        slices: devices that share one copy, 1 without FSDP.
    """
    computed = 4 if precision == "32-true" else 2
    stored = 2 if precision == "bf16-true" else 4
    trained = stored + stored + (MOMENTS_8BIT if eight_bits else 2 * stored)  # weight, gradient, two moments
    weights = _size(model)
    if adapter is None:
        states = trained * weights / slices
    else:
        layers = adapter.layers(model, spec).values()
        states = trained * sum(adapter.rank * (inputs + outputs) for inputs, outputs in layers)
        linear = _linear_weights(model) if adapter.quantization else 0
        states += QUANTISED * linear + computed * (weights - linear)
    gathered = 0.0
    if slices > 1:
        layer_sizes = [_size(layer) for layer in decoder_layers(model)]
        gathered = 2.0 * computed * (weights - sum(layer_sizes) + max(layer_sizes))
    return Footprint(states, gathered, _activations(model, computed, checkpointing, pack))


def fits_on(limit: float, of: Callable[[int], Footprint]) -> int | None:
    """The smallest power of two of devices over which FSDP leaves each with at most `limit` bytes; None: not 1,024."""
    return next((n for n in (2**k for k in range(1, 11)) if of(n).total <= limit), None)


def _activations(model: Any, computed: int, checkpointing: bool, pack: int) -> float:
    """Bytes kept for the backward pass (Korthikanti et al. 2022, Reducing Activation Recomputation, equation 1).

    Without dropout, and without the attention matrix, which flash attention does not keep.

    A layer keeps 8 values of the hidden size for each token, and two of the MLP's inner size, four where it is gated.
    Checkpointed, it keeps one, and all of them for one layer at a time.
    """
    config = model.config.get_text_config()
    hidden = config.hidden_size
    gated = any("gate_proj" in name for name, _ in model.named_modules())
    layer = 8 * hidden + (4 if gated else 2) * inner_size(model.config)
    layers = config.num_hidden_layers
    return float(pack * computed * (layers * hidden + layer if checkpointing else layers * layer))


def _size(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _linear_weights(model: Any) -> int:
    from torch import nn

    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
