"""Estimate the memory of training and recording passes from a model's shapes, before loading it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lpsel.data.packing import MicroBatch, Segment, varlen_of
from lpsel.model.adapter import Adapter
from lpsel.model.decoder_layers import checkpoint_layers, decoder_layers, norms_of
from lpsel.model.device import logit_bytes
from lpsel.model.loss import PerSampleLoss
from lpsel.model.spec import ModelSpec

QUANTIZED = 0.5 + 1 / 64 + 4 / 16384  # bytes per weight in NF4 with double quantization
MOMENTS_8BIT = 2 + 2 * 4 / 256  # bytes per weight: two moments, and a scale per block of 256

# For a recording pass. A fraction of a GPU's memory, because every pack casts and, with FSDP, gathers all weights.
ACTIVATION_BYTES, GPU_ACTIVATION_SHARE = 256 * 2**20, 1 / 20
GPU_BYTES = 80 * 2**30  # memory assumed if the GPU is unknown

# Tokens in the largest training pack. On a CPU, 2,048 is as fast as 4,096 and takes 1.2 GB less for SmolLM2-135M.
PACKS = (4096, 2048, 1024, 512)

# Fraction of the memory that training may use. The rest is, on a GPU, for fragmentation, the CUDA context and other
# libraries; on a host, for the tokens, the program and other processes.
USABLE = {"cpu": 0.5, "cuda": 0.9, "mps": 0.5}

_counted: dict[Any, tuple[int, int]] = {}  # cache of `_bytes_of_layers`, shared by the jobs of a sweep


class DeviceMemory(NamedTuple):
    """Estimated memory in bytes per device."""

    states: float  # weights, gradients and optimizer moments; exact except for the allocator's overhead
    # FSDP only: the gathered root module, the current and the next layer (or all layers), their gradients, and the
    # float32 copy of gradients during reduction.
    buffers: float
    activations: float  # for the largest pack, including autocast's copies of the weights

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
    layers_stay: bool = False,
    gpu: float | None = GPU_BYTES,
) -> DeviceMemory:
    """Estimate the memory per device for training `model`; docs/explanation/memory.md lists the bytes per weight.

    `model` is on the meta device. `pack` is the number of tokens in the largest micro-batch. `shards` is the number of
    devices that share one copy of the model (1 without FSDP). With `layers_stay`, gathered layers are kept until the
    backward pass. `gpu` is the memory of one GPU in bytes, None on a CPU.
    """
    computed = 4 if precision == "32-true" else 2
    stored = 2 if precision == "bf16-true" else 4
    moments = MOMENTS_8BIT if eight_bits else 2 * stored
    trained = stored + stored + moments  # a weight, its gradient and its moments
    weights = _size(model)
    if adapter is None:
        states = trained * weights / shards
    else:
        layers = adapter.layers(model, spec).values()
        states = trained * sum(adapter.rank * (inputs + outputs) for inputs, outputs in layers)
        linear = _linear_weights(model) if adapter.quantization else 0
        states += QUANTIZED * linear + computed * (weights - linear)
    buffers = 0.0
    if shards > 1:
        sizes = [_size(layer) for layer in decoder_layers(model)]
        root, layer = weights - sum(sizes), max(sizes)
        gathered = sum(sizes) if layers_stay else 2 * layer
        buffers = 2.0 * stored * root + computed * (gathered + 2.0 * layer) + 4.0 * max(root, layer)
    # Frozen weights and the matrices that FSDP gathers already have autocast's dtype, so autocast does not copy them.
    mixed = precision == "bf16-mixed"
    dtype = torch.bfloat16 if precision == "bf16-true" or (mixed and adapter is not None) else torch.float32
    matrices = torch.bfloat16 if mixed and shards > 1 else dtype
    settings = _Pass(dtype, matrices, mixed, checkpointing, gpu)
    return DeviceMemory(states, buffers, _activations(model.config, settings, pack, min(spec.max_length, pack)))


def devices_needed(limit: float, estimate: Callable[[int], DeviceMemory]) -> int | None:
    """Return the smallest power of two of FSDP devices that need at most `limit` bytes each; None if 1,024 do not."""
    powers = (2**k for k in range(1, 11))
    return next((devices for devices in powers if estimate(devices).total <= limit), None)


def training_packs(accelerator: str) -> Sequence[int]:
    """Return the pack sizes that `train_tokens=auto` considers on an accelerator, largest first."""
    return PACKS[1:] if accelerator == "cpu" else PACKS


def training_pack(accelerator: str, limit: float, estimate: Callable[[int], DeviceMemory]) -> int:
    """Return the largest of `training_packs` with which training fits into `limit` bytes, or the smallest of all."""
    packs = training_packs(accelerator)
    return next((pack for pack in packs if estimate(pack).total <= limit), packs[-1])


def recording_pack(config: Any, precision: str, requested: int, gpu: float | None) -> int:
    """Return the largest pack of a recording pass in tokens: `requested`, or fewer if activations take too much memory.

    `gpu` is the memory of one GPU in bytes, None on a CPU.

    A token's activations peak inside the MLP of a layer: six hidden states and four MLP inner states in the precision
    of the pass, and the residual stream and its norm in float32.
    """
    hidden, inner = config.get_text_config().hidden_size, _inner_size(config)
    bytes_each = 4 if precision == "32-true" else 2
    bytes_per_token = bytes_each * (6 * hidden + 4 * inner) + 4 * 3 * hidden
    available = ACTIVATION_BYTES if gpu is None else GPU_ACTIVATION_SHARE * gpu
    return max(1, min(requested, int(available // bytes_per_token)))


def _activations(config: Any, settings: "_Pass", pack: int, row: int) -> float:
    """Count the bytes that the forward pass of one pack saves for the backward pass, plus those of the head.

    Measured on fake tensors in models with one and two layers, and includes autocast's copies of the weights. The head
    stores its own gradient and that of the hidden states, and holds a chunk of logits three times.
    """
    one_layer, added_layer = _bytes_of_layers(config, settings, pack, row)
    text = config.get_text_config()
    layers = one_layer + (text.num_hidden_layers - 1) * added_layer
    if settings.checkpointing:  # one layer at a time is recomputed
        _, recomputed = _bytes_of_layers(config, settings._replace(checkpointing=False), pack, row)
        layers += recomputed
    chunk = min(logit_bytes(settings.gpu), 4 * pack * text.vocab_size)
    head = 4 * text.hidden_size * (text.vocab_size + pack) + 3 * chunk
    return float(layers + head)


def _bytes_of_layers(config: Any, settings: "_Pass", pack: int, row: int) -> tuple[int, int]:
    """Count the bytes saved with one layer, and the bytes that each additional layer adds."""
    key = (config.to_json_string(), settings, pack, row)
    if key not in _counted:
        one_layer = _saved_bytes(config, settings, 1, pack, row)
        two_layers = _saved_bytes(config, settings, 2, pack, row)
        _counted[key] = one_layer, two_layers - one_layer
    return _counted[key]


class _Pass(NamedTuple):
    """Settings of a forward pass: dtypes of the weights and of a layer's matrices, and the device's memory."""

    dtype: torch.dtype
    matrices: torch.dtype
    autocast: bool
    checkpointing: bool
    gpu: float | None


def _saved_bytes(config: Any, settings: _Pass, layers: int, pack: int, row: int) -> int:
    """Count the bytes that a model with `layers` layers saves for rows of `row` tokens, excluding weights."""
    from transformers import AutoModelForCausalLM

    config = deepcopy(config)
    config.get_text_config().num_hidden_layers = layers
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=settings.dtype).eval()
        if settings.matrices != settings.dtype:
            _round_matrices(model, settings.matrices)
        if settings.checkpointing:
            checkpoint_layers(model)
        loss = PerSampleLoss(model)
        if loss.attention:
            loss.attention.flash = lambda query, value: settings.gpu is not None
        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        as_a_gpu = _FloatLikeCuda() if settings.gpu is not None and settings.autocast else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast, cache_enabled=False), as_a_gpu, hooks:
            hidden_NH = loss.hidden(_rows_of(pack, row))
        loss.release()
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        del hidden_NH
    return sum(size for storage, size in saved.items() if storage not in weights)


class _FloatLikeCuda(TorchFunctionMode):
    """Runs functions in float32 that autocast runs in float32 on CUDA but not on CPUs, if language models use them."""

    FUNCTIONS = (torch.layer_norm, torch.nn.functional.layer_norm, torch.pow, Tensor.pow, Tensor.__pow__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS:
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **kwargs or {})


def _round_matrices(model: Any, dtype: torch.dtype) -> None:
    """Cast all weights in the decoder layers except norms."""
    for layer in decoder_layers(model):
        norms = norms_of(layer)
        for module in layer.modules():
            if module not in norms:
                for name, weight in list(module.named_parameters(recurse=False)):
                    setattr(module, name, torch.nn.Parameter(weight.detach().to(dtype)))


def _rows_of(pack: int, row: int) -> MicroBatch:
    """Create a pack of rows with `row` tokens each, all supervised."""
    rows = [Segment(start, min(start + row, pack)) for start in range(0, pack, row)]
    zero_T, zero_B = torch.zeros(pack, dtype=torch.int64), torch.zeros(len(rows), dtype=torch.int64)
    return MicroBatch(
        input_ids_T=zero_T,
        positions_T=zero_T,
        predicts_N=zero_T,
        labels_N=zero_T,
        row_N=zero_T,
        supervised_B=zero_B,
        index_B=zero_B,
        shared=(),
        rows=tuple(rows),
        tokens=pack,
        varlen=varlen_of(rows),
    )


def _inner_size(config: Any) -> int:
    """Return the MLP's inner size from any of its names in config.json; by default 4 times the hidden size."""
    text = config.get_text_config()
    sizes = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return next(filter(None, sizes), 4 * text.hidden_size)


def _size(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _linear_weights(model: Any) -> int:
    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
