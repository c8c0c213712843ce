"""Select hard rows of every length: response lengths of selected rows have the same distribution as of eligible rows.

M eligible rows, C clusters, Q strata of length

A row's rank by score is replaced by its rank among rows of similar length. With clusters, this does not preserve the
distribution, since clusters differ in length. Every stratum then gets an offset, which is raised if too many of its
rows are selected and lowered if too few, until the numbers match. The offsets are the prices of a transport problem
between clusters and strata.
"""

import numpy as np
from numpy.typing import NDArray

from lpsel.selection.budget import Ties, exact_shares, rank_in_clusters

STRATA = (10, 100)  # quantiles of length: at least deciles, more if ROWS_PER_STRATUM rows of each can be selected
ROWS_PER_STRATUM = 10
ROUNDS = 60


def strata(length_M: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """Assign every row to a length stratum when n rows are selected, int32 (M,); equal lengths share a stratum.

    Uses n / 10 quantiles, at least 10 and at most 100; fewer if many rows have the same length.
    """
    lowest, highest = STRATA
    q = min(max(n // ROWS_PER_STRATUM, lowest), highest)
    edges = np.unique(np.quantile(length_M, np.arange(1, q) / q))
    return np.searchsorted(edges, length_M).astype(np.int32)


def matched(
    rows_M: NDArray[np.int64],
    key_N: NDArray[np.float64],
    length_N: NDArray[np.int32],
    ties: Ties,
    cluster_N: NDArray[np.int32] | None,
    take_C: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Select take_C[c] rows of every cluster c, with close to proportional numbers of every stratum.

    Returns the positions of the selected rows, and one number per row for its cluster and stratum, int32 (N,), in
    ascending order of the clusters.

    Without clusters, the numbers per stratum are exact (largest remainder). With clusters, the numbers per cluster are
    exact, and those per stratum are the best of ROUNDS rounds.

    Args:
        rows_M: positions of the eligible rows.
        key_N: lowest first.
        length_N: response lengths in tokens.
        take_C: in ascending order of the clusters.
    """
    n = int(take_C.sum())
    stratum_N = np.zeros(len(key_N), np.int32)
    stratum_N[rows_M] = np.unique(strata(length_N[rows_M], n), return_inverse=True)[1]
    by_length = rank_in_clusters(rows_M, stratum_N, key_N, ties)
    quota_Q = exact_shares(by_length.size, n, by_length.order)
    if cluster_N is None:
        return by_length.first(quota_Q), stratum_N

    # Contents are hashed once, not in every round.
    tie_order_N = np.zeros(len(key_N), np.int64)
    tie_order_N[ties.sort(rows_M, np.zeros(len(rows_M), np.int32))] = np.arange(len(rows_M))
    ties = Ties(None, tie_order_N)
    rank_N = np.full(len(key_N), np.nan)  # rank among rows of the same stratum, from 0 to 1
    rank_N[by_length.row] = (by_length.rank + 0.5) / np.repeat(by_length.size, by_length.size)
    offset_Q = np.zeros(len(quota_Q))
    best_rows, fewest_misplaced = by_length.row[:0], n + 1
    for step in range(ROUNDS):
        ranked = rank_in_clusters(rows_M, cluster_N, rank_N + offset_Q[stratum_N], ties)
        rows = ranked.first(take_C)
        excess_Q = np.bincount(stratum_N[rows], minlength=len(quota_Q)) - quota_Q
        misplaced = int(np.abs(excess_Q).sum()) // 2
        if misplaced < fewest_misplaced:
            best_rows, fewest_misplaced = rows, misplaced
        if misplaced == 0:
            break
        offset_Q += 2 * n / len(rows_M) * excess_Q / np.maximum(quota_Q, 1) / (1 + step / 5)  # ever smaller steps
    numbered_N = np.unique(cluster_N, return_inverse=True)[1].astype(np.int32)  # a column can have any numbers
    return best_rows, numbered_N * np.int32(STRATA[1]) + stratum_N
