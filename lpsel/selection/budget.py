"""Compute how many rows to select in total and from each cluster, and select the first ones of a ranking.

N rows, M eligible rows, C clusters

All functions are vectorized over rows and clusters.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.random_order import TIES, random_keys, splitmix64
from lpsel.errors import UserError, is_number
from lpsel.scoring.metrics import mid_ranks

PARTS_OF_BUCKETS = 3
ROUNDING = 1e-9  # error of float arithmetic, in rows


def check_pct(pct: Any, name: str = "pct", hint: str = "set selection=full to use all rows") -> float:
    """Return the percentage as a float; raises a UserError unless it is in (0, 100]."""
    if not is_number(pct) or not 0 < pct <= 100:
        raise UserError(name, "null" if pct is None else pct, "must be in (0, 100]", hint)
    return float(pct)


def part_of(pct: float, total: int) -> Fraction:
    """Exact value of pct/100 x total, with pct as the decimal number that the user wrote."""
    return Fraction(repr(float(pct))) / 100 * total


def rounded_rows(pct: float, n_total: int) -> int:
    """pct/100 x n_total, rounded half up in exact arithmetic."""
    return math.floor(part_of(pct, n_total) + Fraction(1, 2))


def row_budget(pct: float, n_total: int) -> int:
    """`rounded_rows`, at least 1.

    Raises:
        UserError: pct is not in (0, 100], or is less than half a row; the hint names the smallest valid percentage.
    """
    rows = rounded_rows(check_pct(pct), n_total)
    if rows == 0:
        problem = f"is {pct / 100 * n_total:.2g} of {n_total} rows, which rounds to 0"
        hint = f"set pct={_at_least(Fraction(50, n_total))} or more, which is one row"
        raise UserError("pct", f"{pct:g}", problem, hint)
    return rows


def _at_least(value: Fraction) -> str:
    """Round `value` up to at most four significant digits."""
    scale = Fraction(10) ** (3 - math.floor(math.log10(value)))
    return f"{float(math.ceil(value * scale) / scale):.4g}"


@dataclass(frozen=True)
class Ties:
    """Tie-breaking order: by a hash of the content, or by row number without content ids."""

    ids: pa.Array | None  # content ids of the N rows, or None
    index: NDArray[np.int64]  # row numbers, int64 (N,)

    def sort(self, rows: NDArray[np.int64], group: NDArray[np.int32]) -> NDArray[np.int64]:
        """Sort positions by group and, within a group, in tie-breaking order."""
        index = self.index[rows]
        if self.ids is None:
            return rows[np.lexsort((index, group))]
        hashes = random_keys(self.ids.take(pa.array(rows)), index, TIES)
        return rows[np.lexsort((index, hashes, group))]


@dataclass(frozen=True)
class Ranked:
    """M rows sorted by cluster and, within a cluster, from first to last choice."""

    row: NDArray[np.int64]  # positions of the rows in this order, int64 (M,)
    cluster: NDArray[np.int64]  # cluster numbers, ascending, int64 (C,)
    size: NDArray[np.int64]  # number of rows in each cluster, int64 (C,)
    rank: NDArray[np.int64]  # rank of each row in its cluster, from 0, in the order of `row`, int64 (M,)
    run: NDArray[np.int32]  # equal for rows with the same cluster and key, ascending, in the order of `row`, (M,)

    @property
    def order(self) -> NDArray[np.uint64]:
        """Hash of every cluster number, uint64 (C,): the order in which clusters with equal remainders get a row."""
        return splitmix64(self.cluster.astype(np.uint64) ^ np.uint64(TIES))

    def first(self, take_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the first take_C[c] rows of every cluster c."""
        return self.row[self.rank < np.repeat(take_C, self.size)]

    def tied_at_cutoff(self, selected_N: NDArray[np.bool_]) -> int:
        """Number of rows tied at the cutoff: their cluster and key occur in both selected and unselected rows."""
        size = np.bincount(self.run)
        selected = np.bincount(self.run, weights=selected_N[self.row])
        return int(size[(selected > 0) & (selected < size)].sum())


def rank_in_clusters(
    rows_M: NDArray[np.int64], cluster_N: NDArray[np.int32] | None, key_N: NDArray[np.float64], ties: Ties
) -> Ranked:
    """Sort rows by cluster, key ascending, then tie-breaking order. Without clusters, all are in cluster 0."""
    # Successive stable sorts are faster than np.lexsort for millions of rows.
    row = rows_M[np.argsort(key_N[rows_M], kind="stable")]
    cluster = np.zeros(len(row), np.int32)
    if cluster_N is not None:
        row = row[np.argsort(cluster_N[row], kind="stable")]
        cluster = cluster_N[row]
    starts_cluster = np.diff(cluster, prepend=cluster[:1] - 1) != 0
    key = key_N[row]
    starts_run = starts_cluster | (np.diff(key, prepend=key[:1]) != 0)
    run = np.cumsum(starts_run, dtype=np.int32) - 1
    tied = ~starts_run
    tied[:-1] |= ~starts_run[1:]  # the first row of a run of several
    row[tied] = ties.sort(row[tied], run[tied])
    start = np.flatnonzero(starts_cluster)
    size = np.diff(start, append=len(row))
    return Ranked(
        row=row,
        cluster=cluster[start].astype(np.int64),
        size=size,
        rank=np.arange(len(row)) - np.repeat(start, size),
        run=run,
    )


