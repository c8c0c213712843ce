"""Packs: rows concatenated into one sequence without padding, in which shared prefixes occur only once.

A pack is a sequence of T tokens: first the prefixes that its rows share, then the rest of every row. A row's tokens
attend only to its prefix and to their own predecessors in the row (`lpsel.model.attention`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
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
        moved = _each(self, lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, index_B=self.index_B)

    def pin_memory(self) -> "MicroBatch":
        return replace(_each(self, Tensor.pin_memory), index_B=self.index_B)


class OptimizerStep(NamedTuple):
    """This rank's part of a global batch; a tuple, so that PyTorch and Lightning pin and move its contents."""

    micro_batches: list[MicroBatch]  # as many on every rank, at least one; empty if completed before resuming
    divisor: int  # the loss is the weighted sum of NLLs over all ranks and micro-batches, divided by this


def _each(holder: Any, change: Callable[[Tensor], Tensor]) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, Varlen):
            changed[field.name] = _each(value, change)
    return replace(holder, **changed)


def collate(tokens: Tokens, rows: Rows, prefixes: Prefixes | None = None, *, varlen: bool = False) -> MicroBatch:
    """Pack `rows` of `tokens`; without rows, return a placeholder of two tokens without labels.

    Args:
        prefixes: prefixes to share; None for none.
        varlen: whether to set `MicroBatch.varlen`.
    """
    if len(rows) == 0:
        pieces, labels = [np.zeros(2, dtype=np.int32)], [np.zeros(2, dtype=bool)]
        shared, segments = list[Segment](), [Segment(0, 2)]
        rows, fed = np.array([-1]), 0
    else:
        pieces, labels, shared, segments = _lay_out(tokens, rows, prefixes)
        fed = int(tokens.lengths[rows].sum(dtype=np.int64))
    input_ids_T = np.concatenate(pieces)
    position_T = np.concatenate(
        [np.arange(s.stop - s.start) + (s.prefix_stop - s.prefix_start) for s in (*shared, *segments)]
    )
    within = [np.flatnonzero(mask) for mask in labels]
    label_N = np.concatenate([s.start + inside for s, inside in zip(segments, within, strict=True)])
    predicts = [
        np.where(inside > 0, s.start + inside - 1, s.prefix_stop - 1)
        for s, inside in zip(segments, within, strict=True)
    ]
    supervised_B = np.array([len(inside) for inside in within])
    return MicroBatch(
        input_ids_T=torch.from_numpy(input_ids_T.astype(np.int64)),
        positions_T=torch.from_numpy(position_T),
        predicts_N=torch.from_numpy(np.concatenate(predicts)),
        labels_N=torch.from_numpy(input_ids_T[label_N].astype(np.int64)),
        row_N=torch.from_numpy(np.repeat(np.arange(len(rows)), supervised_B)),
        supervised_B=torch.from_numpy(supervised_B),
        index_B=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        shared=tuple(shared),
        rows=tuple(segments),
        tokens=fed,
        varlen=varlen_of([*shared, *segments]) if varlen else None,
    )


def _lay_out(tokens: Tokens, rows: Rows, prefixes: Prefixes | None) -> tuple[list, list, list, list]:
    pieces, labels, shared, segments = [], [], [], []
    groups = prefixes.group_N[rows] if prefixes else np.zeros(len(rows), dtype=np.int16)
    segment_of = {0: Segment(0, 0)}
    end = 0
    for group in np.unique(groups[groups > 0]).tolist():
        assert prefixes is not None
        ids = prefixes.ids[group]
        segment_of[group] = Segment(end, end + len(ids))
        shared.append(segment_of[group])
        pieces.append(ids)
        end += len(ids)
    for i, group in zip(rows.tolist(), groups.tolist(), strict=True):
        prefix = segment_of[group]
        skipped = prefix.stop - prefix.start
        ids = tokens.input_ids(i)[skipped:]
        segments.append(Segment(end, end + len(ids), prefix.start, prefix.stop))
        pieces.append(ids)
        labels.append(tokens.supervised(i)[skipped:])
        end += len(ids)
    return pieces, labels, shared, segments


def varlen_of(segments: list[Segment]) -> Varlen:
    """Convert the segments of a pack, in order, for variable-length attention kernels."""
    queries = np.array([s.stop - s.start for s in segments])
    keys = queries + np.array([s.prefix_stop - s.prefix_start for s in segments])
    seen = [part for s in segments for part in (np.arange(s.prefix_start, s.prefix_stop), np.arange(s.start, s.stop))]
    return Varlen(
        seen_K=torch.from_numpy(np.concatenate(seen)),
        query_ends_S1=torch.from_numpy(np.cumulative_sum(queries, dtype=np.int32, include_initial=True)),
        key_ends_S1=torch.from_numpy(np.cumulative_sum(keys, dtype=np.int32, include_initial=True)),
        longest_query=int(queries.max()),
        longest_key=int(keys.max()),
    )
