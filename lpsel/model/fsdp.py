"""FSDP2: every rank stores a slice of the weights, gradients and optimizer states, and gathers a layer to use it.

The decoder layers are sharded one by one; embeddings, last norm and head belong to the root module, whose forward is
called. No rank holds a second full copy: all ranks create the model without memory, rank 0 reads the file, and its
tensors are broadcast one by one, of which each rank stores its slice.
"""

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from lpsel.errors import ReportedByMainProcess, UserError, check_int, first_line
from lpsel.model.decoder_layers import decoder_layers, norms_of
from lpsel.model.load import load_config, load_model, stored_dtype
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.spec import ModelSpec


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all devices of all nodes.

    Args:
        cpu_offload: keep weights, gradients and optimizer states on the host, where the optimizer updates them.
        reshard_after_forward: free a gathered layer after its forward pass, and gather it again in the backward pass.
        replicate: copies of the model, each sharded over as many devices, for example one on every node (HSDP).
    """

    def __init__(self, cpu_offload: bool = False, reshard_after_forward: bool = True, replicate: int = 1) -> None:
        check_int("trainer.strategy.replicate", replicate, 1)
        # The gradient norm is then reduced on the host, which NCCL cannot do.
        backend = "cpu:gloo,cuda:nccl" if cpu_offload else None
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, process_group_backend=backend)
        self.cpu_offload, self.reshard_after_forward, self.replicate = cpu_offload, reshard_after_forward, replicate

    def _configure_launcher(self) -> None:
        # The first hook that knows the devices, before other processes start.
        if self.cpu_offload and self.root_device.type == "cpu":
            problem, hint = "needs a GPU; everything is on the CPU already", "remove it"
            raise UserError("trainer.strategy.cpu_offload", "true", problem, hint)
        if (devices := self.num_nodes * self.num_processes) % self.replicate:
            problem = f"{devices} devices do not divide into as many copies"
            raise UserError("trainer.strategy.replicate", self.replicate, problem, f"set a divisor of {devices}")
        super()._configure_launcher()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def shards(self) -> int:
        """Devices that share a copy of the model."""
        return self.num_nodes * self.num_processes // self.replicate

    def mesh(self) -> DeviceMesh:
        """All devices, in one dimension or, with several copies, by copy and slice."""
        sizes = {"shard": self.shards} if self.replicate == 1 else {"replicate": self.replicate, "shard": self.shards}
        return init_device_mesh(self.root_device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

    def model_to_device(self) -> None:
        if not self.cpu_offload:  # with it, load_sharded has placed every tensor
            super().model_to_device()


def shards(strategy: Any) -> bool:
    """Whether a strategy, a name or its settings, shards the weights over its devices (FSDP)."""
    if isinstance(strategy, str):
        return "fsdp" in strategy
    return issubclass(pkgutil.resolve_name(strategy["_target_"]), ModelParallelStrategy)


def option_of(strategy: Any, name: str, default: Any) -> Any:
    """An option of a strategy, which is a name or has settings."""
    return default if isinstance(strategy, str) else strategy.get(name, default)


def load_sharded(
    spec: ModelSpec,
    path: str,
    dtype: torch.dtype,
    strategy: ShardedStrategy,
    precision: str,
    prepare: Callable[[Any], None],
) -> PerSampleLoss:
    """The sharded model, checked and filled with its weights. All ranks call it together.

    bf16-mixed computes as on one device: the matrices of a layer are gathered in bfloat16, to which autocast would
    round them; norms, embeddings and head in float32, as autocast leaves them. Gradients are reduced in float32.

    Args:
        dtype: of the weights that the optimizer updates.
        prepare: called with the model before it is sharded, for example to freeze parts of it.

    Raises:
        UserError: on all ranks, if rank 0 cannot load the model.
    """
    from transformers import AutoModelForCausalLM

    whole, packed = _whole_on_rank_0(spec, path, strategy)
    config, trusted = load_config(spec, path), spec.trust_remote_code
    with torch.device("meta"):  # which takes no memory
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted).eval()
    prepare(model)
    loss = PerSampleLoss(model, packed)
    shard = partial(
        fully_shard,
        mesh=strategy.mesh(),
        reshard_after_forward=strategy.reshard_after_forward,
        offload_policy=CPUOffloadPolicy() if strategy.cpu_offload else OffloadPolicy(),
    )
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(model):
        if precision == "bf16-mixed":
            if norms := norms_of(layer):
                shard(norms)
            shard(layer, mp_policy=rounded)
        else:
            shard(layer)
    shard(loss)
    _fill(model, whole, strategy)
    return loss


def _whole_on_rank_0(spec: ModelSpec, path: str, strategy: ShardedStrategy) -> tuple[Any, bool | None]:
    """On rank 0 the full model as stored, elsewhere None; and whether it supports packs. A failure ends all ranks.

    Tensors that need no conversion are memory-mapped, so that the system can drop and reread their pages.
    """
    whole, packed, failure = None, None, None
    if strategy.is_global_zero:
        try:
            whole = load_model(spec, path, stored_dtype(spec, path))
            loss = PerSampleLoss(whole, packed=False if spec.recipe.dropout else None)
            check_head(loss)
            packed = loss.attention is not None
            decoder_layers(whole)
        except Exception as error:
            failure = error
    problem, packed = strategy.broadcast((None if failure is None else first_line(failure), packed))
    if failure is not None:
        raise failure
    if problem is not None:
        raise ReportedByMainProcess(path, problem=problem)
    return whole, packed


def _fill(model: Any, whole: Any, strategy: ShardedStrategy) -> None:
    """Copy the values of rank 0's full model into every slice and buffer."""
    model.to_empty(device=torch.device("cpu") if strategy.cpu_offload else strategy.root_device)
    set_model_state_dict(
        model,
        whole.state_dict() if whole is not None else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    )
    # Rotary frequencies, Gemma's embedding scale and the like are not in the file; transformers computes them.
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()
    model.tie_weights()
    if whole is not None and hasattr(whole, "generation_config"):
        model.generation_config = whole.generation_config
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), "a tensor has no memory"
