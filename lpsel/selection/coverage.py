"""Rules that pick rows one after another, each with a view to those picked before: by embeddings.

N rows, M rows that can be chosen, n rows to pick, D dimensions, B rows of a block

Time is of the order of M x n x D for k_center and deita, and M x M x D for facility_location; memory is at
most KEPT_BYTES above the embeddings. Ties go to the row that stands first.
"""

import heapq
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lpsel.scoring.table import ScoreTable
from lpsel.selection.rules import Greedy

BLOCK_BYTES = 2**26  # of similarities that are computed at once
KEPT_BYTES = 2**30  # of all similarities; more rows than 16,384 have theirs computed again when they are needed
REFRESHED = 32  # bounds that lazy greedy renews at a time, in one matrix product


def k_center(table: ScoreTable, *, seed: int) -> Greedy:
    """Greedy k-center: always the row that is farthest from all picked ones (Sener, Savarese 2018, Algorithm 1).

    Begins with the row nearest to the mean embedding, since there is no pool of labelled rows to begin with.
    """
    return Greedy(partial(_farthest_first, _vectors(table), table.index))


def facility_location(table: ScoreTable, *, seed: int) -> Greedy:
    """The rows that stand for all others: greedy maximum of sum_i max_j max(0, cos(i, j)) over picked j.

    Lazy greedy (Minoux 1978): a gain only shrinks as rows are picked, so that an old one is an upper bound.
    """
    return Greedy(partial(_most_representative, _vectors(table), table.index))


def deita(table: ScoreTable, *, seed: int, complexity: str, quality: str, threshold: float | None = None) -> Greedy:
    """Complexity x quality, highest first, and nothing near to what is picked already (Liu et al. 2024).

    With a threshold, a row whose highest cosine similarity with a picked one is not below it is passed over (DEITA's
    Repr Filter, 0.9 there). Where too few rows pass, the ones passed over follow in the order of their score.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        score_N = table.columns[complexity] * table.columns[quality]
    vectors_ND = None if threshold is None else _vectors(table)
    return Greedy(partial(_best_and_different, score_N, table.index, vectors_ND, threshold), score_N)


def _vectors(table: ScoreTable) -> NDArray[np.float32]:
    assert table.vectors is not None, "the specification says that the rule looks at embeddings"
    return table.vectors


def _in_order(rows_M: NDArray[np.int64], index_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows_M[np.argsort(index_N[rows_M], kind="stable")]


def _farthest_first(
    vectors_ND: NDArray[np.float32], index_N: NDArray[np.int64], rows_M: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    rows_M = _in_order(rows_M, index_N)
    vectors_MD = vectors_ND[rows_M]
    square_M = np.einsum("md,md->m", vectors_MD, vectors_MD)

    def distance_to(centre_D: NDArray[np.float32]) -> NDArray[np.float32]:
        return square_M - 2 * (vectors_MD @ centre_D) + centre_D @ centre_D

    picked = np.empty(n, np.int64)
    nearest_M = np.full(len(rows_M), np.inf, np.float32)
    place = int(distance_to(vectors_MD.mean(axis=0)).argmin())
    for turn in range(n):
        picked[turn] = place
        np.minimum(nearest_M, distance_to(vectors_MD[place]), out=nearest_M)
        nearest_M[place] = -np.inf  # picked, though others with the same content may still be at distance 0
        place = int(nearest_M.argmax())
    return rows_M[picked]


def _most_representative(
    vectors_ND: NDArray[np.float32], index_N: NDArray[np.int64], rows_M: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    rows_M = _in_order(rows_M, index_N)
    similarity = _Similarity(_unit(vectors_ND[rows_M]))
    covered_M = np.zeros(len(rows_M), np.float32)  # how well each row is represented by the picked ones
    gain = np.concatenate([similarity(block).sum(axis=1, dtype=np.float64) for block in _blocks(len(rows_M))])
    bounds = [(-g, place, 0) for place, g in enumerate(gain.tolist())]
    heapq.heapify(bounds)
    picked: list[int] = []
    while len(picked) < n:
        if bounds[0][2] == len(picked):
            place = heapq.heappop(bounds)[1]
            picked.append(place)
            np.maximum(covered_M, similarity(np.array([place]))[0], out=covered_M)
            continue
        stale: list[int] = []
        while bounds and len(stale) < REFRESHED and bounds[0][2] < len(picked):
            stale.append(heapq.heappop(bounds)[1])
        fresh_BM = similarity(np.array(stale)) - covered_M
        fresh_B = np.maximum(fresh_BM, 0, out=fresh_BM).sum(axis=1, dtype=np.float64)
        for place, g in zip(stale, fresh_B.tolist(), strict=True):
            heapq.heappush(bounds, (-g, place, len(picked)))
    return rows_M[picked]


class _Similarity:
    """max(0, cosine) of some rows with all, (B, M): all kept where KEPT_BYTES hold them, else computed on demand."""

    def __init__(self, unit_MD: NDArray[np.float32]) -> None:
        self.unit_MD = unit_MD
        self.kept_MM = self._computed(np.arange(len(unit_MD))) if 4 * len(unit_MD) ** 2 <= KEPT_BYTES else None

    def __call__(self, places_B: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._computed(places_B) if self.kept_MM is None else self.kept_MM[places_B]

    def _computed(self, places_B: NDArray[np.int64]) -> NDArray[np.float32]:
        cosine_BM = self.unit_MD[places_B] @ self.unit_MD.T
        return np.maximum(cosine_BM, 0, out=cosine_BM)


def _best_and_different(
    score_N: NDArray[np.float64],
    index_N: NDArray[np.int64],
    vectors_ND: NDArray[np.float32] | None,
    threshold: float | None,
    rows_M: NDArray[np.int64],
    n: int,
) -> NDArray[np.int64]:
    rows_M = rows_M[np.lexsort((index_N[rows_M], -score_N[rows_M]))]
    if threshold is None or vectors_ND is None:
        return rows_M[:n]
    unit_MD = _unit(vectors_ND[rows_M])
    picked: list[int] = []
    passed_over: list[int] = []
    kept_KD = np.empty((n, unit_MD.shape[1]), np.float32)
    for place, vector_D in enumerate(unit_MD):
        if len(picked) == n:
            break
        if len(picked) and (kept_KD[: len(picked)] @ vector_D).max() >= threshold:
            passed_over.append(place)
            continue
        kept_KD[len(picked)] = vector_D
        picked.append(place)
    return rows_M[(picked + passed_over)[:n]]


def _unit(vectors_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    norm_M1 = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    return np.divide(vectors_MD, norm_M1, out=np.zeros_like(vectors_MD), where=norm_M1 > 0)


def _blocks(m: int) -> Iterator[NDArray[np.int64]]:
    step = max(BLOCK_BYTES // (4 * m), 1)
    for start in range(0, m, step):
        yield np.arange(start, min(start + step, m))
