"""s2l: rows in equal numbers from clusters of loss trajectories.

N rows, M eligible rows, n rows to pick, C clusters
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lpsel.clustering.k_means import k_means
from lpsel.data.random_order import random_keys
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import Ties, capped_shares, rank_in_clusters
from lpsel.selection.rules import Ranking, Rule

NOT_FINITE = "trajectory is not finite"


@partial(Rule, picks_rows=True)
def s2l(table: ScoreTable, *, seed: int, trajectory_clusters: int = 100) -> Ranking:
    """Rows in equal numbers from clusters of loss trajectories, at random within each.

    Yang, Mishra, Chiang, Mirzasoleiman, SmallToLarge (S2L), NeurIPS 2024, arXiv 2403.07384, Algorithm 1: k-means on the
    recorded NLLs, then clusters from the smallest to the largest, each with an equal share of what is left of the
    budget. Rows are clustered in the order of a hash of their content, so that their order does not matter.
    """
    finite_N: NDArray[np.bool_] = np.isfinite(table.nll).all(axis=0)
    key_N = random_keys(table.id, table.index, seed)
    rows = np.flatnonzero(finite_N & (table.response_tokens > 0))
    rows = rows[np.argsort(key_N[rows], kind="stable")]
    cluster_N = np.full(len(table), -1, np.int32)
    if len(rows):
        k = min(trajectory_clusters, len(rows))
        cluster_N[rows] = k_means(table.nll.T[rows].astype(np.float32), np.ones(len(rows), np.int64), k, seed)
    ties = Ties(None, table.index)
    return Ranking(None, {NOT_FINITE: ~finite_N}, arbitrary=True, pick=partial(equal_shares, cluster_N, key_N, ties))


def equal_shares(
    cluster_N: NDArray[np.int32], key_N: NDArray[np.float64], ties: Ties, rows_M: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """The first rows by key of every cluster, the same number of each as far as they have them, (n,).

    The rows of the smallest cluster come first.
    """
    ranked = rank_in_clusters(rows_M, cluster_N, key_N, ties)
    take_C = capped_shares(np.ones(len(ranked.size)), ranked.size, n, ranked.order)
    picked = ranked.rank < np.repeat(take_C, ranked.size)
    size_M = np.repeat(ranked.size, ranked.size)
    return ranked.row[picked][np.argsort(size_M[picked], kind="stable")]
