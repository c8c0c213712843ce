"""Select rows from a table of scores by a rule and a percentage.

N rows, M eligible rows, C clusters
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.random_order import random_keys
from lpsel.scoring.metrics import known_level, rises
from lpsel.scoring.table import ScoreTable, to_arrow
from lpsel.selection import budget
from lpsel.selection.budget import Ranked, Ties, rank_in_clusters
from lpsel.selection.exclusions import (
    DUPLICATE,
    KNOWN,
    NOT_FINITE,
    RISING,
    UNDEFINED,
    Exclusions,
    exclude_texts,
    repeated,
)
from lpsel.selection.length_matching import matched
from lpsel.selection.rules import Pick, Ranking
from lpsel.selection.spec import BUCKETS, SelectionSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """Result of a selection, with one entry per row of the table.

    Attributes:
        spec, pct: the rule with its settings, and the percentage.
        score: float64 (N,), NaN where undefined. The order of choice for a rule that picks rows without scoring them.
        descending: whether high scores are selected first.
        arbitrary: whether the scores are only an order (random, or of choice).
        odd: numbers of rows with an odd score: undefined, and of these with a record that is not finite; for scores
            in [0, 1], above 1 and below 0. With budget=exact, rows without a supervised token do not count.
        bucket: index in BUCKETS, int8 (N,), -1 for no bucket; None without buckets.
        rank: rank in the row's cluster in the order of selection, int32 (N,), from 1; 0 for rows that are not eligible
            or, for a rule that picks rows one after another, not picked.
        selected: bool (N,).
        reason: index in `reasons`, int32 (N,), -1 for an eligible row.
        reasons: why rows could not be selected.
        n_tied: number of rows tied at the cutoff, so that the tie-breaking order decided which of them are selected.
    """

    table: ScoreTable
    spec: SelectionSpec
    pct: float
    score: Floats
    descending: bool
    arbitrary: bool
    odd: dict[str, int]
    bucket: NDArray[np.int8] | None
    rank: NDArray[np.int32]
    selected: NDArray[np.bool_]
    reason: NDArray[np.int32]
    reasons: tuple[str, ...]
    n_tied: int

    @property
    def n_total(self) -> int:
        return len(self.table)

    @property
    def n_eligible(self) -> int:
        return int((self.reason < 0).sum())

    @property
    def n_selected(self) -> int:
        return int(self.selected.sum())

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows that could not be selected, by reason."""
        count = np.bincount(self.reason[self.reason >= 0], minlength=len(self.reasons))
        return dict(zip(self.reasons, count.tolist(), strict=True))

    def to_arrow(self) -> pa.Table:
        """The table of selection.parquet."""
        table, n = self.table, self.n_total
        columns = {
            "index": pa.array(table.index, pa.int64()),
            "id": pa.nulls(n, pa.string()) if table.id is None else table.id.cast(pa.string()),
            "score": to_arrow(self.score),
            "cluster": pa.nulls(n, pa.int32())
            if table.cluster is None
            else pa.array(table.cluster, pa.int32(), mask=~table.usable),
            "bucket": pa.nulls(n, pa.string()) if self.bucket is None else _texts(self.bucket, BUCKETS),
            "selected": pa.array(self.selected, pa.bool_()),
            "reason": _texts(self.reason, self.reasons),
            "rank": pa.array(self.rank, pa.int32(), mask=self.rank == 0),
            "nll_0": self._nll(0),
            "nll_1": self._nll(1),
            "response_tokens": pa.array(table.response_tokens, pa.int32(), mask=np.full(n, not table.tokens_known)),
        }
        return pa.table(columns)

    def _nll(self, epoch: int) -> pa.Array:
        return to_arrow(self.table.nll[epoch]) if epoch < len(self.table.nll) else pa.nulls(self.n_total, pa.float64())


class Choice(NamedTuple):
    """The rows that are selected if their number is given."""

    ranked: Ranked  # all eligible rows, by cluster, or by cluster and length
    rows: NDArray[np.int64]  # positions of the selected rows, int64 (n,)
    turn: NDArray[np.int64] | None = None  # their order of choice in each cluster, from 0, if the rule picks rows


