"""How far scorers agree on which rows are hard: rank correlations, and rows that both would choose. No I/O.

N rows, S scorers (tables), E recorded columns, C clusters, P shares in percent, Q quartiles

A share counts rows as a selection does: pct/100 x rows, rounded half up; the lowest scores, ties broken by row order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from lpsel.errors import UserError
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import rows_of

ROWS_OF_A_CLUSTER = 10  # a rank correlation of fewer rows says little
ROWS_OF_ALL_PAIRS = 300  # up to here, comparing all pairs of rows at once is quicker than a sort for each two scorers

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def metrics_of(epochs: int) -> list[str]:
    """The metrics that can be computed from that many recorded epochs."""
    return [name for name, metric in METRICS.items() if epochs >= metric.epochs]


def score(table: ScoreTable, metric: str, epochs: int) -> Floats:
    """One number per row, low is hard, shape (N,); NaN where it is undefined.

    lp and lp_app are those of the paper, of perplexities; lp_nll is LP's formula over mean NLL instead.

    Args:
        table: scores with at least `epochs` recorded epochs.
        metric: a key of METRICS.
        epochs: the n of the formulas.
    """
    return learning_percentage(table.first_epochs(epochs), metric)


def defined_rows(tables: Sequence[ScoreTable], scores_MSN: Floats) -> Flags:
    """Rows that have a supervised token and a number by every metric in every table, shape (N,)."""
    supervised_N = np.all([table.response_tokens > 0 for table in tables], axis=0)
    return supervised_N & np.isfinite(scores_MSN).all(axis=(0, 1))


@dataclass(frozen=True)
class Agreement:
    """Agreement of every two of S scorers.

    Attributes:
        spearman: Spearman's rank correlation, (S, S); NaN where a scorer gives all rows the same number.
        kendall: Kendall's tau-b, (S, S); NaN as above.
        common: rows in the lowest share of both, (P, S, S); 0 where the share is less than half a row.
        lowest: rows in the lowest share of one, (P,).
        n: rows compared.
    """

    spearman: Floats
    kendall: Floats
    common: NDArray[np.int64]
    lowest: NDArray[np.int64]
    n: int

    @property
    def share(self) -> Floats:
        """Share of the lowest rows in common, (P, S, S); NaN where the share is less than half a row."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.common / self.lowest[:, None, None]

    @property
    def chance(self) -> Floats:
        """The share in common that two unrelated scorers have on average, (P,)."""
        return self.lowest / self.n


def agreement(scores_SN: Floats, pcts: Sequence[float]) -> Agreement:
    """Compare every two rows of an array of scores without NaN."""
    low_PSN = np.array([lowest(scores_SN, pct) for pct in pcts])
    common_PSS = np.einsum("psn,ptn->pst", low_PSN.astype(np.float32), low_PSN.astype(np.float32), optimize=True)
    return Agreement(
        spearman=spearman(scores_SN),
        kendall=kendall(scores_SN),
        common=np.rint(common_PSS).astype(np.int64),
        lowest=low_PSN[:, 0].sum(axis=1),
        n=scores_SN.shape[1],
    )


def lowest(scores_SN: Floats, pct: float) -> Flags:
    """Which rows are in the lowest `pct` % of each scorer, (S, N); none where that is less than half a row."""
    low_SN = np.zeros(scores_SN.shape, np.bool_)
    try:
        k = rows_of(pct, scores_SN.shape[1])
    except UserError:
        return low_SN
    first_SK = np.argsort(scores_SN, axis=1, kind="stable")[:, :k]
    np.put_along_axis(low_SN, first_SK, True, axis=1)
    return low_SN


def spearman(scores_SN: Floats) -> Floats:
    """Spearman's rank correlation of every two scorers, ties at their mean rank, (S, S)."""
    ranks_SN = rankdata(scores_SN, axis=1)
    ranks_SN -= ranks_SN.mean(axis=1, keepdims=True)
    return _normed(ranks_SN @ ranks_SN.T)


