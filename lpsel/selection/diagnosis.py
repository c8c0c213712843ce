"""Diagnose a selection: what its score correlates with, and how many selected rows are known, rising or duplicates.

N rows, M rows with a score, C clusters, F columns that the score is compared with
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import rankdata

from lpsel.clustering.near_duplicates import SIMILAR, NearDuplicates
from lpsel.scoring.metrics import known_level, rises
from lpsel.scoring.table import ScoreTable
from lpsel.selection.agreement import spearman
from lpsel.selection.select import Selection

MOST_ROWS = 200_000  # larger tables are sampled: sorting all rows would take longer than the selection
STRONG = 0.5  # smallest correlation that causes a warning
MANY_KNOWN, MANY_RISING, MANY_DUPLICATES, MANY_LEARNED = 0.1, 0.01, 0.01, 0.75  # same, as fractions of selected rows

Lengths = Mapping[str, NDArray[np.int32]]  # by column name


def diagnosis(selection: Selection, characters_2N: NDArray[np.int32], near: NearDuplicates) -> dict[str, Any]:
    """Diagnose a selection for result.json; correlations are None if the scores are arbitrary.

    Args:
        characters_2N: characters of the prompt and the response of every row, used without token counts.
        near: near-duplicates among the selected rows with different content.
    """
    table, selected = selection.spec.used(selection.table), selection.selected
    unit = "tokens" if table.tokens_known else "characters"
    prompt_N, response_N = (table.prompt_tokens, table.response_tokens) if table.tokens_known else characters_2N
    scored = selection.reason < 0 if selection.bucket is None else selection.bucket >= 0
    rows = np.flatnonzero(scored & ~np.isnan(selection.score) & (table.response_tokens > 0))
    correlations: dict[str, Any] = {"spearman": None, "clusters": None}
    if not selection.arbitrary:
        lengths = {f"response_{unit}": response_N, f"prompt_{unit}": prompt_N}
        correlations = score_correlations(selection.score, table, rows, lengths)
    values = {
        "rows": len(rows),
        **correlations,
        "median_response": {
            "unit": unit,
            "selected": float(np.median(response_N[selected])),
            "all": float(np.median(response_N[table.usable])),
        },
        **learned_and_rising(table, selected, selection.spec.known_level),
        "duplicates": duplicates(table, selected),
        "near_duplicates": near.rows,
        "near_duplicates_among": near.compared,
    }
    return values | {"warnings": list(_warnings(selection, values))}


def score_correlations(
    score_N: NDArray[np.float64], table: ScoreTable, rows: NDArray[np.int64], lengths: Lengths
) -> dict[str, Any]:
    """Spearman's correlation of the score with lengths and `nll_0`, and the variance of its ranks between clusters.

    Computed on a random sample of at most MOST_ROWS rows. NaN if a column is constant. Negative numbers mean no
    cluster.

    Args:
        rows: positions of the rows with a score.

    Returns:
        `spearman`, by column, and `clusters`, the `explained_by_clusters`; None without clusters.
    """
    if len(rows) > MOST_ROWS:
        rows = np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False)
    columns: dict[str, NDArray[Any]] = dict(lengths)
    if len(table.nll):
        columns["nll_0"] = table.nll[0]
    score_and_columns = np.array([score_N[rows], *(column_N[rows] for column_N in columns.values())])
    correlations = spearman(score_and_columns)[0, 1:]
    clusters = None
    if table.cluster is not None:
        inside = rows[table.cluster[rows] >= 0]
        clusters = explained_by_clusters(score_N[inside], table.cluster[inside])
    return {"spearman": dict(zip(columns, correlations.tolist(), strict=True)), "clusters": clusters}


def explained_by_clusters(score_M: NDArray[np.float64], cluster_M: NDArray[np.int32]) -> float:
    """Fraction of the variance of the score's ranks that is between clusters, corrected for chance.

    Kelley's epsilon squared (1935): 1 - (1 - eta^2) (M - 1) / (M - C), 0 for unrelated clusters. NaN if there is one
    cluster, or one per row.
    """
    _, code_M, size_C = np.unique(cluster_M, return_inverse=True, return_counts=True)
    m, c = len(code_M), len(size_C)
    deviation_M = rankdata(score_M) - (m + 1) / 2
    total = (deviation_M**2).sum()
    if not 1 < c < m or total == 0:
        return float("nan")
    between = (np.bincount(code_M, weights=deviation_M) ** 2 / size_C).sum()
    return float(1 - (1 - between / total) * (m - 1) / (m - c))


def learned_and_rising(table: ScoreTable, selected_N: NDArray[np.bool_], level: float | None = None) -> dict[str, Any]:
    """Count selected rows that were known before training, were learned in training, or have a rising loss.

    A row is learned if its loss after training is below the median of all rows, `known_level`. It is known if its loss
    before training is below `level`, by default the same median. `rises` defines rising. None without recorded epochs.
    """
    if not table.epochs:
        return dict.fromkeys(("known", "learned", "known_level", "rising"))
    median = known_level(table.nll, table.response_tokens > 0)
    level = median if level is None else level
    nll_EM = table.nll[:, selected_N]
    counts = {"known": nll_EM[0] < level, "learned": nll_EM[-1] < median, "rising": rises(nll_EM)}
    return {"known_level": level, **{name: int(rows.sum()) for name, rows in counts.items()}}


def duplicates(table: ScoreTable, selected_N: NDArray[np.bool_]) -> int | None:
    """Number of selected rows that repeat the content of an earlier selected row; None without content ids."""
    if table.id is None:
        return None
    return int(selected_N.sum()) - pc.count_distinct(table.id.filter(pa.array(selected_N))).as_py()


def count_clusters(cluster: NDArray[np.int32]) -> int:
    """Number of clusters; negative numbers mean no cluster."""
    return pc.count_distinct(pa.array(cluster[cluster >= 0])).as_py()


def _warnings(selection: Selection, values: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about the selection, each with an option that addresses it and is not set yet."""
    spec, n = selection.spec, selection.n_selected
    exact = "selection.budget=exact " if spec.budget == "paper" else ""  # required by the options below
    if selection.n_tied >= n and n < selection.n_eligible and not selection.arbitrary:
        yield (
            f"{selection.n_tied:,} rows are tied at the cutoff, and {n:,} rows are selected: which of the tied ones is "
            "arbitrary, by a hash of their content. Another selection= or more recorded epochs may rank them."
        )
    if selection.table.cluster is not None and spec.clusters == "shared":
        clusters = count_clusters(selection.table.cluster)
        if n < clusters:
            empty = clusters - count_clusters(selection.table.cluster[selection.selected])
            yield (
                f"{empty:,} of {clusters:,} clusters have no selected row, since only {n:,} rows are "
                "selected. Set a smaller cluster.n_clusters, or a larger pct."
            )
    correlations, median = values["spearman"] or {}, values["median_response"]
    by_length = correlations.get(f"response_{median['unit']}", 0.0)
    if abs(by_length) >= STRONG and spec.length != "matched" and not spec.rule.uses_lengths:
        yield (
            f"The score correlates with the length of responses (Spearman {by_length:.2f}): the median is "
            f"{median['selected']:,.0f} {median['unit']} for the selected rows and {median['all']:,.0f} for all rows. "
            f"{exact}selection.length=matched compares rows of similar length."
        )
    by_loss = correlations.get("nll_0", 0.0) * (-1 if selection.descending else 1)
    if by_loss >= STRONG and not spec.relative:
        yield (
            f"The score correlates with the loss before training (Spearman {by_loss:.2f}): rows that the base model "
            "already knows are selected as hard. selection=lp_app_nll ranks by the relative drop in loss."
        )
    option = None  # that selects rows that are learned late
    if spec.bucket in ("mid", "high"):
        option = "selection.bucket=low"
    elif not spec.relative:
        option = "selection=lp_app_nll"
    learned = values["learned"] or 0
    if learned >= MANY_LEARNED * n and option and not selection.arbitrary:
        yield (
            f"{learned:,} of {n:,} selected rows have a loss below the median of all rows after training: the scorer "
            f"learns them early, and a target needs few of them. {option} selects rows that are learned late."
        )
    known = f"had a loss below {values['known_level'] or 0:.3g} before training, the median after it"
    for name, many, property_of_rows in (
        ("known", MANY_KNOWN, known),
        ("rising", MANY_RISING, "have a loss that rose above its initial value in training, often a sign of noise"),
        ("duplicates", MANY_DUPLICATES, "have the same content as another selected row"),
    ):
        count = values[name] or 0
        if count >= many * n:
            yield f"{count:,} of {n:,} selected rows {property_of_rows}. {exact}selection.{name}=drop leaves them out."
    similar, among = values["near_duplicates"], values["near_duplicates_among"]
    if similar and similar >= MANY_DUPLICATES * among and not spec.rule.picks_rows:
        sampled = " (a random sample)" if among < n - (values["duplicates"] or 0) else ""
        yield (
            f"{similar:,} of {among:,} different selected rows{sampled} are near-duplicates of another one: at least "
            f"{SIMILAR:.0%} of their word triples are the same. {exact}selection=k_center selects rows that differ."
        )
