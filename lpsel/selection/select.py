"""Choosing: a table of scores, a rule and a share give the chosen rows, and the reason of every row that could not be.

N rows
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import (
    Ranked,
    capped_shares,
    exact_shares,
    hardness_weights,
    paper_shares,
    rank_in_clusters,
    rows_of,
    thirds,
)
from lpsel.selection.length_matching import matched
from lpsel.selection.rules import Greedy, Ranking
from lpsel.selection.spec import BUCKETS, SelectionSpec

NO_SUPERVISED_TOKEN = "no supervised token"
NOT_FINITE = "nll is not finite"
UNDEFINED = "score is undefined"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Selection:
    """The result, one entry per row of the table.

    Attributes:
        rule, pct, budget, settings: what was asked for; pct in percent.
        index, id, cluster: as in the table.
        score: float64 (N,), NaN where undefined. Of a rule that picks rows one after another the turn of the picked.
        descending: whether high scores are chosen first.
        arbitrary: whether scores say nothing of the rows, as those of a draw or the turns of picks.
        odd: rows by what is odd about their score: undefined, and of these with a record that is not finite; where
            the rule's scores are shares, above 1 and below 0. Rows without a supervised token, which never count
            with budget=exact, are not counted there.
        bucket: place in BUCKETS, int8 (N,), -1 for none; None without buckets.
        selected: bool (N,).
        reason: place in `reasons`, int8 (N,), -1 for a row that could be chosen.
        reasons: why rows could not be chosen.
    """

    rule: str
    pct: float
    budget: str
    settings: dict[str, Any]
    index: NDArray[np.int64]
    id: Any
    cluster: NDArray[np.int32] | None
    score: NDArray[np.float64]
    descending: bool
    arbitrary: bool
    odd: dict[str, int]
    bucket: NDArray[np.int8] | None
    selected: NDArray[np.bool_]
    reason: NDArray[np.int8]
    reasons: tuple[str, ...]

    @property
    def n_total(self) -> int:
        return len(self.index)

    @property
    def n_eligible(self) -> int:
        return int((self.reason < 0).sum())

    @property
    def n_selected(self) -> int:
        return int(self.selected.sum())

    @property
    def counts(self) -> dict[str, int]:
        """Rows that could not be chosen, by reason; reasons that no row has are left out."""
        found = np.bincount(self.reason[self.reason >= 0], minlength=len(self.reasons))
        return {text: int(count) for text, count in zip(self.reasons, found, strict=True) if count}

    def to_arrow(self) -> pa.Table:
        """The table of selection.parquet."""
        n = self.n_total
        columns = {
            "index": pa.array(self.index, pa.int64()),
            "id": pa.nulls(n, pa.string()) if self.id is None else self.id.cast(pa.string()),
            "score": pa.array(self.score, pa.float64(), mask=np.isnan(self.score)),
            "cluster": pa.nulls(n, pa.int32()) if self.cluster is None else pa.array(self.cluster, pa.int32()),
            "bucket": pa.nulls(n, pa.string()) if self.bucket is None else _texts(self.bucket, BUCKETS),
            "selected": pa.array(self.selected, pa.bool_()),
            "reason": _texts(self.reason, self.reasons),
        }
        return pa.table(columns)


def select(table: ScoreTable, spec: SelectionSpec, pct: float, seed: int) -> Selection:
    """Choose rows: pct of the table, by the rule's score inside every cluster, lowest first, ties by index.

    budget=exact chooses pct/100 x N rows, rounded half up (all eligible ones where they are fewer), shared over
    clusters by largest remainder; rows without a supervised token or whose score is undefined are not eligible.
    budget=paper is the released behaviour: a ceiling per cluster, an undefined score counts as 0, nothing is left out.

    With a bucket, the score only decides which third of its cluster a row is in. budget=exact then chooses at random
    inside the bucket asked for, by content and seed; budget=paper takes the whole bucket.

    allocation=equal gives every cluster the same number, allocation=cluster_mean its size times its mean hardness
    (`hardness_weights`); what a cluster is too small for goes to the others. length=matched keeps the lengths of
    responses (`lengths`).

    Args:
        pct: share of the table in percent.
        seed: of all that is random.

    Raises:
        UserError: no such share, too few epochs, or no row that could be chosen.
    """
    pct = spec.share(pct, len(table))
    spec.check_records(table)
    cluster = table.cluster if spec.clusters == "shared" else None
    ranking = spec.rule(table if spec.epochs is None else table.first_epochs(spec.epochs), seed=seed)
    reasons = _Reasons(len(table))
    if spec.budget == "exact":
        reasons.add(NO_SUPERVISED_TOKEN, table.response_tokens == 0)
    if isinstance(ranking, Ranking):
        scores = _Scores.of(ranking, table, spec, reasons)
    elif ranking.score is None:
        scores = _Scores.unknown(len(table))
    else:
        scores = _Scores.of(Ranking(ranking.score, descending=True), table, spec, reasons)

    bucket, key = None, scores.key
    if spec.bucket is not None:
        ranked = rank_in_clusters(reasons.none(), cluster, scores.score, table.index)
        bucket = np.full(len(table), -1, np.int8)
        bucket[ranked.row] = thirds(ranked)
        for code, name in enumerate(BUCKETS):
            if name != spec.bucket:
                reasons.add(f"in bucket {name}", bucket == code)
        key = random_keys(table.id, table.index, seed)
    if spec.duplicates == "drop":
        reasons.add(DUPLICATE, _repeated(table, reasons.none(), spec))

    eligible = reasons.none()
    if not len(eligible):
        why = ", ".join(reasons.texts)
        raise UserError(
            f"selection={spec.name}: none of {len(table)} rows can be chosen ({why}). Give other data or scores."
        )
    ranked = rank_in_clusters(eligible, cluster, key, table.index)
    take = _shares(ranked, spec, pct, len(table), scores.key)
    selected = np.zeros(len(table), np.bool_)
    if isinstance(ranking, Greedy):
        _pick(ranking, ranked, take, scores.score if ranking.score is None else None, selected)
    elif spec.length == "matched":
        selected[matched(eligible, key, table.response_tokens, table.index, cluster, take)] = True
    else:
        selected[ranked.first(take)] = True
    return Selection(
        rule=spec.name,
        pct=pct,
        budget=spec.budget,
        settings=spec.settings,
        index=table.index,
        id=table.id,
        cluster=table.cluster,
        score=scores.score,
        descending=scores.descending,
        arbitrary=ranking.arbitrary if isinstance(ranking, Ranking) else ranking.score is None,
        odd=scores.odd,
        bucket=bucket,
        selected=selected,
        reason=reasons.code,
        reasons=tuple(reasons.texts),
    )


def _shares(ranked: Ranked, spec: SelectionSpec, pct: float, n_total: int, key_N: NDArray[np.float64]) -> Any:
    """How many rows to take of every cluster, int64 (C,)."""
    if spec.budget == "paper":
        return paper_shares(ranked.size, pct) if spec.bucket is None else ranked.size
    n = min(rows_of(pct, n_total), len(ranked.row))
    if spec.allocation == "equal":
        return capped_shares(np.ones(len(ranked.size)), ranked.size, n)
    if spec.allocation == "cluster_mean":
        return capped_shares(hardness_weights(ranked, key_N[ranked.row]), ranked.size, n)
    return exact_shares(ranked.size, n)


def _pick(
    greedy: Greedy,
    ranked: Ranked,
    take_C: NDArray[np.int64],
    turn_N: NDArray[np.float64] | None,
    selected_N: NDArray[np.bool_],
) -> None:
    """Let a rule pick its share of every cluster, and note each picked row and its turn there."""
    ends = np.cumsum(ranked.size)
    for start, end, take in zip((ends - ranked.size).tolist(), ends.tolist(), take_C.tolist(), strict=True):
        if take:
            picked = greedy.pick(ranked.row[start:end], take)
            if turn_N is not None:
                turn_N[picked] = np.arange(take)
            selected_N[picked] = True


def _repeated(table: ScoreTable, rows_M: NDArray[np.int64], spec: SelectionSpec) -> NDArray[np.bool_]:
    """Rows whose content stands in an earlier one of `rows_M` too, bool (N,)."""
    if table.id is None:
        raise UserError(f"selection.duplicates={spec.duplicates}: these rows have no content ids to compare.")
    code_M = table.id.dictionary_encode().indices.to_numpy()[rows_M]
    order_M = np.lexsort((table.index[rows_M], code_M))
    repeated_N = np.zeros(len(table), np.bool_)
    repeated_N[rows_M[order_M[1:][np.diff(code_M[order_M]) == 0]]] = True
    return repeated_N


@dataclass(frozen=True)
class _Scores:
    """Scores and, from them, the key by which rows are chosen, the lowest first, float64 (N,) each."""

    score: NDArray[np.float64]
    key: NDArray[np.float64]
    descending: bool
    odd: dict[str, int]

    @classmethod
    def unknown(cls, n: int) -> "_Scores":
        return cls(np.full(n, np.nan), np.zeros(n), False, {})

    @classmethod
    def of(cls, ranking: Ranking, table: ScoreTable, spec: SelectionSpec, reasons: "_Reasons") -> "_Scores":
        """The ranking with its odd rows counted, and put in order as the budget says: made 0, or left out."""
        score = np.where(np.isfinite(ranking.score), ranking.score, np.nan)
        undefined, counted = np.isnan(score), reasons.code < 0
        odd = {"undefined": undefined & counted}
        if spec.epochs is not None:
            odd["not_finite"] = odd["undefined"] & ~np.isfinite(table.nll[: spec.epochs + 1]).all(axis=0)
        if ranking.unit:
            odd |= {"above_1": (score > 1) & counted, "below_0": (score < 0) & counted}
        if spec.budget == "paper":
            score[undefined] = 0.0
        else:
            for text, excluded in ranking.excluded.items():
                reasons.add(text, excluded)
            # NaN, which stands for no record, makes a score undefined like any other.
            reasons.add(NOT_FINITE, undefined & np.isinf(table.nll[: (spec.epochs or 0) + 1]).any(axis=0))
            reasons.add(UNDEFINED, undefined)
        key = -score if ranking.descending else score
        return cls(score, key, ranking.descending, {name: int(rows.sum()) for name, rows in odd.items()})


class _Reasons:
    """Why rows cannot be chosen; the first reason that is given for a row stays."""

    def __init__(self, n: int) -> None:
        self.code = np.full(n, -1, np.int8)
        self.texts: list[str] = []

    def add(self, text: str, rows: NDArray[np.bool_]) -> None:
        new = rows & (self.code < 0)
        if new.any():
            self.code[new] = len(self.texts)
            self.texts.append(text)

    def none(self) -> NDArray[np.int64]:
        """Positions of the rows that nothing has been said of."""
        return np.flatnonzero(self.code < 0)


def _texts(codes: NDArray[np.int8], texts: tuple[str, ...]) -> pa.Array:
    indices = pa.array(codes, pa.int8(), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string())).cast(pa.string())
