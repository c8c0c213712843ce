"""A model's decoder layers, compiled or checkpointed (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).

The switch of transformers works only in training mode, and models without dropout train in evaluation mode.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.utils.checkpoint import checkpoint

from lpsel.errors import UserError

# Compiled versions of a layer's code, shared by all models of its kind; PyTorch does not compile more. There are a few
# sizes of packs, recorded and trained, for a scorer and a target, and larger ones for rows above the token budget.
RECOMPILE_LIMIT = 64


def checkpoint_layers(model: Any) -> None:
    """Checkpoint every decoder layer in passes with gradients; parameter names do not change."""
    for layer in decoder_layers(model):
        layer.forward = partial(_recomputed, layer, layer.forward)


def compile_layers(model: Any) -> None:
    """Compile every decoder layer for packs of a few fixed shapes; attention remains a kernel call."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for layer in decoder_layers(model):
        layer.compile(dynamic=False)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder's list of layers: the one with `num_hidden_layers` entries.

    Raises:
        UserError: there is no such list.
    """
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise UserError(
        model.config.model_type,
        problem=f"has no list of {layers} decoder layers",
        hint="do not use trainer=fsdp, activation_checkpointing=true or compile=true with this model",
    )


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Only dropout, in training mode, draws random numbers.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=layer.training, **kwargs)
