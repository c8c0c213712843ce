"""Batches of rows within a token budget, balanced over ranks.

Pure functions of lengths. A plan is a list of row-index arrays. The plans of all ranks have the same number of entries,
because a different number of forward passes would cause a deadlock.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MICRO_BATCH = 4  # rows whose loss the released training averages at a time
Rows = NDArray[np.int64]
Split = Callable[[Rows, NDArray[np.int32], int], list[Rows]]  # `packed` or `padded`
NO_ROWS: Rows = np.empty(0, dtype=np.int64)


def padded(rows: Rows, lengths: NDArray[np.int32], budget: int) -> list[Rows]:
    """Split `rows` into batches of at most `budget` tokens, padding included.

    A row longer than the budget gets its own batch. The longest rows come first, so that running out of memory happens
    at the start.
    """
    rows = _longest_first(rows, lengths)
    batches, start = [], 0
    while start < len(rows):
        stop = start + max(1, budget // int(lengths[rows[start]]))
        batches.append(rows[start:stop])
        start = stop
    return batches


def packed(rows: Rows, lengths: NDArray[np.int32], budget: int) -> list[Rows]:
    """Split `rows` into packs of at most `budget` tokens, without padding; otherwise like `padded`."""
    rows = _longest_first(rows, lengths)
    ends = np.cumsum(lengths[rows], dtype=np.int64)
    packs, start = [], 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        packs.append(rows[start:stop])
        start = stop
    return packs


def _longest_first(rows: Rows, lengths: NDArray[np.int32]) -> Rows:
    return rows[np.lexsort((rows, -lengths[rows]))]


def recording_rounds(
    rows: Rows, lengths: NDArray[np.int32], budget: int, world: int, split: Split = packed
) -> list[list[Rows]]:
    """Split `rows` into batches and group them into rounds of one batch per rank, for one pass over the rows.

    Batches do not depend on the number of ranks, and those of a round have similar lengths. The last round is padded
    with copies of the shortest batch, which is harmless because records are stored by row.
    """
    batches = split(rows, lengths, budget)
    batches += batches[-1:] * (-len(batches) % world)
    return [batches[first : first + world] for first in range(0, len(batches), world)]


def token_weights(
    order: Rows, supervised_N: NDArray[np.int64], batch_size: int, reduction: str
) -> tuple[NDArray[np.float32] | None, list[int]]:
    """Compute the token weight of each row, (N,), and for each step the divisor of the weighted sum of token NLLs.

    Args:
        order: row numbers of an epoch, in steps of `batch_size`.
        supervised_N: number of supervised tokens of every row, at least 1 for rows in `order`.
        reduction: token, row or micro_batch, see `lpsel.model.spec.Recipe`. For token, the weights are None.
    """
    steps = np.split(order, np.arange(batch_size, len(order), batch_size))
    if reduction == "token":
        return None, [int(supervised_N[rows].sum()) for rows in steps]
    size = 1 if reduction == "row" else MICRO_BATCH
    weight_N = np.zeros(len(supervised_N), np.float32)
    for rows in steps:
        group_R = np.arange(len(rows)) // size
        weight_N[rows] = 1 / np.bincount(group_R, weights=supervised_N[rows])[group_R]
    return weight_N, [-(-len(rows) // size) for rows in steps]


def training_plan(
    order: Rows, lengths: NDArray[np.int32], batch_size: int, budget: int, rank: int, world: int, split: Split = packed
) -> list[list[Rows]]:
    """Return the micro-batches that this rank computes in every optimizer step.

    The global batch of a step is the next `batch_size` rows of `order` (the last may be smaller). Its rows are sorted
    by length and dealt to the ranks in alternating direction; each rank splits its rows within the token budget. Ranks
    with fewer micro-batches get empty ones.
    """
    steps = []
    for start in range(0, len(order), batch_size):
        rows = _longest_first(order[start : start + batch_size], lengths)
        position = np.arange(len(rows)) % (2 * world)
        rank_of_row = np.where(position < world, position, 2 * world - 1 - position)  # 0, 1, ..., 1, 0, 0, 1, ...
        micro_batches = [split(rows[rank_of_row == other], lengths, budget) for other in range(world)]
        empty = max(map(len, micro_batches)) - len(micro_batches[rank])
        steps.append(micro_batches[rank] + [NO_ROWS] * empty)
    return steps
