"""Hard rows of every length: the lengths of the chosen rows' responses are those of all that could be chosen.

M rows that can be chosen, C clusters, Q strata of length

A row's rank by score is replaced by its rank among rows of like length. With clusters, that alone does not keep the
lengths, as a cluster's lengths need not be those of all rows; then every stratum gets an offset on top, raised where
too many are chosen and lowered where too few, until the numbers are those wanted: the prices of a transport problem
with clusters on one side and strata on the other.
"""

import numpy as np
from numpy.typing import NDArray

from lpsel.selection.budget import Ranked, exact_shares, rank_in_clusters

STRATA = (10, 100)  # quantiles of length: deciles at least, finer where that leaves ROWS_PER_STRATUM chosen in each
ROWS_PER_STRATUM = 10
ROUNDS = 60


def strata(length_M: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """Which stratum of length a row is in when n are chosen, int32 (M,): rows of one length are in one stratum.

    n / 10 quantiles of equal size, but at least 10 and at most 100; fewer where rows share lengths.
    """
    lowest, highest = STRATA
    q = min(max(n // ROWS_PER_STRATUM, lowest), highest)
    edges = np.unique(np.quantile(length_M, np.arange(1, q) / q))
    return np.searchsorted(edges, length_M).astype(np.int32)


def matched(
    rows_M: NDArray[np.int64],
    key_N: NDArray[np.float64],
    length_N: NDArray[np.int32],
    index_N: NDArray[np.int64],
    cluster_N: NDArray[np.int32] | None,
    take_C: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Positions of the rows chosen: take_C[c] of every cluster c, of every stratum as near to its share as possible.

    Without clusters the numbers per stratum are those of the largest remainder, exactly. With them, the numbers per
    cluster are exact, and of ROUNDS rounds the one counts that comes nearest to the strata's.

    Args:
        rows_M: the rows that can be chosen.
        key_N: lower is chosen first.
        take_C: in the order of the clusters' numbers.
    """
    n = int(take_C.sum())
    stratum_N = np.zeros(len(key_N), np.int32)
    stratum_N[rows_M] = np.unique(strata(length_N[rows_M], n), return_inverse=True)[1]
    by_length = rank_in_clusters(rows_M, stratum_N, key_N, index_N)
    quota_Q = exact_shares(by_length.size, n)
    if cluster_N is None:
        return by_length.first(quota_Q)

    rank_N = np.full(len(key_N), np.nan)
    rank_N[by_length.row] = (by_length.place + 0.5) / np.repeat(by_length.size, by_length.size)
    price_Q = np.zeros(len(quota_Q))
    best, fewest = by_length.row[:0], n + 1
    for turn in range(ROUNDS):
        ranked: Ranked = rank_in_clusters(rows_M, cluster_N, rank_N + price_Q[stratum_N], index_N)
        chosen = ranked.first(take_C)
        excess_Q = np.bincount(stratum_N[chosen], minlength=len(quota_Q)) - quota_Q
        misplaced = int(np.abs(excess_Q).sum()) // 2
        if misplaced < fewest:
            best, fewest = chosen, misplaced
        if misplaced == 0:
            break
        price_Q += 2 * n / len(rows_M) * excess_Q / np.maximum(quota_Q, 1) / (1 + turn / 5)
    return best