def exact_shares(size_C: NDArray[np.int64], n: int, order_C: NDArray[np.integer]) -> NDArray[np.int64]:
    """Allocate n rows to clusters in proportion to their size, by largest remainder, int64 (C,).

    The result sums to n, is at most size_C, and differs from the exact share by less than one. Equal remainders are
    ordered by `order_C`. Integer arithmetic throughout.
    """
    total = int(size_C.sum())
    assert 0 <= n <= total < 2**31
    if total == 0:
        return np.zeros_like(size_C)
    take_C, remainder_C = np.divmod(size_C * n, total)
    return _round_up_largest_remainders(take_C, remainder_C, n, order_C)


def capped_shares(
    weight_C: NDArray[np.float64], size_C: NDArray[np.int64], n: int, order_C: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Allocate n rows to clusters in proportion to positive weights, capped at their sizes, int64 (C,).

    Water-filling: the excess over a cluster's size is redistributed in proportion to the weights, so every cluster
    gets min(size, level x weight) for a common level. Rounded by largest remainder, ties as in `exact_shares`.
    """
    assert 0 <= n <= size_C.sum()
    order = np.argsort(size_C / weight_C, kind="stable")  # clusters in the order in which they fill up
    size, weight = size_C[order], weight_C[order]
    # levels[i] is the common level if exactly the first i clusters of the order are full.
    rows_in_full = np.cumsum(size) - size
    weight_of_others = np.cumsum(weight[::-1])[::-1]
    levels = (n - rows_in_full) / weight_of_others
    has_room = levels * weight < size
    quota_C = size_C.astype(np.float64)
    if has_room.any():
        n_full = int(has_room.argmax())
        others = order[n_full:]
        quota_C[others] = np.minimum(levels[n_full] * weight_C[others], size_C[others])
    take_C = np.floor(quota_C + ROUNDING).astype(np.int64)
    remainder_C = np.where(take_C < size_C, np.round(quota_C - take_C, 9), -1.0)  # full clusters come last
    return _round_up_largest_remainders(take_C, remainder_C, n, order_C)


def _round_up_largest_remainders(
    take_C: NDArray[np.int64], remainder_C: NDArray[Any], n: int, order_C: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Add 1 to the shares with the largest remainders so that they sum to n; `order_C` orders equal remainders."""
    missing = n - int(take_C.sum())
    rounded_up = np.lexsort((order_C, -remainder_C))[:missing]
    take_C[rounded_up] += 1
    return take_C


def hardness_weights(ranked: Ranked, key_M: NDArray[np.float64]) -> NDArray[np.float64]:
    """Size of every cluster times its mean hardness, (C,).

    A row's hardness is the fraction of all rows that rank after it, ties count half: near 1 for the first row, near 0
    for the last, independent of the scale of the scores.

    Args:
        key_M: keys in the order of `ranked.row`, lowest first.
    """
    hardness_M = 1 - (mid_ranks(key_M) + 0.5) / len(key_M)
    start = np.cumsum(ranked.size) - ranked.size
    return np.add.reduceat(hardness_M, start)


def paper_shares(size_C: NDArray[np.int64], pct: float) -> NDArray[np.int64]:
    """Number of rows to select from every cluster as in the paper's released code, int64 (C,).

    Each cluster is split into round(100/pct) near-equal parts and contributes the first, ceil(size / round(100/pct))
    rows. So 1% of many small clusters is more than 1% of the rows, and 67% or more selects all rows.
    """
    parts = round(min(100 / pct, float(size_C.max(initial=1))))  # 100 / pct may be infinite
    return -(-size_C // parts)


def thirds(ranked: Ranked) -> NDArray[np.int8]:
    """Split every cluster into three near-equal parts: 0, 1 or 2 for each row, in the order of `ranked.row`.

    If a cluster's size is not divisible by three, the first parts get one more row, as in numpy.array_split.
    """
    share_C, over_C = np.divmod(ranked.size, PARTS_OF_BUCKETS)
    first_end = np.repeat(share_C + (over_C > 0), ranked.size)
    second_end = np.repeat(2 * share_C + over_C, ranked.size)
    return (ranked.rank >= first_end).astype(np.int8) + (ranked.rank >= second_end)
