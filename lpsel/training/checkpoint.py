"""Save and load training checkpoints without pickle: trained weights, optimizer states and progress.

    step-00000120/
      rank00000.safetensors   this rank's rows of every tensor
      rank00000.json          for each tensor, the first row and the full shape; the SHA-256 of the file above
      state.json              progress, learning-rate schedule, state of the callbacks
      checkpoint.json         the SHA-256 of state.json and of every rank*.json; written last

Frozen weights are not saved. Each rank writes its own slices and reads the slices it needs, so training can resume on a
different number of ranks, sharded or not.
"""

import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lpsel.errors import ReportedByMainProcess, UserError, first_line
from lpsel.integrity import check_files, check_format, seal
from lpsel.storage import read_json, sync, write_json

log = logging.getLogger(__name__)

FORMAT = 2
MANIFEST, STATE, SLICES = "checkpoint.json", "state.json", "rank{:05d}.json"
WEIGHT = "weight"
CHECKPOINTS_KEPT = 2  # the newest, and the previous one in case the newest is damaged


class Piece(NamedTuple):
    """The part of a tensor stored in one file: rows from `first` on, of a full tensor with shape `shape`."""

    file: Path
    name: str
    first: int
    shape: list[int]


class Checkpoints:
    """Checkpoints of one training run in a folder that all ranks can access. All ranks call its methods together.

    The weights of a sharded model must be slices (`lpsel.model.fsdp.reshard`).
    """

    def __init__(self, folder: Path, strategy: Any) -> None:
        self.folder, self.strategy = folder, strategy
        self.rank, self.world = strategy.global_rank, strategy.world_size
        self.intact: Path | None = None  # the newest checkpoint that was loaded or saved

    def save(self, step: int, model: Any, optimizer: Any | None, progress: dict[str, Any]) -> None:
        """Write a checkpoint, with `progress` as JSON, after deleting all earlier ones except the newest intact one.

        Args:
            optimizer: None after the last step, when only the weights are needed.

        Raises:
            UserError: the checkpoint cannot be written; the newest earlier one remains.
        """
        folder = self.folder / f"step-{step:08d}"
        if self.rank == 0:
            complete = self._complete()
            kept = self.intact if self.intact in complete else next(iter(complete), None)
            for old in complete:
                if old != kept:
                    shutil.rmtree(old)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.strategy.barrier("checkpoint folder created")
        numbers, tensors = _state(model, optimizer)
        writers = max(map(_shards, tensors.values()))  # only the first copy of a replicated model
        names = [SLICES.format(rank) for rank in range(writers)]

        def write_slices() -> None:
            if self.rank < writers:
                _write_slices(folder, self.rank, tensors)

        def finish() -> None:
            if self.rank == 0:
                write_json(folder / STATE, {"optimizer": numbers, **progress})
                seal(folder / MANIFEST, [STATE, *names], {"format": FORMAT})

        self._write_together(folder, write_slices)
        self._write_together(folder, finish)
        self.intact = folder

    @staticmethod
    def size(model: Any, optimizer: Any) -> int:
        """Return the size of this rank's part of a checkpoint in bytes."""
        _, tensors = _state(model, optimizer)
        return sum(_local(tensor).nbytes for tensor in tensors.values())

    def load(self, model: Any, optimizer: Any) -> dict[str, Any] | None:
        """Restore model and optimizer from the newest intact checkpoint; return its `progress`, or None without one."""
        for folder in self.strategy.broadcast(self._complete()):
            loaded, problem = None, "on another rank"
            try:
                loaded = _open(folder, self.rank, self.world)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                problem = first_line(error)
            if self.strategy.reduce_boolean_decision(loaded is not None):
                assert loaded is not None
                state, pieces = loaded
                _restore(model, optimizer, pieces, state["optimizer"])
                self.intact = folder
                return state
            log.warning("Checkpoint %s is damaged (%s) and is not used", folder, problem)
        return None

    def _complete(self) -> list[Path]:
        """List the checkpoints with a manifest, newest first."""
        return sorted((file.parent for file in self.folder.glob(f"step-*/{MANIFEST}")), reverse=True)

    def _write_together(self, folder: Path, write: Callable[[], None]) -> None:
        """Call `write` on all ranks; if it fails on any rank, all ranks raise."""
        failure = None
        try:
            write()
        except (OSError, SafetensorError) as error:
            failure = error
        if self.strategy.reduce_boolean_decision(failure is None):
            return
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if failure is None:
            raise ReportedByMainProcess(folder, problem="another rank could not write its part of the checkpoint")
        hint = "free some disk space and run the same command again, which resumes from the previous checkpoint"
        raise UserError(folder, None, f"the checkpoint cannot be written ({first_line(failure)})", hint) from failure


