"""FSDP2: every rank keeps a slice of the weights, gradients and optimiser states, and borrows a layer while it uses it.

The model is cut along its own list of decoder layers; embeddings, last norm and head belong to the root, the module
whose forward is called. No rank ever has a second full copy: all build the model without memory, rank 0 alone reads
the file, and its tensors are broadcast one by one, of which each rank keeps its slice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from lpsel.errors import ReportedByMainProcess, UserError, first_line
from lpsel.model.decoder_layers import decoder_layers
from lpsel.model.load import load_config, load_model, stored_dtype
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.spec import ModelSpec


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all devices of all nodes.

    Args:
        cpu_offload: keep weights, gradients and optimiser states in the host's memory, and step the optimiser there.

    Raises:
        UserError: `cpu_offload` where there is no GPU to take anything off.
    """

    def __init__(self, cpu_offload: bool = False) -> None:
        # The gradient's norm is then reduced on the host, which NCCL cannot.
        backend = "cpu:gloo,cuda:nccl" if cpu_offload else None
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, process_group_backend=backend)
        self.cpu_offload = cpu_offload

    def _configure_launcher(self) -> None:
        # The first hook that knows the devices, before any other process is started.
        if self.cpu_offload and self.root_device.type == "cpu":
            raise UserError("trainer.strategy.cpu_offload=true: without a GPU all is on the CPU already; leave it out.")
        super()._configure_launcher()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        if not self.cpu_offload:  # else load_sharded has put every tensor where it belongs
            super().model_to_device()


def load_sharded(
    spec: ModelSpec,
    path: str,
    dtype: torch.dtype,
    strategy: ShardedStrategy,
    precision: str,
    prepare: Callable[[Any], None],
) -> PerSampleLoss:
    """The model in slices, checked and filled with its weights; to be called by all ranks together.

    Args:
        dtype: of the weights that the optimiser steps on.
        strategy: once its process group and device mesh are there.
        precision: Lightning's name; with bf16-mixed a layer is borrowed and computed in bfloat16, and its gradient
            reduced in float32.
        prepare: called with the model before it is cut, to freeze some of its parts.

    Raises:
        UserError: on all ranks, what rank 0 found wrong with the model or its file.
    """
    whole, packed = _whole_on_rank_0(spec, path, strategy)
    model = empty_model(spec, path, dtype)
    prepare(model)
    loss = PerSampleLoss(model, packed)
    _shard(loss, strategy, precision)
    _fill(model, whole, strategy)
    return loss


def empty_model(spec: ModelSpec, path: str, dtype: torch.dtype) -> Any:
    """The model as its config.json describes it, in evaluation mode, all of it on the meta device: without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_config(spec, path), dtype=dtype, trust_remote_code=spec.trust_remote_code
        )
    return model.eval()


def _whole_on_rank_0(spec: ModelSpec, path: str, strategy: ShardedStrategy) -> tuple[Any, bool | None]:
    """The full model as it is stored on rank 0, None elsewhere, and whether it takes packs; a failure ends every rank.

    Tensors that need no conversion are the file's pages, which the system can drop and read again.
    """
    whole, packed, failure = None, None, None
    if strategy.is_global_zero:
        try:
            whole = load_model(spec, path, stored_dtype(spec, path))
            loss = PerSampleLoss(whole)
            check_head(loss)
            packed = loss.attention is not None
            decoder_layers(whole)
        except Exception as error:
            failure = error
    told, packed = strategy.broadcast((None if failure is None else first_line(failure), packed))
    if failure is not None:
        raise failure
    if told is not None:
        raise ReportedByMainProcess(told)
    return whole, packed


def _shard(loss: PerSampleLoss, strategy: ShardedStrategy, precision: str) -> None:
    """Cut the decoder's layers one by one, then what is left of the module."""
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    cut = partial(
        fully_shard,
        mesh=strategy.device_mesh["data_parallel"],
        mp_policy=mixed if precision == "bf16-mixed" else MixedPrecisionPolicy(),
        offload_policy=CPUOffloadPolicy() if strategy.cpu_offload else OffloadPolicy(),
    )
    for layer in decoder_layers(loss.model):
        cut(layer)
    cut(loss)


def _fill(model: Any, whole: Any, strategy: ShardedStrategy) -> None:
    """Give every slice and buffer its values from rank 0's full model, and let go of that."""
    model.to_empty(device=torch.device("cpu") if strategy.cpu_offload else strategy.root_device)
    set_model_state_dict(
        model,
        whole.state_dict() if whole is not None else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    )
    # What no file holds, such as rotary frequencies and Gemma's embedding scale, transformers computes from the config.
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()
    model.tie_weights()
    if whole is not None and hasattr(whole, "generation_config"):
        model.generation_config = whole.generation_config
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), "a tensor has no memory"
