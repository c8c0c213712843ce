"""Compile or checkpoint decoder layers (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).

The checkpointing of transformers works only in training mode, but models without dropout train in evaluation mode.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils.checkpoint import checkpoint

from lpsel.errors import UserError, first_line

log = logging.getLogger(__name__)

# Maximum number of compiled versions of a layer's code. All models of an architecture share them; each combination of
# gradients on or off, dtype, and scorer or target needs its own.
RECOMPILE_LIMIT = 64
# FLOPs on a CPU above which compiled layers save more time than compiling takes: LP_app on about 2,000 Alpaca rows with
# SmolLM2-135M. Compiling takes about 30 seconds; training steps then take 10% (two threads) to 25% (one thread) less
# time.
WORTH_COMPILING = 2e14


def checkpoint_layers(model: Any) -> None:
    """Checkpoint every decoder layer in passes with gradients, without changing parameter names."""
    for layer in decoder_layers(model):
        layer.forward = partial(_recomputed, layer, layer.forward)


def compile_layers(model: Any) -> None:
    """Compile every decoder layer once for packs of any size; attention stays a separate kernel call."""
    _keep_compiled_code_private()
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def compiling_pays(model: Any, tokens: int) -> bool:
    """Whether compiling a model's layers saves time on this CPU, given forward passes over `tokens` tokens.

    A forward and backward pass counts as three forward passes.
    """
    layers = _find_layers(model)
    if layers is None:
        return False
    flops = 2 * sum(p.numel() for p in layers.parameters()) * tokens
    return flops > WORTH_COMPILING and can_compile()


@cache
def can_compile() -> bool:
    """Whether torch.compile works on this CPU: it needs a C++ compiler and Python's headers.

    To find out which instruction sets the compiler supports, PyTorch compiles and loads a program for each, which takes
    longer than the test here. PyTorch's check runs only if the best instruction set fails this test.
    """
    from torch._inductor.cpu_vec_isa import supported_vec_isa_list, valid_vec_isa_list

    caches: list[Any] = [valid_vec_isa_list, *(type(isa).__bool__ for isa in supported_vec_isa_list)]
    _keep_compiled_code_private()
    cpp: Any = torch._inductor.config.cpp
    # True skips PyTorch's check of every instruction set, None runs it; a user's choice is kept.
    settings = [True, None] if cpp.vec_isa_ok is None else [cpp.vec_isa_ok]
    for setting in settings:
        cpp.vec_isa_ok = setting
        for cached in caches:
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        try:
            torch.compile(torch.exp)(torch.ones(64))
            return True
        except Exception as error:  # from the compiler, dynamo or inductor
            problem = first_line(error)
    log.info("compile=auto: layers are not compiled, since torch.compile fails here (%s)", problem)
    return False


@cache
def _keep_compiled_code_private() -> tempfile.TemporaryDirectory[str] | None:
    """Make PyTorch write compiled code to a private temporary folder, unless the user has configured one.

    By default, PyTorch loads code and pickles from a folder in /tmp that other users can predict and create first, and
    takes precompiled headers from there even if its code is elsewhere.
    """
    from torch._inductor import codecache

    folder, shared = None, default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared) == shared:
        folder = tempfile.TemporaryDirectory(prefix="lpsel-compiled-", ignore_cleanup_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    headers = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "precompiled_headers"
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(headers), str(headers / "locks")
    return folder


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder's list of layers: the one with `num_hidden_layers` entries.

    Raises:
        UserError: the decoder has no such list.
    """
    layers = _find_layers(model)
    if layers is None:
        raise UserError(
            model.config.model_type,
            problem=f"has no list of {model.config.get_text_config().num_hidden_layers} decoder layers",
            hint="do not use trainer=fsdp, activation_checkpointing=true or compile=true with this model",
        )
    return layers


def norms_of(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer whose own weights are all vectors, which autocast does not cast."""
    return [module for module in layer.modules() if {p.dim() for p in module.parameters(recurse=False)} == {1}]


def _find_layers(model: Any) -> nn.ModuleList | None:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Only dropout in training mode draws random numbers.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=layer.training, **kwargs)