def _trained(model: Any) -> dict[str, Any]:
    """Return the trained weights by name; sharded weights are DTensors with this rank's slice."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _state(model: Any, optimizer: Any | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the optimizer's numbers and all tensors, keyed by "KEY WEIGHT"; without an optimizer, only the weights."""
    numbers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, weight in _trained(model).items():
        tensors[f"{WEIGHT} {name}"] = weight.detach()
        state = optimizer.state.get(weight, {}) if optimizer else {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{key} {name}"] = value
            else:
                numbers[f"{key} {name}"] = value
    return numbers, tensors


def _local(tensor: Any) -> Tensor:
    """Return a tensor, or this rank's slice if it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shards(tensor: Any) -> int:
    """Return the number of ranks that share one copy of a tensor: the last dimension of its mesh."""
    return tensor.device_mesh.shape[-1] if isinstance(tensor, DTensor) else 1


def _slice_of(tensor: Any) -> tuple[int, int]:
    """Return the first row of this rank's slice and the row after its last; rows are split as by `torch.chunk`."""
    rows = tensor.shape[0] if tensor.dim() else 0
    if not isinstance(tensor, DTensor):
        return 0, rows
    mesh = tensor.device_mesh
    rows_per_rank = math.ceil(rows / _shards(tensor))
    first = min(rows_per_rank * mesh.get_local_rank(mesh.ndim - 1), rows)
    return first, min(first + rows_per_rank, rows)


def _write_slices(folder: Path, rank: int, tensors: dict[str, Any]) -> None:
    """Write a rank's slices of sharded tensors and, on rank 0, the other tensors; then their description."""
    slices: dict[str, Tensor] = {}
    positions, storages = {}, set()
    for name, value in tensors.items():
        if isinstance(value, DTensor) or rank == 0:
            part = _local(value).cpu().contiguous()
            storage = part.untyped_storage().data_ptr()
            # safetensors rejects shared memory, but the optimizer states of bitsandbytes share a codebook.
            slices[name] = part.clone() if storage in storages else part
            storages.add(storage)
            first, _ = _slice_of(value)
            positions[name] = {"first": first, "shape": list(value.shape)}
    description = folder / SLICES.format(rank)
    path = description.with_suffix(".safetensors")
    save_file(slices, path)
    sync(path)
    seal(description, [path.name], {"format": FORMAT, "tensors": positions})


def _open(folder: Path, rank: int, world: int) -> tuple[dict[str, Any], dict[str, list[Piece]]]:
    """Read the state, and the pieces of every tensor in order. The work of hashing files is split across ranks."""
    hashes = check_format(folder / MANIFEST, FORMAT)["sha256"]
    check_files(folder, hashes)
    pieces = defaultdict(list)
    for i, name in enumerate(sorted(hashes.keys() - {STATE})):
        description = read_json(folder / name)
        if i % world == rank:
            check_files(folder, description["sha256"])
        file = (folder / name).with_suffix(".safetensors")
        for tensor, position in description["tensors"].items():
            pieces[tensor].append(Piece(file, tensor, position["first"], position["shape"]))
    return read_json(folder / STATE), pieces


def _restore(model: Any, optimizer: Any, pieces: dict[str, list[Piece]], numbers: dict[str, Any]) -> None:
    """Load the weights and the optimizer's states; `pieces` and `numbers` are keyed by "KEY WEIGHT", see `_state`."""
    saved: dict[str, dict[str, Any]] = defaultdict(dict)  # by weight and key
    for full_name, value in (*pieces.items(), *numbers.items()):
        key, _, name = full_name.partition(" ")
        saved[name][key] = value
    # Only these optimizers keep the step count on the device.
    on_device = bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    with torch.no_grad():
        for name, weight in _trained(model).items():
            state = saved[name]
            _fill(weight, state.pop(WEIGHT))
            for key, value in state.items():
                state[key] = _optimizer_state(weight, value, on_device) if isinstance(value, list) else value
            if state:
                optimizer.state[weight] = state


def _optimizer_state(weight: Any, pieces: list[Piece], on_device: bool) -> Tensor:
    """Load a tensor of the optimizer's state: sharded like the weight if the shapes are equal, otherwise in full."""
    shape = pieces[0].shape
    if shape != list(weight.shape):
        value = _rows(pieces, 0, shape[0] if shape else 0)
        return value.to(weight.device) if shape or on_device else value
    value = torch.empty_like(weight, dtype=_rows(pieces, 0, 0).dtype, requires_grad=False)
    _fill(value, pieces)
    return value


def _fill(tensor: Any, pieces: list[Piece]) -> None:
    """Copy saved values into a tensor, or into this rank's slice of it."""
    if pieces[0].shape != list(tensor.shape):
        raise ValueError(f"a tensor of shape {list(tensor.shape)} was saved with shape {pieces[0].shape}")
    _local(tensor).copy_(_rows(pieces, *_slice_of(tensor)))


def _rows(pieces: list[Piece], first: int, stop: int) -> Tensor:
    """Load rows `first` to `stop` of a saved tensor, possibly none; scalar tensors are returned as they are."""
    parts: list[Tensor] = []
    for piece in pieces:
        with safe_open(piece.file, "pt") as file:
            if not piece.shape:
                return file.get_tensor(piece.name)
            saved = file.get_slice(piece.name)
            begin = max(first - piece.first, 0)
            end = min(stop - piece.first, saved.get_shape()[0])
            if begin < end:
                parts.append(saved[begin:end])
            elif first == stop and not parts:  # an empty tensor of the right dtype
                parts.append(saved[:0])
    return torch.cat(parts)