def kendall(scores_SN: Floats) -> Floats:
    """Kendall's tau-b of every two scorers, (S, S).

    Few rows: the sign of every difference of two rows, as a vector; tau-b is the cosine of two such vectors (Kendall
    1945). More: scipy, in O(N log N).
    """
    s, n = scores_SN.shape
    if n <= ROWS_OF_ALL_PAIRS:
        above = np.triu_indices(n, 1)
        sign_SK = np.sign(scores_SN[:, above[0]] - scores_SN[:, above[1]])
        return _normed(sign_SK @ sign_SK.T)
    tau_SS = np.empty((s, s))
    for a in range(s):
        tau_SS[a, a] = 1.0 if np.ptp(scores_SN[a]) else np.nan
        for b in range(a):
            tau_SS[a, b] = tau_SS[b, a] = kendalltau(scores_SN[a], scores_SN[b]).statistic
    return tau_SS


def _normed(product_SS: Floats) -> Floats:
    """Inner products of vectors as the cosines of their angles; NaN for a vector of zeros."""
    length_S = np.sqrt(np.diag(product_SS))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(product_SS / length_S[:, None] / length_S, -1.0, 1.0)


@dataclass(frozen=True)
class ClusterAgreement:
    """Agreement inside clusters: lower quartile, median and upper quartile over the clusters that define the figure.

    Attributes:
        clusters: clusters with enough rows.
        spearman: (Q, S, S).
        kendall: (Q, S, S).
        share: share of the lowest rows in common, (Q, P, S, S).
        pooled: rows in common of the lowest share of every cluster, all clusters together, as a share, (P, S, S).
        chance: what `pooled` is for unrelated scorers, (P,).
    """

    clusters: int
    spearman: Floats
    kendall: Floats
    share: Floats
    pooled: Floats
    chance: Floats


def agreement_in_clusters(
    scores_SN: Floats, cluster_N: NDArray[np.int32], pcts: Sequence[float]
) -> ClusterAgreement | None:
    """Compare inside every cluster of at least ROWS_OF_A_CLUSTER rows; None where there is no such cluster.

    Args:
        scores_SN: scores without NaN.
        cluster_N: cluster of every row; below 0, a row is in none.
    """
    inside = [agreement(scores_SN[:, rows], pcts) for rows in _clusters(cluster_N)]
    if not inside:
        return None
    lowest_CP = np.array([a.lowest for a in inside])
    rows_C = np.array([a.n for a in inside])
    total_P = lowest_CP.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClusterAgreement(
            clusters=len(inside),
            spearman=_quartiles([a.spearman for a in inside]),
            kendall=_quartiles([a.kendall for a in inside]),
            share=_quartiles([a.share for a in inside]),
            pooled=np.sum([a.common for a in inside], axis=0) / total_P[:, None, None],
            chance=(lowest_CP**2 / rows_C[:, None]).sum(axis=0) / total_P,
        )


def _clusters(cluster_N: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    order_N = np.argsort(cluster_N, kind="stable")
    for rows in np.split(order_N, np.flatnonzero(np.diff(cluster_N[order_N])) + 1):
        if len(rows) >= ROWS_OF_A_CLUSTER and cluster_N[rows[0]] >= 0:
            yield rows


def _quartiles(figures: Sequence[Floats]) -> Floats:
    """Quartiles over clusters, NaN left out; shape (3, ...)."""
    stacked = np.array(figures)
    flat = stacked.reshape(len(stacked), -1)
    result = np.full((3, flat.shape[1]), np.nan)
    some = np.isfinite(flat).any(axis=0)
    result[:, some] = np.nanquantile(flat[:, some], [0.25, 0.5, 0.75], axis=0)
    return result.reshape(3, *stacked.shape[1:])


def auc(value_N: NDArray[np.int32], chosen_N: Flags) -> float:
    """How often a chosen row has a larger value than one not chosen, ties counting half (Mann and Whitney 1947).

    0.5 where values do not tell them apart; NaN where all rows are chosen, or none.
    """
    chosen = int(chosen_N.sum())
    others = len(chosen_N) - chosen
    if not chosen or not others:
        return float("nan")
    return float((rankdata(value_N)[chosen_N].sum() - chosen * (chosen + 1) / 2) / (chosen * others))
