"""The state of a training on disk: weights, the optimiser's states, and how far it has come. No pickle.

    step-00000120/
      rank00000.safetensors   this rank's rows of every tensor
      rank00000.json          the first of these rows and the whole tensor's shape; the file's SHA-256
      checkpoint.json         the rest of the state, the SHA-256 of all rank*.json and of itself; written last

Only what is trained is kept. Each rank writes its own slices and reads those it needs, so that nothing is gathered, and
another number of ranks, sharded or not, can go on.
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lpsel.errors import ReportedByMainProcess, UserError, first_line
from lpsel.storage import digest, finite, read_json, sha256_of, write_json

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "checkpoint.json"
WEIGHT = "weight"
KEPT = 2  # checkpoints: the last, and the one before in case the last is damaged


class Piece(NamedTuple):
    """Rows of a tensor in a file: from row `first` on, of a tensor of this shape in all."""

    file: Path
    name: str
    first: int
    shape: list[int]


class Checkpoints:
    """The checkpoints of one training. All ranks call its methods together.

    Args:
        folder: of them all; every rank sees it.
        strategy: Lightning's, which connects the ranks.
    """

    def __init__(self, folder: Path, strategy: Any) -> None:
        self.folder, self.strategy = folder, strategy
        self.rank, self.world = strategy.global_rank, strategy.world_size

    def save(self, step: int, model: Any, optimizer: Any, rest: dict[str, Any]) -> None:
        """Write a checkpoint. Of those before it, one stays.

        Args:
            step: optimiser steps made so far.
            rest: what else goes on, JSON-like.

        Raises:
            UserError: it cannot be written; those before it stay.
        """
        folder = self.folder / f"step-{step:08d}"
        if self.rank == 0:
            for old in self._complete()[KEPT - 1 :]:
                shutil.rmtree(old)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.strategy.barrier("checkpoint begun")
        numbers, tensors = _state(model, optimizer)
        sharded = any(isinstance(value, DTensor) for value in tensors.values())
        names = [_name(rank) for rank in range(self.world if sharded else 1)]

        def finish() -> None:
            hashes = {f"{name}.json": sha256_of(folder / f"{name}.json") for name in names}
            state = finite({"format": FORMAT, "optimizer": numbers, **rest, "sha256": hashes})
            write_json(folder / MANIFEST, {"state": state, "digest": digest(state)})

        self._together(folder, lambda: _write_slices(folder, self.rank, tensors), sharded or self.rank == 0)
        self._together(folder, finish, self.rank == 0)

    def load(self, model: Any, optimizer: Any) -> dict[str, Any] | None:
        """Put the newest whole checkpoint into model and optimiser; its manifest, or None where there is none."""
        for folder in self.strategy.broadcast(self._complete()):
            found, problem = None, "says another rank"
            try:
                found = _open(folder, self.rank, self.world)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                problem = first_line(error)
            if self.strategy.reduce_boolean_decision(found is not None):
                assert found is not None
                manifest, pieces = found
                _restore(model, optimizer, pieces, manifest["optimizer"])
                return manifest
            log.warning("Checkpoint %s is damaged (%s): left aside", folder, problem)
        return None

    def _complete(self) -> list[Path]:
        """Checkpoints with a manifest, the newest first."""
        return sorted((file.parent for file in self.folder.glob(f"step-*/{MANIFEST}")), reverse=True)

    def _together(self, folder: Path, write: Callable[[], None], mine: bool) -> None:
        """Write on the ranks that have something to write; one that cannot ends all."""
        problem = None
        try:
            if mine:
                write()
        except (OSError, SafetensorError) as error:
            problem = error
        if self.strategy.reduce_boolean_decision(problem is None):
            return
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if problem is None:
            raise ReportedByMainProcess(f"{folder}: another rank cannot write its part")
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({first_line(problem)}); make room, and the same command goes "
            "on from the one before."
        ) from problem


def _name(rank: int) -> str:
    return f"rank{rank:05d}"


def _trained(model: Any) -> dict[str, Any]:
    """The weights that are trained, by name; of sharded ones every rank sees its slice."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what a forward pass may have left gathered
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _state(model: Any, optimizer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The optimiser's plain numbers, and all tensors, by "KEY WEIGHT"."""
    numbers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, weight in _trained(model).items():
        tensors[f"{WEIGHT} {name}"] = weight.detach()
        for key, value in optimizer.state.get(weight, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{key} {name}"] = value
    return numbers, tensors


def _slice_of(tensor: DTensor) -> tuple[int, int]:
    """The first row of this rank's slice and the row behind its last: rows are cut as `torch.chunk` does."""
    rows = tensor.shape[0]
    each = -(-rows // tensor.device_mesh.size())
    first = min(each * tensor.device_mesh.get_local_rank(), rows)
    return first, min(first + each, rows)


def _write_slices(folder: Path, rank: int, tensors: dict[str, Any]) -> None:
    own, where = {}, {}
    for name, value in tensors.items():
        sliced = isinstance(value, DTensor)
        if sliced or rank == 0:
            # A copy: bitsandbytes' states share their code book, and safetensors writes no memory twice.
            own[name] = (value.to_local() if sliced else value).to("cpu", copy=True).contiguous()
            where[name] = {"first": _slice_of(value)[0] if sliced else 0, "shape": list(value.shape)}
    path = folder / f"{_name(rank)}.safetensors"
    save_file(own, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    write_json(folder / f"{_name(rank)}.json", {"sha256": sha256_of(path), "tensors": where})


def _open(folder: Path, rank: int, world: int) -> tuple[dict[str, Any], dict[str, list[Piece]]]:
    """The manifest, and where every tensor's rows are, in order. Ranks share the work of hashing the files.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: something is not as it was written.
    """
    written = read_json(folder / MANIFEST)
    manifest = written["state"]
    if digest(manifest) != written["digest"]:
        raise ValueError(f"{MANIFEST} has changed")
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, not {FORMAT}")
    pieces = defaultdict(list)
    for i, (name, known) in enumerate(sorted(manifest["sha256"].items())):
        if sha256_of(folder / name) != known:
            raise ValueError(f"{name} has changed")
        described, file = read_json(folder / name), (folder / name).with_suffix(".safetensors")
        if i % world == rank and sha256_of(file) != described["sha256"]:
            raise ValueError(f"{file.name} has changed")
        for tensor, where in described["tensors"].items():
            pieces[tensor].append(Piece(file, tensor, where["first"], where["shape"]))
    return manifest, pieces


def _restore(model: Any, optimizer: Any, pieces: dict[str, list[Piece]], numbers: dict[str, Any]) -> None:
    keys: dict[str, list[str]] = defaultdict(list)
    for named in (*pieces, *numbers):
        key, _, name = named.partition(" ")
        keys[name].append(key)
    # Where PyTorch keeps the count of steps.
    on_device = bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    with torch.no_grad():
        for name, weight in _trained(model).items():
            _fill(weight, pieces[f"{WEIGHT} {name}"])
            state: dict[str, Any] = {}
            for key in keys[name]:
                named = f"{key} {name}"
                if named in numbers:
                    state[key] = numbers[named]
                elif key != WEIGHT:
                    state[key] = _state_of(weight, pieces[named], on_device)
            if state:
                optimizer.state[weight] = state


def _state_of(weight: Any, pieces: list[Piece], on_device: bool) -> Tensor:
    """A state of the optimiser: cut as the weight is where it has its shape, else whole."""
    shape = pieces[0].shape
    if shape != list(weight.shape):
        value = _rows(pieces, 0, shape[0] if shape else 0)
        return value.to(weight.device) if shape or on_device else value
    value = torch.empty_like(weight, dtype=_rows(pieces, 0, 0).dtype, requires_grad=False)
    _fill(value, pieces)
    return value


def _fill(tensor: Any, pieces: list[Piece]) -> None:
    """Give a tensor, or this rank's slice of it, its kept values."""
    if pieces[0].shape != list(tensor.shape):
        raise ValueError(f"a tensor of {list(tensor.shape)} was kept as one of {pieces[0].shape}")
    sliced = isinstance(tensor, DTensor)
    first, stop = _slice_of(tensor) if sliced else (0, tensor.shape[0] if tensor.dim() else 0)
    (tensor.to_local() if sliced else tensor).copy_(_rows(pieces, first, stop))


def _rows(pieces: list[Piece], first: int, stop: int) -> Tensor:
    """Rows `first` to `stop`, read from the files that hold them; of a tensor without dimensions all of it."""
    parts: list[Tensor] = []
    for piece in pieces:
        with safe_open(piece.file, "pt") as file:
            if not piece.shape:
                return file.get_tensor(piece.name)
            kept = file.get_slice(piece.name)
            begins, ends = piece.first, piece.first + kept.get_shape()[0]
            if max(first, begins) < min(stop, ends) or (first == stop and not parts):
                parts.append(kept[max(first - begins, 0) : max(min(stop, ends) - begins, 0)])
    return torch.cat(parts)
