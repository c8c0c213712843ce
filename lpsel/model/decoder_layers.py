"""A model's decoder layers, compiled or checkpointed (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).

The switch of transformers works only in training mode, and models without dropout train in evaluation mode.
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

# Compiled versions of a layer's code, shared by all models of its kind, for passes with and without gradients, several
# dtypes, a scorer and targets; PyTorch does not compile more.
RECOMPILE_LIMIT = 64
# FLOPs on a CPU from which compiled layers save more time than compiling takes: LP_app on about 2,000 Alpaca rows with
# SmolLM2-135M. Compiling takes about 30 seconds; a training step then takes a tenth (two threads) to a quarter (one
# thread) less time.
WORTH_COMPILING = 2e14


def checkpoint_layers(model: Any) -> None:
    """Checkpoint every decoder layer in passes with gradients; parameter names do not change."""
    for layer in decoder_layers(model):
        layer.forward = partial(_recomputed, layer, layer.forward)


def compile_layers(model: Any) -> None:
    """Compile every decoder layer, once for packs of any size; attention remains a kernel call."""
    _keep_compiled_code_private()
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def compiling_pays(model: Any, tokens: int) -> bool:
    """Whether compiling a model's layers on this CPU saves time, for forward passes over `tokens` tokens.

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

    PyTorch compiles and loads a program for each of the CPU's instruction sets to see whether the compiler knows it,
    which takes longer than the trial here. It is left to do so only where the best one does not work at once.
    """
    from torch._inductor.cpu_vec_isa import supported_vec_isa_list, valid_vec_isa_list

    checked: list[Any] = [valid_vec_isa_list, *(type(each).__bool__ for each in supported_vec_isa_list)]
    _keep_compiled_code_private()
    cpp: Any = torch._inductor.config.cpp
    chosen = cpp.vec_isa_ok
    for trusted in (True, None) if chosen is None else (chosen,):  # None: PyTorch checks every instruction set
        cpp.vec_isa_ok = trusted
        for check in checked:
            if hasattr(check, "cache_clear"):
                check.cache_clear()
        try:
            torch.compile(torch.exp)(torch.ones(64))
            return True
        except Exception as error:  # of the compiler, dynamo or inductor
            problem = first_line(error)
    log.info("compile=auto: layers are not compiled, since torch.compile fails here (%s)", problem)
    return False


@cache
def _keep_compiled_code_private() -> tempfile.TemporaryDirectory[str] | None:
    """Let PyTorch write compiled code to a folder of this process, unless the user has named one.

    By default it loads code, and pickles, from a folder in /tmp whose name other users can guess and take, and
    compiles with headers from there wherever its code is.
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
    """The decoder's list of layers: the one with `num_hidden_layers` entries.

    Raises:
        UserError: there is no such list.
    """
    if (found := _find_layers(model)) is not None:
        return found
    raise UserError(
        model.config.model_type,
        problem=f"has no list of {model.config.get_text_config().num_hidden_layers} decoder layers",
        hint="do not use trainer=fsdp, activation_checkpointing=true or compile=true with this model",
    )


def norms_of(layer: nn.Module) -> list[nn.Module]:
    """The modules of a layer whose own weights are all vectors, which autocast does not round."""
    own = ((module, [p.dim() for p in module.parameters(recurse=False)]) for module in layer.modules())
    return [module for module, dimensions in own if dimensions and set(dimensions) == {1}]


def _find_layers(model: Any) -> nn.ModuleList | None:
    layers = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next((each for each in lists if len(each) == layers), None)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Only dropout, in training mode, draws random numbers.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=layer.training, **kwargs)
