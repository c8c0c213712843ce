"""Prefixes that many rows share, such as a template's preamble, and that are computed only once per pack."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpsel.data.tokens import Tokens

# N rows, R rows of a batch, W tokens at the beginning of a row
LONGEST = 256  # maximum tokens of a prefix
SHORTEST = 8  # minimum tokens; shorter prefixes save less than they cost
ROWS_PER_PACK = 16  # expected rows per pack: a prefix must save more tokens than it adds to every pack
SAMPLE = 4096  # rows to search for prefixes


@dataclass(frozen=True)
class Prefixes:
    """Shared prefixes, and the rows that begin with them."""

    ids: list[NDArray[np.int32]]  # token ids of every prefix; the first prefix is empty
    group_N: NDArray[np.int16]  # number of each row's prefix
    length_N: NDArray[np.int32]  # length of each row's prefix, which has no supervised token and is not the whole row


def find_prefixes(tokens: Tokens, max_tokens: int | None = None) -> Prefixes:
    """Find prefixes in a sample of the rows, then assign them to all rows that begin with them.

    Args:
        max_tokens: maximum total tokens of all prefixes; those that save the most tokens are kept. None for no limit.
    """
    step = max(1, len(tokens) // SAMPLE)
    sample = [heads[::step].copy() for heads, _ in _heads(tokens) if len(heads)]  # a view would keep the batch
    ids = [np.empty(0, dtype=np.int32)]
    if sample:
        ids += sorted(_shared(np.concatenate(sample)), key=len)
    prefixes = _assign(tokens, ids)
    if max_tokens is None or sum(map(len, ids)) <= max_tokens:
        return prefixes
    saved = np.bincount(prefixes.group_N, minlength=len(ids)) * [len(prefix) for prefix in ids]
    kept, total = [0], 0
    for group in (1 + np.argsort(-saved[1:], kind="stable")).tolist():
        if total + len(ids[group]) <= max_tokens:
            kept.append(group)
            total += len(ids[group])
    return _assign(tokens, [ids[group] for group in sorted(kept)])


def _assign(tokens: Tokens, ids: list[NDArray[np.int32]]) -> Prefixes:
    """Assign to each row the longest prefix that it begins with; `ids` is sorted by length."""
    group_N = np.zeros(len(tokens), dtype=np.int16)
    start = 0
    for heads_RW, free_R in _heads(tokens):
        group_R = group_N[start : start + len(heads_RW)]  # a view
        for group, prefix in enumerate(ids[1:], start=1):
            matches_R = (heads_RW[:, : len(prefix)] == prefix).all(axis=1)
            group_R[matches_R & (free_R >= len(prefix))] = group
        start += len(heads_RW)
    return Prefixes(ids, group_N, np.array([len(prefix) for prefix in ids], dtype=np.int32)[group_N])


def _heads(tokens: Tokens) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Yield, per batch of rows, their first tokens, padded with -1, and how many of these may belong to a prefix."""
    for batch in tokens.batches():
        lengths = np.diff(batch.id_offsets)
        column_W = np.arange(LONGEST)
        inside_RW = column_W < lengths[:, None]
        index_RW = np.where(inside_RW, batch.id_offsets[:-1, None] + column_W, 0)
        heads_RW = np.where(inside_RW, batch.ids[index_RW] if len(batch.ids) else 0, -1).astype(np.int32)
        free_R = lengths.astype(np.int64) - 1
        labeled_R = np.diff(batch.span_offsets) > 0
        first_label = batch.spans[batch.span_offsets[:-1][labeled_R]]
        free_R[labeled_R] = np.minimum(free_R[labeled_R], first_label)
        yield heads_RW, free_R


def _shared(heads_RW: NDArray[np.int32], total: int | None = None, parent: int = 0) -> list[NDArray[np.int32]]:
    """Return the prefixes worth sharing among rows that already share a prefix of `parent` tokens.

    Args:
        total: number of rows in the sample; by default, these are all.
    """
    total = total or len(heads_RW)
    differs_W = (heads_RW != heads_RW[0]).any(axis=0)
    common = int(differs_W.argmax()) if differs_W.any() else heads_RW.shape[1]
    common = min(common, int((heads_RW[0] >= 0).sum()))  # without padding
    rows_per_pack = ROWS_PER_PACK * len(heads_RW) / total
    prefixes = []
    if common >= SHORTEST and rows_per_pack * (common - parent) > common:
        prefixes, parent = [heads_RW[0, :common].copy()], common
    if common < heads_RW.shape[1]:
        next_tokens, counts = np.unique(heads_RW[:, common], return_counts=True)
        for token, count in zip(next_tokens, counts, strict=True):
            if token >= 0 and ROWS_PER_PACK * count / total >= 2:
                prefixes += _shared(heads_RW[heads_RW[:, common] == token], total, parent)
    return prefixes
