"""Packs: rows concatenated into one sequence without padding, in which shared prefixes occur only once.

A pack is a sequence of T tokens: first the prefixes that its rows share, then the rest of every row. A row's tokens
attend only to its prefix and to their own predecessors in the row (`lpsel.model.attention`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpsel.data.batching import Rows
from lpsel.data.shared_prefixes import Prefixes
from lpsel.data.tokens import Tokens

# B rows in a pack, T tokens, N supervised tokens, S segments, K keys of all segments


class Segment(NamedTuple):
    """Tokens `start` to `stop` of a pack, which also attend to tokens `prefix_start` to `prefix_stop`."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def prefix_length(self) -> int:
        return self.prefix_stop - self.prefix_start


@dataclass(frozen=True)
class Varlen:
    """The segments of a pack, in order, as arguments of variable-length attention kernels."""

    seen_K: Tensor  # positions in the pack of the keys of every segment, prefix first, int64
    query_ends_S1: Tensor  # cumulative numbers of queries, and below of keys, starting with 0, int32
    key_ends_S1: Tensor
    longest_query: int  # maximum number of queries, and below of keys, in a segment
    longest_key: int


@dataclass(frozen=True)
class MicroBatch:
    """A pack of rows, the input of one forward pass."""

    input_ids_T: Tensor  # token ids, int64
    positions_T: Tensor  # position of each token in its row
    predicts_N: Tensor  # positions in the pack whose hidden states predict the supervised tokens
    labels_N: Tensor  # ids of the supervised tokens
    row_N: Tensor  # row of each supervised token, 0 to B - 1
    supervised_B: Tensor  # number of supervised tokens of each row
    index_B: Tensor  # row numbers in the dataset, -1 for the placeholder of an empty pack; stays on the host
    shared: tuple[Segment, ...]  # shared prefixes
    rows: tuple[Segment, ...]  # the B rows, without shared prefixes
    tokens: int  # total length of the rows, including prefixes
    varlen: Varlen | None = None  # segments for variable-length attention kernels on GPUs
    weight_N: Tensor | None = None  # weight of each supervised token in the loss of a step; None for equal weights

    def to(self, device: torch.device) -> "MicroBatch":
        moved = _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, index_B=self.index_B)

    def pin_memory(self) -> "MicroBatch":
        return replace(_map_tensors(self, Tensor.pin_memory), index_B=self.index_B)


class OptimizerStep(NamedTuple):
    """This rank's part of a global batch; a tuple, so that PyTorch and Lightning pin and move its contents."""

    micro_batches: list[MicroBatch]  # as many on every rank, at least one; empty if completed before resuming
    divisor: int  # the loss is the weighted sum of NLLs over all ranks and micro-batches, divided by this


def _map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, Varlen):
            changed[field.name] = _map_tensors(value, function)
    return replace(batch, **changed)


def collate(tokens: Tokens, rows: Rows, prefixes: Prefixes | None = None, *, varlen: bool = False) -> MicroBatch:
    """Pack `rows` of `tokens`; without rows, return a placeholder of two tokens without labels.

    Args:
        prefixes: prefixes to share; None for none.
        varlen: whether to set `MicroBatch.varlen`.
    """
    if len(rows) == 0:
        layout = _Layout([np.zeros(2, dtype=np.int32)], [np.zeros(2, dtype=bool)], [], [Segment(0, 2)])
        rows, total_length = np.array([-1]), 0
    else:
        layout = _lay_out(tokens, rows, prefixes)
        total_length = int(tokens.lengths[rows].sum(dtype=np.int64))
    segments = [*layout.shared, *layout.rows]
    input_ids_T = np.concatenate(layout.ids)
    positions_T = np.concatenate([segment.prefix_length + np.arange(segment.length) for segment in segments])
    labels, predicts = [], []  # positions in the pack
    for segment, supervised in zip(layout.rows, layout.supervised, strict=True):
        label = np.flatnonzero(supervised)
        labels.append(segment.start + label)
        # The last token of the prefix predicts the first token after it.
        predicts.append(np.where(label > 0, segment.start + label - 1, segment.prefix_stop - 1))
    supervised_B = np.array([len(positions) for positions in labels])
    return MicroBatch(
        input_ids_T=torch.from_numpy(input_ids_T.astype(np.int64)),
        positions_T=torch.from_numpy(positions_T),
        predicts_N=torch.from_numpy(np.concatenate(predicts)),
        labels_N=torch.from_numpy(input_ids_T[np.concatenate(labels)].astype(np.int64)),
        row_N=torch.from_numpy(np.repeat(np.arange(len(rows)), supervised_B)),
        supervised_B=torch.from_numpy(supervised_B),
        index_B=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        shared=tuple(layout.shared),
        rows=tuple(layout.rows),
        tokens=total_length,
        varlen=varlen_of(segments) if varlen else None,
    )


class _Layout(NamedTuple):
    """The segments of a pack, and their contents."""

    ids: list[NDArray[np.int32]]  # token ids of every segment, shared prefixes first
    supervised: list[NDArray[np.bool_]]  # which tokens of each row's segment are labels
    shared: list[Segment]
    rows: list[Segment]


def _lay_out(tokens: Tokens, rows: Rows, prefixes: Prefixes | None) -> _Layout:
    """Lay out the prefixes that the rows share, then the rest of every row."""
    layout = _Layout([], [], [], [])
    groups = prefixes.group_N[rows] if prefixes else np.zeros(len(rows), dtype=np.int16)
    prefix_of_group = {0: Segment(0, 0)}
    end = 0
    for group in np.unique(groups[groups > 0]).tolist():
        assert prefixes is not None
        ids = prefixes.ids[group]
        prefix_of_group[group] = Segment(end, end + len(ids))
        layout.shared.append(prefix_of_group[group])
        layout.ids.append(ids)
        end += len(ids)
    for i, group in zip(rows.tolist(), groups.tolist(), strict=True):
        prefix = prefix_of_group[group]
        ids = tokens.input_ids(i)[prefix.length :]
        layout.rows.append(Segment(end, end + len(ids), prefix.start, prefix.stop))
        layout.ids.append(ids)
        layout.supervised.append(tokens.supervised(i)[prefix.length :])
        end += len(ids)
    return layout


def varlen_of(segments: list[Segment]) -> Varlen:
    """Convert the segments of a pack, in order, for variable-length attention kernels."""
    queries = np.array([segment.length for segment in segments])
    keys = queries + np.array([segment.prefix_length for segment in segments])
    seen = []
    for segment in segments:
        seen.append(np.arange(segment.prefix_start, segment.prefix_stop))
        seen.append(np.arange(segment.start, segment.stop))
    return Varlen(
        seen_K=torch.from_numpy(np.concatenate(seen)),
        query_ends_S1=torch.from_numpy(np.cumulative_sum(queries, dtype=np.int32, include_initial=True)),
        key_ends_S1=torch.from_numpy(np.cumulative_sum(keys, dtype=np.int32, include_initial=True)),
        longest_query=int(queries.max()),
        longest_key=int(keys.max()),
    )
