"""What a process knows of the others that run the same command, before and after Lightning connects them.

Every rank runs the whole command. Ranks other than the main one write no results; what they need they compute
themselves from the shared cache.
"""

import os
from typing import TypeVar

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


def agree(value: T) -> T:
    """The main process's `value` on every rank.

    Under torchrun all ranks start together and could read a changing cache differently. Ranks that Lightning
    starts need no agreement: they begin when the main process has already decided to train.
    """
    if not started_by_torchrun():
        return value
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
