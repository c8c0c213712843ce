"""s2l: select equally many rows from each cluster of loss trajectories.

N rows, M rows with a trajectory, F of them used for k-means, E recorded columns, n rows to pick, C clusters
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lpsel.clustering.k_means import k_means
from lpsel.data.random_order import random_keys, splitmix64
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import Ties, capped_shares, rank_in_clusters
from lpsel.selection.rules import Ranking, Rule

NOT_FINITE = "trajectory is not finite"
MOST_ROWS = 200_000  # rows used for k-means; others are assigned to the nearest cluster


@partial(Rule, picks_rows=True, epochs=1)
def s2l(table: ScoreTable, *, seed: int, trajectory_clusters: int = 100) -> Ranking:
    """Select equally many rows from each cluster of loss trajectories, at random within the cluster.

    Yang, Mishra, Chiang, Mirzasoleiman, SmallToLarge (S2L), NeurIPS 2024, arXiv 2403.07384, Algorithm 1: k-means on the
    recorded NLLs; then clusters from smallest to largest, each with an equal share of the remaining budget. Rows are
    clustered in the order of a hash of their content, so the result does not depend on their order.
    """
    finite_N = np.isfinite(table.nll.sum(axis=0))
    key_N = random_keys(table.id, table.index, seed)
    rows = np.flatnonzero(finite_N & (table.response_tokens > 0))
    rows = rows[np.argsort(key_N[rows], kind="stable")]
    cluster_N = np.full(len(table), -1, np.int32)
    if len(rows):
        cluster_N[rows] = trajectory_clusters_of(table.nll.T[rows], min(trajectory_clusters, len(rows)), seed)
    ties = Ties(None, table.index)
    return Ranking(None, {NOT_FINITE: ~finite_N}, arbitrary=True, pick=partial(equal_shares, cluster_N, key_N, ties))


def trajectory_clusters_of(nll_ME: NDArray[np.float64], k: int, seed: int) -> NDArray[np.int32]:
    """The k-means cluster of every trajectory, int32 (M,).

    Only the first MOST_ROWS trajectories are clustered; the others are assigned to the nearest mean.
    """
    first_FE = nll_ME[:MOST_ROWS].astype(np.float32)
    cluster_F = k_means(first_FE, np.ones(len(first_FE), np.int64), k, seed)
    if len(nll_ME) == len(first_FE):
        return cluster_F
    from sklearn.metrics import pairwise_distances_argmin

    size_C = np.bincount(cluster_F)
    used = np.flatnonzero(size_C).astype(np.int32)  # k-means can leave clusters empty
    sum_EC = np.array([np.bincount(cluster_F, weights=nll_F) for nll_F in first_FE.T])
    mean_CE = (sum_EC[:, used] / size_C[used]).T
    return np.concatenate([cluster_F, used[pairwise_distances_argmin(nll_ME[MOST_ROWS:], mean_CE)]])


def equal_shares(
    cluster_N: NDArray[np.int32],
    key_N: NDArray[np.float64],
    ties: Ties,
    rows_M: NDArray[np.int64],
    n: int,
    before: int = 0,
) -> NDArray[np.int64]:
    """Select the first rows by key, equally many from every cluster as far as its size allows, (n,).

    The rows of the smallest cluster come first. Ties between equal remainders are broken in an order that depends on
    `before`, the number of rows picked from other parts of the data, so that these do not all favor the same clusters.
    """
    ranked = rank_in_clusters(rows_M, cluster_N, key_N, ties)
    order_C = splitmix64(ranked.order + np.uint64(before)) if before else ranked.order
    take_C = capped_shares(np.ones(len(ranked.size)), ranked.size, n, order_C)
    size_n = np.repeat(ranked.size, take_C)  # of the clusters of the selected rows
    return ranked.first(take_C)[np.argsort(size_n, kind="stable")]
