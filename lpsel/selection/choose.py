"""Choosing: a table of scores, a rule and a share give the chosen rows, and the reason of every row that could not be.

N rows
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.errors import UserError
from lpsel.selection.budget import exact_shares, paper_shares, rank_in_clusters, rows_of, thirds
from lpsel.selection.hashing import random_place
from lpsel.selection.spec import BUCKETS, SelectionSpec
from lpsel.selection.table import ScoreTable

NO_SUPERVISED_TOKEN = "no supervised token"
UNDEFINED = "score is undefined"


@dataclass(frozen=True)
class Selection:
    """The result, one entry per row of the table.

    Attributes:
        rule, pct, budget: what was asked for; pct in percent.
        index, id, cluster: as in the table.
        score: float64 (N,), NaN where undefined.
        bucket: place in BUCKETS, int8 (N,), -1 for none; None without buckets.
        selected: bool (N,).
        reason: place in `reasons`, int8 (N,), -1 for a row that could be chosen.
        reasons: why rows could not be chosen.
    """

    rule: str
    pct: float
    budget: str
    index: NDArray[np.int64]
    id: Any
    cluster: NDArray[np.int32] | None
    score: NDArray[np.float64]
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

    Args:
        pct: share of the table in percent.
        seed: of all that is random.

    Raises:
        UserError: no such share, too few epochs, or no row that could be chosen.
    """
    pct = spec.share(pct, len(table))
    if table.epochs < spec.epochs:
        raise UserError(
            f"selection={spec.name}: needs {spec.epochs} recorded epochs, these scores have {table.epochs}. Score "
            f"again with scorer.recipe.epochs={spec.epochs}, or choose a rule that needs fewer (lp_app: 1, random: 0)."
        )
    ranking = spec.rule(table.first_epochs(spec.epochs), seed=seed)
    score, key = ranking.score, ranking.score
    reasons = _Reasons(len(table))
    if spec.budget == "paper":
        score = key = np.where(np.isfinite(score), score, 0.0)
    else:
        score = key = np.where(np.isfinite(score), score, np.nan)
        reasons.add(NO_SUPERVISED_TOKEN, table.response_tokens == 0)
        for text, excluded in ranking.excluded.items():
            reasons.add(text, excluded)
        reasons.add(UNDEFINED, np.isnan(score))

    bucket = None
    if spec.bucket is not None:
        ranked = rank_in_clusters(reasons.none(), table.cluster, score, table.index)
        bucket = np.full(len(table), -1, np.int8)
        bucket[ranked.row] = thirds(ranked)
        for code, name in enumerate(BUCKETS):
            if name != spec.bucket:
                reasons.add(f"in bucket {name}", bucket == code)
        key = random_place(table, seed)

    eligible = reasons.none()
    if not len(eligible):
        why = ", ".join(reasons.texts)
        raise UserError(
            f"selection={spec.name}: none of {len(table)} rows can be chosen ({why}). Give other data or scores."
        )
    ranked = rank_in_clusters(eligible, table.cluster, key, table.index)
    if spec.budget == "exact":
        take = exact_shares(ranked.size, min(rows_of(pct, len(table)), len(eligible)))
    elif spec.bucket is None:
        take = paper_shares(ranked.size, pct)
    else:
        take = ranked.size
    selected = np.zeros(len(table), np.bool_)
    selected[ranked.first(take)] = True
    return Selection(
        rule=spec.name,
        pct=pct,
        budget=spec.budget,
        index=table.index,
        id=table.id,
        cluster=table.cluster,
        score=score,
        bucket=bucket,
        selected=selected,
        reason=reasons.code,
        reasons=tuple(reasons.texts),
    )


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
