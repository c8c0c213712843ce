"""rds: examples of the user's task take turns to pick their nearest row.

N rows, M eligible rows, n rows to pick, Q examples, D dimensions, B rows of a tile, k rows kept per example,
K keys to choose them from

Similarities are computed in tiles of rows, and only the k nearest rows of every example are kept. In addition to the
vectors, this needs memory for about 2 KEPT keys of 8 bytes and a few tiles.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lpsel.scoring.table import ScoreTable
from lpsel.selection.rules import Ranking, Rule

TILE_BYTES = 2**22  # of similarities computed at once
KEPT = 2**22  # rows kept for all examples together; examples that share nearest rows need more passes
GRID = 2**20  # steps per unit of similarity; rows within one step are tied, and a step exceeds float32's error


@partial(Rule, picks_rows=True, uses_query=True)
def rds(table: ScoreTable, *, seed: int) -> Ranking:
    """Pick the rows nearest to examples of the user's task: examples take turns to pick their nearest remaining row.

    Ivison, Zhang, Brahman, Koh, Dasigi 2025 (RDS+), arXiv 2503.01807: cosine similarity of position-weighted means of a
    model's last hidden states. The score of a row is its similarity to the nearest example.
    """
    assert table.vectors is not None
    assert table.query_vectors is not None
    unit_QD = _unit(table.query_vectors)
    tile_rows = _tile_rows(unit_QD)
    score_N = np.empty(len(table))
    for start in range(0, len(table), tile_rows):
        tile_BD = table.vectors[start : start + tile_rows]
        norm_B = np.linalg.norm(tile_BD.astype(np.float64), axis=1)  # in float32, many different rows would tie
        norm_B[norm_B == 0] = 1
        score_N[start : start + tile_rows] = (unit_QD @ tile_BD.T).max(axis=0) / norm_B
    return Ranking(score_N, descending=True, pick=partial(round_robin, unit_QD, table.vectors))


def round_robin(
    unit_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], rows_M: NDArray[np.int64], n: int, before: int = 0
) -> NDArray[np.int64]:
    """Let examples take turns to pick their nearest remaining row; returns n positions in order of choice, (n,).

    Equally near rows are picked in the order of `rows_M`. Once all k nearest rows of an example are picked, the
    remaining rows are searched again. Turns continue after those of the `before` rows picked from other parts of the
    data, so that all examples pick equally many rows.
    """
    n_examples = len(unit_QD)
    picked = np.empty(n, np.int64)
    turn = 0
    remaining = rows_M
    while turn < n:
        k = min(n - turn, max(KEPT // n_examples, 1))
        nearest_Qk = _nearest(unit_QD, vectors_ND, remaining, k)
        taken = np.zeros(len(remaining), np.bool_)
        n_passed = [0] * n_examples  # nearest rows of each example that are known to be taken
        while turn < n:
            example = (before + turn) % n_examples
            nearest_k, next_k = nearest_Qk[example], n_passed[example]
            while next_k < k and taken[nearest_k[next_k]]:
                next_k += 1
            n_passed[example] = next_k
            if next_k == k:
                break
            row = nearest_k[next_k]
            taken[row] = True
            picked[turn] = remaining[row]
            turn += 1
        remaining = remaining[~taken]
    return picked


def _nearest(
    unit_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], rows_M: NDArray[np.int64], k: int
) -> list[NDArray[np.uint32]]:
    """Find the k nearest rows of every example, nearest first, as positions in `rows_M`.

    A key holds the distance in steps of GRID in its upper 32 bits and the position in its lower 32 bits, so the k
    smallest keys are the nearest rows. The keys of an example are reduced to its k smallest whenever there are 2 k of
    them; from then on, only rows at least as similar as the last one are added.
    """
    n_examples, tile_rows = len(unit_QD), _tile_rows(unit_QD)
    keys_QK = np.empty((n_examples, 2 * k + tile_rows), np.uint64)
    filled_Q = np.zeros(n_examples, np.int64)  # number of keys of each example
    threshold_Q = np.full(n_examples, -np.inf, np.float32)  # smallest similarity of a row that can be among the k
    order_M = np.argsort(rows_M)  # read vectors in memory order
    for start in range(0, len(rows_M), tile_rows):
        position_B = order_M[start : start + tile_rows]
        similarity_QB = unit_QD @ _unit(vectors_ND[rows_M[position_B]]).T
        near = np.flatnonzero(similarity_QB >= threshold_Q[:, None])
        example, column = np.divmod(near, len(position_B))  # sorted by example
        steps = np.rint((1 - similarity_QB.ravel()[near]).clip(min=0) * GRID).astype(np.uint64)
        count_Q = np.bincount(example, minlength=n_examples)
        rank_in_example = np.arange(len(example)) - (np.cumsum(count_Q) - count_Q)[example]
        keys = steps << np.uint64(32) | position_B[column].astype(np.uint64)
        keys_QK[example, filled_Q[example] + rank_in_example] = keys
        filled_Q += count_Q
        for q in np.flatnonzero(filled_Q >= 2 * k):
            keys_K = keys_QK[q, : filled_Q[q]]
            keys_K.partition(k - 1)
            filled_Q[q] = k
            threshold_Q[q] = 1 - ((keys_K[k - 1] >> np.uint64(32)) + np.uint64(1)) / GRID
    smallest = (np.sort(keys_K[:filled])[:k] for keys_K, filled in zip(keys_QK, filled_Q, strict=True))
    return [keys_k.astype(np.uint32) for keys_k in smallest]  # the lower 32 bits


def _tile_rows(unit_QD: NDArray[np.float32]) -> int:
    """Number of rows in a tile, B."""
    return max(TILE_BYTES // (4 * max(unit_QD.shape)), 1)


def _unit(vectors_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize vectors to length 1; zero vectors stay zero, and vectors that are not finite become NaN."""
    norm_M1 = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    norm_M1[norm_M1 == 0] = 1
    with np.errstate(invalid="ignore"):
        return np.divide(vectors_MD, norm_M1, out=np.empty_like(vectors_MD))