def select(table: ScoreTable, spec: SelectionSpec, pct: float, seed: int) -> Selection:
    """Select pct percent of the rows by the rule's score, lowest first, within every cluster.

    budget=exact selects pct/100 x N rows, rounded half up (all eligible rows if there are fewer), allocated to clusters
    by largest remainder. Rows with an empty answer, no supervised token, fewer than min_response_tokens or an undefined
    score are not eligible. Ties are broken by content and by a hash of the cluster (`Ties`, `Ranked.order`).
    budget=paper follows the released code: it rounds up per cluster, undefined scores count as 0, only unusable rows,
    which have no text, are excluded, and ties go to the lower index.

    With a bucket, the score only assigns rows to thirds of their cluster. budget=exact then selects at random within
    the bucket, by content and seed; budget=paper selects the whole bucket.

    allocation=equal takes the same number from every cluster; allocation=cluster_mean weights it by size times mean
    hardness (`hardness_weights`). The excess over a cluster's size goes to the others. length=matched preserves the
    distribution of response lengths (`length_matching`).

    pct_of=tokens counts tokens of prompts and responses instead of rows: it selects the largest number of rows, at
    least one, with at most pct percent of all tokens.

    Raises:
        UserError: the percentage is invalid, there are too few epochs, or no row is eligible.
    """
    pct = spec.percentage(pct, len(table))
    spec.check_records(table)
    cluster = table.cluster if spec.clusters == "shared" else None
    exclusions = Exclusions(len(table))
    exclude_texts(table, spec, exclusions)
    ranking = spec.rank(table, seed)
    score, odd = _checked_scores(ranking, table, spec, exclusions)
    _exclude_known_and_rising(table, spec, exclusions)
    lowest_first = -score if ranking.descending else score
    key = lowest_first if ranking.score is not None else np.zeros(len(table))
    ties = Ties(table.id if spec.budget == "exact" else None, table.index)
    bucket = None
    if spec.bucket is not None:
        bucket = _bucket(score, cluster, ties, spec.bucket, exclusions)
        key = random_keys(table.id, table.index, seed)
    if spec.duplicates == "drop":
        exclusions.add(DUPLICATE, repeated(table, exclusions.eligible))

    exclusions.check(spec.name)
    eligible = exclusions.eligible
    in_clusters = rank_in_clusters(eligible, cluster, key, ties)

    def choose(n: int) -> Choice:
        ranked = in_clusters
        take_C = _rows_per_cluster(ranked, spec, pct, n, lowest_first)
        if spec.length == "matched":  # from here on, clusters are divided by length
            rows, cell = matched(eligible, key, table.response_tokens, ties, cluster, take_C)
            ranked = rank_in_clusters(eligible, cell, key, ties)
            take_C = np.bincount(np.searchsorted(ranked.cluster, cell[rows]), minlength=len(ranked.cluster))
        if ranking.pick is None:
            return Choice(ranked, ranked.first(take_C))
        rows, turn = _picked(ranking.pick, ranked, take_C)
        return Choice(ranked, rows, turn)

    if spec.pct_of == "tokens":
        n = _rows_of_tokens(table.prompt_tokens + table.response_tokens, pct, len(eligible), choose)
    elif spec.budget == "exact":
        n = min(budget.row_budget(pct, len(table)), len(eligible))
    else:
        n = 0  # not used: paper_shares computes the number in each cluster
    ranked, rows, turn = choose(n)
    selected, rank = np.zeros(len(table), np.bool_), np.zeros(len(table), np.int32)
    selected[rows] = True
    if turn is None:
        rank[ranked.row] = ranked.rank + 1
    else:
        rank[rows] = turn + 1
    if ranking.score is None:
        score[rows] = turn
    return Selection(
        table=table,
        spec=spec,
        pct=pct,
        score=score,
        descending=ranking.descending,
        arbitrary=ranking.arbitrary,
        odd=odd,
        bucket=bucket,
        rank=rank,
        selected=selected,
        reason=exclusions.code,
        reasons=tuple(exclusions.reasons),
        n_tied=0 if ranking.score is None else ranked.tied_at_cutoff(selected),
    )


def _exclude_known_and_rising(table: ScoreTable, spec: SelectionSpec, exclusions: Exclusions) -> None:
    nll_EN = spec.used(table).nll
    if spec.known == "drop":
        level = known_level(nll_EN, table.response_tokens > 0) if spec.known_level is None else spec.known_level
        exclusions.add(KNOWN, nll_EN[0] < level)
    if spec.rising == "drop":
        exclusions.add(RISING, rises(nll_EN))


