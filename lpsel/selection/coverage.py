"""Rules that pick rows greedily by their embeddings: each choice depends on the rows picked before.

N rows, M eligible rows, n rows to pick, D dimensions, B rows of a block

Time is O(M n D) for k_center and deita, and O(M^2 D) for facility_location; memory is at most KEPT_BYTES in addition
to the embeddings. Candidates are sorted by score, then by tie-breaking order (`budget.Ties`); equally good rows are
picked in this order. The private functions that end in `rows_M, n, _before` are a `rules.Pick` each.
"""

import heapq
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lpsel.scoring.table import ScoreTable
from lpsel.selection.rules import Ranking, Rule

BLOCK_BYTES = 2**26  # of similarities computed at once
KEPT_BYTES = 2**30  # of similarities kept in memory; above 16,384 rows, they are recomputed when needed
REFRESHED = 32  # bounds that lazy greedy updates at a time, in one matrix product


@partial(Rule, picks_rows=True)
def k_center(table: ScoreTable, *, seed: int) -> Ranking:
    """Greedy k-center: pick the row farthest from all picked rows (Sener, Savarese 2018, Algorithm 1).

    Starts from the row nearest to the mean embedding, since there is no labeled pool.
    """
    return Ranking(None, arbitrary=True, pick=partial(_farthest_first, _vectors(table)))


@partial(Rule, picks_rows=True)
def facility_location(table: ScoreTable, *, seed: int) -> Ranking:
    """Pick rows that represent all others: greedily maximize sum_i max_j max(0, cos(i, j)) over picked j.

    Lazy greedy (Minoux 1978): gains only decrease as rows are picked, so an old gain is an upper bound.
    """
    return Ranking(None, arbitrary=True, pick=partial(_most_representative, _vectors(table)))


@partial(Rule, picks_rows=True)
def deita(table: ScoreTable, *, seed: int, complexity: str, quality: str, threshold: float | None = None) -> Ranking:
    """Pick by complexity x quality, highest first, and skip rows similar to a picked row (Liu et al. 2024).

    A row is skipped if its cosine similarity to a picked row reaches the threshold (DEITA's Repr Filter, which uses
    0.9). If too few rows remain, skipped rows follow in the order of their score.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        score_N = table.columns[complexity] * table.columns[quality]
    vectors_ND = None if threshold is None else _vectors(table)
    pick = partial(_best_and_different, vectors_ND, threshold)
    return Ranking(score_N, descending=True, pick=pick)


def _vectors(table: ScoreTable) -> NDArray[np.float32]:
    assert table.vectors is not None, "SelectionSpec.needs_vectors"
    return table.vectors


def _farthest_first(
    vectors_ND: NDArray[np.float32], rows_M: NDArray[np.int64], n: int, _before: int
) -> NDArray[np.int64]:
    vectors_MD = vectors_ND[rows_M]
    square_M = np.einsum("md,md->m", vectors_MD, vectors_MD)

    def squared_distance_to(center_D: NDArray[np.float32]) -> NDArray[np.float32]:
        return square_M - 2 * (vectors_MD @ center_D) + center_D @ center_D

    picked = np.empty(n, np.int64)
    to_nearest_picked_M = np.full(len(rows_M), np.inf, np.float32)
    row = int(squared_distance_to(vectors_MD.mean(axis=0)).argmin())
    for turn in range(n):
        picked[turn] = row
        np.minimum(to_nearest_picked_M, squared_distance_to(vectors_MD[row]), out=to_nearest_picked_M)
        to_nearest_picked_M[row] = -np.inf  # picked; other rows with the same content can have distance 0
        row = int(to_nearest_picked_M.argmax())
    return rows_M[picked]


def _most_representative(
    vectors_ND: NDArray[np.float32], rows_M: NDArray[np.int64], n: int, _before: int
) -> NDArray[np.int64]:
    similarity = _Similarity(_unit(vectors_ND[rows_M]))
    covered_M = np.zeros(len(rows_M), np.float32)  # similarity of each row to its best representative
    # Bounds of gains, largest first: (-gain, row, number of rows that were picked when the gain was computed).
    bounds = [(-gain, row, 0) for row, gain in enumerate(similarity.sums().tolist())]
    heapq.heapify(bounds)
    picked: list[int] = []
    while len(picked) < n:
        _, row, n_picked = bounds[0]
        if n_picked == len(picked):  # an exact gain, and the largest bound
            heapq.heappop(bounds)
            picked.append(row)
            np.maximum(covered_M, similarity(np.array([row]))[0], out=covered_M)
            continue
        outdated: list[int] = []
        while bounds and len(outdated) < REFRESHED and bounds[0][2] < len(picked):
            _, row, _ = heapq.heappop(bounds)
            outdated.append(row)
        gain_BM = similarity(np.array(outdated)) - covered_M
        gain_B = np.maximum(gain_BM, 0, out=gain_BM).sum(axis=1, dtype=np.float64)
        for row, gain in zip(outdated, gain_B.tolist(), strict=True):
            heapq.heappush(bounds, (-gain, row, len(picked)))
    return rows_M[picked]


class _Similarity:
    """max(0, cosine) of a block of rows with all rows, (B, M): kept if it fits in KEPT_BYTES, else recomputed."""

    def __init__(self, unit_MD: NDArray[np.float32]) -> None:
        self.unit_MD = unit_MD
        self.kept_MM = self._compute(np.arange(len(unit_MD))) if 4 * len(unit_MD) ** 2 <= KEPT_BYTES else None

    def __call__(self, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._compute(rows_B) if self.kept_MM is None else self.kept_MM[rows_B]

    def sums(self) -> NDArray[np.float64]:
        """Sum of each row's similarities to all rows, (M,), computed in blocks."""
        m = len(self.unit_MD)
        block_rows = max(BLOCK_BYTES // (4 * m), 1)
        blocks = [np.arange(start, min(start + block_rows, m)) for start in range(0, m, block_rows)]
        return np.concatenate([self(rows_B).sum(axis=1, dtype=np.float64) for rows_B in blocks])

    def _compute(self, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        cosine_BM = self.unit_MD[rows_B] @ self.unit_MD.T
        return np.maximum(cosine_BM, 0, out=cosine_BM)


def _best_and_different(
    vectors_ND: NDArray[np.float32] | None, threshold: float | None, rows_M: NDArray[np.int64], n: int, _before: int
) -> NDArray[np.int64]:
    if threshold is None or vectors_ND is None:
        return rows_M[:n]
    unit_MD = _unit(vectors_ND[rows_M])
    picked: list[int] = []
    skipped: list[int] = []
    picked_nD = np.empty((n, unit_MD.shape[1]), np.float32)
    for row, vector_D in enumerate(unit_MD):
        if len(picked) == n:
            break
        if picked and (picked_nD[: len(picked)] @ vector_D).max() >= threshold:
            skipped.append(row)
        else:
            picked_nD[len(picked)] = vector_D
            picked.append(row)
    return rows_M[(picked + skipped)[:n]]


def _unit(vectors_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize vectors to length 1; zero vectors stay zero, and vectors with a NaN become zero."""
    norm_M1 = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    return np.divide(vectors_MD, norm_M1, out=np.zeros_like(vectors_MD), where=norm_M1 > 0)
