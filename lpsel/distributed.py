"""What a process knows of the others that run the same command, before and after Lightning connects them.

Every rank runs the whole command. Ranks other than the main one write no results; what they need they compute
themselves from the shared cache.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

T = TypeVar("T")


def rank() -> int:
    """This process's rank, by torchrun's, SLURM's or Lightning's word; 0 where it runs alone.

    Where Lightning starts a node's processes, a rank on another node than the first is only known not to be 0.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", "0")) + int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this process is the one that prints, tracks and writes results."""
    return rank() == 0


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def started_together() -> bool:
    """Whether torchrun or srun started all ranks at once; those that Lightning starts come after the main process."""
    return started_by_torchrun() or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def agree(decide: Callable[[], T]) -> T:
    """What `decide` returns in the main process, on every rank; it may wait there for hours, for another run's lock.

    Ranks that start together could read a changing cache differently. Ranks that Lightning starts need no agreement,
    and call `decide` themselves: they begin when the main process has already decided to train.
    """
    if not started_together():
        return decide()
    import torch
    import torch.distributed as dist

    _connect()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    box = [decide() if is_main_process() else None]
    dist.broadcast_object_list(box, src=0, group=patient, device=torch.device("cpu"))
    dist.destroy_process_group(patient)
    return cast(T, box[0])


def _connect() -> None:
    """Make the process group that Lightning then uses."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if started_by_torchrun():
        dist.init_process_group(backend)
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment()
    dist.init_process_group(
        backend,
        init_method=f"tcp://{slurm.main_address}:{slurm.main_port}",
        rank=slurm.global_rank(),
        world_size=slurm.world_size(),
    )
