"""Agreement between scorers: rank correlations, and the overlap of the rows that each would select.

N rows, S scorers, P percentages. Low scores are hard; arrays of scores contain no NaN.

The number of lowest rows is pct/100 x rows, rounded half up. Ties are broken by content, as in a selection
(`tie_turns`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import kendalltau, rankdata

from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import Ties, rounded_rows

ROWS_OF_A_CLUSTER = 10  # fewest rows for a meaningful rank correlation
ROWS_OF_ALL_PAIRS = 300  # up to here, comparing all pairs of rows at once is faster than scipy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Pairwise agreement between S scorers.

    Attributes:
        spearman: Spearman's rank correlation, (S, S); NaN for a scorer that gives all rows the same score.
        kendall: Kendall's tau-b, (S, S); NaN as above.
        common: number of rows that are among the lowest of both scorers, (P, S, S).
        lowest: number of lowest rows of each scorer, (P,).
        chance: expected overlap of two unrelated scorers with the same number of ties, as a fraction, (P, S, S).
        n: number of rows.
    """

    spearman: Floats
    kendall: Floats
    common: NDArray[np.int64]
    lowest: NDArray[np.int64]
    chance: Floats
    n: int

    @property
    def share(self) -> Floats:
        """Overlap of the lowest rows as a fraction, (P, S, S); NaN without lowest rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.common / self.lowest[:, None, None]


def agreement(scores_SN: Floats, pcts: Sequence[float], turn_N: NDArray[np.int64] | None = None) -> Agreement:
    """Compare every pair of scorers; `turn_N` breaks ties, as in `lowest`."""
    low_PSN = np.array([lowest(scores_SN, pct, turn_N) for pct in pcts]).astype(np.float32)
    return Agreement(
        spearman=spearman(scores_SN),
        kendall=kendall(scores_SN),
        common=np.rint(low_PSN @ low_PSN.swapaxes(1, 2)).astype(np.int64),
        lowest=low_PSN[:, 0].sum(axis=1).astype(np.int64),
        chance=np.array([chance(scores_SN, pct) for pct in pcts]),
        n=scores_SN.shape[1],
    )


def lowest(scores_SN: Floats, pct: float, turn_N: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Mask of the lowest `pct` % of the rows of each scorer, (S, N); all False if that is less than half a row.

    Ties are broken by `turn_N`, or by position without it.
    """
    low_SN = np.zeros(scores_SN.shape, np.bool_)
    order_N = np.arange(scores_SN.shape[1]) if turn_N is None else np.argsort(turn_N)
    first_SK = np.argsort(scores_SN[:, order_N], axis=1, kind="stable")[:, : rounded_rows(pct, len(order_N))]
    np.put_along_axis(low_SN, order_N[first_SK], True, axis=1)
    return low_SN


def tie_turns(tables: Sequence[ScoreTable]) -> NDArray[np.int64]:
    """Tie-breaking order of the rows, as in a selection, int64 (N,).

    The order is by content, or by row number if no table has content ids.
    """
    ids = next((table.id for table in tables if table.has_content_ids), None)
    rows = np.arange(len(tables[0]))
    turn_N = np.empty_like(rows)
    turn_N[Ties(ids, tables[0].index).sort(rows, np.zeros(len(rows), np.int32))] = rows
    return turn_N


def chance(scores_SN: Floats, pct: float) -> Floats:
    """Expected overlap of the lowest rows of every two scorers if they were unrelated, as a fraction, (S, S).

    This is pct/100 without ties at the cutoff. All scorers take tied rows in the same order, so ties increase the
    overlap, up to 1 if all rows have the same score. NaN without lowest rows.
    """
    n = scores_SN.shape[1]
    k = rounded_rows(pct, n)
    if not k:
        return np.full((len(scores_SN),) * 2, np.nan)
    cutoff_S1 = np.partition(scores_SN, k - 1, axis=1)[:, k - 1 : k]
    below_S1 = (scores_SN < cutoff_S1).sum(axis=1, keepdims=True)
    tied_S1 = (scores_SN == cutoff_S1).sum(axis=1, keepdims=True)
    # The first k - below tied rows are lowest. For a tied row at position i, the number of tied rows before it follows
    # a hypergeometric distribution, approximated by a normal one.
    before_N = np.arange(n) / max(n - 1, 1)
    variance_SN = (tied_S1 - 1) * before_N * (1 - before_N) * (n - tied_S1) / max(n - 2, 1)
    with np.errstate(divide="ignore"):
        taken_SN = ndtr((k - below_S1 - 0.5 - (tied_S1 - 1) * before_N) / np.sqrt(variance_SN))
    p_SN = (below_S1 + tied_S1 * np.where(tied_S1 == k - below_S1, 1.0, taken_SN)) / n
    p_SN *= k / p_SN.sum(axis=1, keepdims=True)
    return p_SN @ p_SN.T / k


def spearman(scores_SN: Floats) -> Floats:
    """Spearman's rank correlation of every two scorers, (S, S); ties get their mean rank."""
    ranks_SN = rankdata(scores_SN, axis=1)
    ranks_SN -= ranks_SN.mean(axis=1, keepdims=True)
    return _cosines(ranks_SN)


def kendall(scores_SN: Floats) -> Floats:
    """Kendall's tau-b of every two scorers, (S, S).

    For few rows, the cosine similarity of the signs of all pairwise differences (Kendall 1945); otherwise scipy.
    """
    s, n = scores_SN.shape
    if n <= ROWS_OF_ALL_PAIRS:
        first_K, second_K = np.triu_indices(n, 1)
        return _cosines(np.sign(scores_SN[:, first_K] - scores_SN[:, second_K]))
    tau_SS = np.empty((s, s))
    for a, b in combinations_with_replacement(range(s), 2):
        tau_SS[a, b] = tau_SS[b, a] = kendalltau(scores_SN[a], scores_SN[b]).statistic
    return tau_SS


def _cosines(vectors_SK: Floats) -> Floats:
    """Cosine similarity of every two vectors, (S, S); NaN for zero vectors."""
    product_SS = vectors_SK @ vectors_SK.T
    length_S = np.sqrt(np.diag(product_SS))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(product_SS / length_S[:, None] / length_S, -1.0, 1.0)


def agreement_in_clusters(
    scores_SN: Floats, cluster_N: NDArray[np.int32], pcts: Sequence[float], turn_N: NDArray[np.int64]
) -> list[Agreement]:
    """Compare scorers within every cluster of at least ROWS_OF_A_CLUSTER rows; negative numbers mean no cluster."""
    order_N = np.argsort(cluster_N, kind="stable")
    clusters = np.split(order_N, np.flatnonzero(np.diff(cluster_N[order_N])) + 1)
    return [
        agreement(scores_SN[:, rows], pcts, turn_N[rows])
        for rows in clusters
        if len(rows) >= ROWS_OF_A_CLUSTER and cluster_N[rows[0]] >= 0
    ]


def auc(values_N: NDArray[np.int32], selected_N: NDArray[np.bool_]) -> float:
    """AUC: probability that a selected row has a larger value than another row, ties count half (Mann, Whitney 1947).

    0.5 if all values are equal; NaN if all rows or none are selected.
    """
    selected = int(selected_N.sum())
    others = len(selected_N) - selected
    if not selected or not others:
        return float("nan")
    return float((rankdata(values_N)[selected_N].sum() - selected * (selected + 1) / 2) / (selected * others))
