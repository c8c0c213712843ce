"""FSDP2: every rank stores a slice of weights, gradients and optimizer states, and gathers each layer when needed.

Decoder layers are sharded one by one; embeddings, final norm and head belong to the root module. No rank needs memory
for a second full copy: all ranks create the model on the meta device, and rank 0 reads the weights and broadcasts them
tensor by tensor; each rank keeps only its slices.
"""

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from lpsel.errors import ReportedByMainProcess, UserError, check_int, first_line
from lpsel.model.decoder_layers import decoder_layers, norms_of
from lpsel.model.load import load_config, load_model, stored_dtype
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.spec import ModelSpec


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 strategy for Lightning that shards over all devices of all nodes.

    Args:
        cpu_offload: keep weights, gradients and optimizer states in host memory and run the optimizer on the CPU.
        reshard_after_forward: free a gathered layer after its forward pass and gather it again in the backward pass.
        replicate: number of model copies, each sharded over an equal number of devices, such as one per node (HSDP).
    """

    def __init__(self, cpu_offload: bool = False, reshard_after_forward: bool = True, replicate: int = 1) -> None:
        check_int("trainer.strategy.replicate", replicate, 1)
        # With offloading, the gradient norm is reduced on the host, which NCCL does not support.
        backend = "cpu:gloo,cuda:nccl" if cpu_offload else None
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, process_group_backend=backend)
        self.cpu_offload, self.reshard_after_forward, self.replicate = cpu_offload, reshard_after_forward, replicate

    def _configure_launcher(self) -> None:
        # The first hook in which devices are known; other processes have not started yet.
        if self.cpu_offload and self.root_device.type == "cpu":
            problem, hint = "needs a GPU; everything is on the CPU already", "remove it"
            raise UserError("trainer.strategy.cpu_offload", "true", problem, hint)
        if (devices := self.num_nodes * self.num_processes) % self.replicate:
            problem, hint = f"is not a divisor of the number of devices, {devices}", "set one, or 1 for a single copy"
            raise UserError("trainer.strategy.replicate", self.replicate, problem, hint)
        super()._configure_launcher()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def shards(self) -> int:
        """Number of devices that share one copy of the model."""
        return self.num_nodes * self.num_processes // self.replicate

    def mesh(self) -> DeviceMesh:
        """Create a mesh of all devices: one dimension or, with several copies, (replicate, shard)."""
        sizes = {"shard": self.shards} if self.replicate == 1 else {"replicate": self.replicate, "shard": self.shards}
        return init_device_mesh(self.root_device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()
            return
        assert self.model is not None
        for buffer in self.model.buffers():  # only weights stay on the host
            buffer.data = buffer.data.to(self.root_device)


def shards(strategy: Any) -> bool:
    """Whether a strategy (a name or settings) shards weights across devices (FSDP)."""
    if isinstance(strategy, str):
        return "fsdp" in strategy
    return issubclass(pkgutil.resolve_name(strategy["_target_"]), ModelParallelStrategy)


def option_of(strategy: Any, name: str, default: Any) -> Any:
    """Return an option of a strategy, or `default` if the strategy is a name or does not set the option."""
    return default if isinstance(strategy, str) else strategy.get(name, default)


def reshard(loss: PerSampleLoss) -> None:
    """Free the weights that are still gathered after a pass, so that `parameters` returns slices."""
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def load_sharded(
    spec: ModelSpec,
    path: str,
    dtype: torch.dtype,
    strategy: ShardedStrategy,
    precision: str,
    prepare: Callable[[Any], None],
) -> PerSampleLoss:
    """Create, check and shard the model, and load its weights. All ranks must call this together.

    With bf16-mixed, results match those on one device: layer matrices are gathered in bfloat16, autocast's dtype;
    norms, embeddings and head in float32, as autocast leaves them. Gradients are reduced in float32.

    Args:
        dtype: dtype of the weights that the optimizer updates.
        prepare: called with the model before sharding, for example to freeze parts of it.

    Raises:
        UserError: on all ranks, if rank 0 cannot load the model.
    """
    from transformers import AutoModelForCausalLM

    full_model, packed = _load_on_rank_0(spec, path, strategy)
    config, trusted = load_config(spec, path), spec.trust_remote_code
    with torch.device("meta"):  # takes no memory
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted).eval()
    prepare(model)
    loss = PerSampleLoss(model, packed)
    shard = partial(
        fully_shard,
        mesh=strategy.mesh(),
        reshard_after_forward=strategy.reshard_after_forward,
        offload_policy=CPUOffloadPolicy() if strategy.cpu_offload else OffloadPolicy(),
    )
    in_bfloat16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(model):
        if precision == "bf16-mixed":
            if norms := norms_of(layer):
                shard(norms)
            shard(layer, mp_policy=in_bfloat16)
        else:
            shard(layer)
    # The backward pass starts in the root module, and recording passes do not change weights: it stays gathered.
    shard(loss, reshard_after_forward=False)
    _fill(model, full_model, strategy)
    return loss


def _load_on_rank_0(spec: ModelSpec, path: str, strategy: ShardedStrategy) -> tuple[Any, bool | None]:
    """Load and check the full model as stored on rank 0; returns it (None on other ranks), and whether it uses packs.

    Tensors that need no conversion are memory-mapped, so that the system can drop and reread their pages.

    Raises:
        UserError: on all ranks, if rank 0 cannot load the model.
    """
    full_model, packed, failure = None, None, None
    if strategy.is_global_zero:
        try:
            full_model = load_model(spec, path, stored_dtype(spec, path))
            loss = PerSampleLoss(full_model, packed=False if spec.recipe.dropout else None)
            check_head(loss)
            packed = loss.attention is not None
            decoder_layers(full_model)
        except Exception as error:
            failure = error
    problem, packed = strategy.broadcast((None if failure is None else first_line(failure), packed))
    if failure is not None:
        raise failure
    if problem is not None:
        raise ReportedByMainProcess(path, problem=problem)
    return full_model, packed


def _fill(model: Any, full_model: Any, strategy: ShardedStrategy) -> None:
    """Copy the values of rank 0's full model to the slices and buffers of all ranks."""
    model.to_empty(device=torch.device("cpu") if strategy.cpu_offload else strategy.root_device)
    set_model_state_dict(
        model,
        full_model.state_dict() if full_model is not None else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    )
    # Values such as rotary frequencies and Gemma's embedding scale are not in the file; transformers computes them.
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()
    model.tie_weights()
    if full_model is not None and hasattr(full_model, "generation_config"):
        model.generation_config = full_model.generation_config
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), "a tensor has no memory"