def _checked_scores(
    ranking: Ranking, table: ScoreTable, spec: SelectionSpec, exclusions: Exclusions
) -> tuple[Floats, dict[str, int]]:
    """Set undefined scores to 0 or exclude their rows, depending on the budget, and count odd scores."""
    counted = exclusions.code < 0
    if spec.budget == "exact":
        for reason, excluded in ranking.excluded.items():
            exclusions.add(reason, excluded)
    if ranking.score is None:
        return np.full(len(table), np.nan), {}
    score = np.where(np.isfinite(ranking.score), ranking.score, np.nan)
    undefined = np.isnan(score)
    odd = {"undefined": undefined & counted}
    if spec.epochs is not None:
        odd["not_finite"] = odd["undefined"] & ~np.isfinite(table.nll[: spec.epochs + 1]).all(axis=0)
    if ranking.in_unit_interval:
        odd |= {"above_1": (score > 1) & counted, "below_0": (score < 0) & counted}
    if spec.budget == "paper":
        score[undefined] = 0.0
    else:
        # A NaN is a missing record and makes the score undefined.
        records = [*table.nll[: (spec.epochs or 0) + 1], *(table.columns[name] for name in spec.records)]
        exclusions.add(NOT_FINITE, undefined & np.any([np.isinf(record_N) for record_N in records], axis=0))
        exclusions.add(UNDEFINED, undefined)
    return score, {name: int(rows.sum()) for name, rows in odd.items()}


def _bucket(
    score: Floats, cluster: NDArray[np.int32] | None, ties: Ties, kept: str, exclusions: Exclusions
) -> NDArray[np.int8]:
    """Assign every row to a bucket, int8 (N,), and exclude rows that are not in `kept`."""
    ranked = rank_in_clusters(exclusions.eligible, cluster, score, ties)
    bucket = np.full(len(score), -1, np.int8)
    bucket[ranked.row] = budget.thirds(ranked)
    for code, name in enumerate(BUCKETS):
        if name != kept:
            exclusions.add(f"in bucket {name}", bucket == code)
    return bucket


def _rows_of_tokens(tokens_N: NDArray[np.int32], pct: float, most: int, choose: Callable[[int], Choice]) -> int:
    """Find the largest number of rows, from 1 to `most`, with at most pct percent of all tokens, by binary search."""
    limit = math.floor(budget.part_of(pct, int(tokens_N.sum())))

    def tokens_of(n: int) -> int:
        return int(tokens_N[choose(n).rows].sum())

    return max(1, bisect_right(range(1, most + 1), limit, key=tokens_of))


def _rows_per_cluster(ranked: Ranked, spec: SelectionSpec, pct: float, n: int, key_N: Floats) -> NDArray[np.int64]:
    """Number of rows to select from every cluster, int64 (C,); they add up to n with budget=exact.

    Args:
        key_N: scores, lowest first, by which allocation=cluster_mean weights clusters.
    """
    if spec.budget == "paper":
        return budget.paper_shares(ranked.size, pct) if spec.bucket is None else ranked.size
    if spec.allocation == "equal":
        return budget.capped_shares(np.ones(len(ranked.size)), ranked.size, n, ranked.order)
    if spec.allocation == "cluster_mean":
        weight_C = budget.hardness_weights(ranked, key_N[ranked.row])
        return budget.capped_shares(weight_C, ranked.size, n, ranked.order)
    return budget.exact_shares(ranked.size, n, ranked.order)


def _picked(pick: Pick, ranked: Ranked, take_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that a rule picks from every cluster, and their order of choice within it, from 0; int64 (n,) each."""
    end_C = np.cumsum(ranked.size)
    picked_before_C = np.cumsum(take_C) - take_C
    picked, turn = [], []
    for c, take in enumerate(take_C.tolist()):
        if take > 0:
            rows = ranked.row[end_C[c] - ranked.size[c] : end_C[c]]
            picked.append(pick(rows, take, int(picked_before_C[c])))
            turn.append(np.arange(take))
    return np.concatenate(picked), np.concatenate(turn)


def _texts(codes: NDArray[np.signedinteger], texts: tuple[str, ...]) -> pa.Array:
    indices = pa.array(codes, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string())).cast(pa.string())
