"""A model's decoder layers, compiled or checkpointed: of the latter, each keeps its input alone for the backward pass.

(Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.) transformers' own switch acts in training mode only,
and models stay in evaluation mode here so that dropout is off.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lpsel.errors import UserError

# Versions of a layer's code, which all models of its kind share; beyond, PyTorch would go on without compiling. A few
# sizes of packs, recorded and trained, by a scorer and a target, each with a larger one for every row above the budget.
COMPILED = 64


def checkpoint_layers(model: Any) -> None:
    """Checkpoint every decoder layer of a transformers model in passes that have gradients; names stay as they are.

    Raises:
        UserError: a model without a list of its decoder layers.
    """
    for layer in decoder_layers(model):
        layer.forward = partial(_recomputed, layer.forward)


def compile_layers(model: Any) -> None:
    """Compile every decoder layer for packs of a few fixed shapes; attention itself stays a kernel call.

    Raises:
        UserError: a model without a list of its decoder layers.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=False, recompile_limit=COMPILED)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder's own list of layers: as many entries as its configuration says.

    Raises:
        UserError: there is no such list.
    """
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise UserError(
        f"{model.config.model_type}: has no list of {layers} decoder layers, which trainer=fsdp, "
        "activation_checkpointing=true and compile=true need; leave these out."
    )


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing in a layer draws random numbers: dropout is off.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
