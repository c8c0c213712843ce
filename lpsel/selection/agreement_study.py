"""Compute the numbers of the agreement report from tables of scores of the same rows.

N rows, R of them compared, S scorers (tables), M metrics, C clusters, P percentages
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.errors import UserError
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.table import ScoreTable
from lpsel.selection.agreement import Agreement, agreement, agreement_in_clusters, auc, lowest, tie_turns
from lpsel.selection.budget import row_budget
from lpsel.selection.diagnosis import count_clusters, duplicates, learned_and_rising, score_correlations

if TYPE_CHECKING:
    from lpsel.clustering.near_duplicates import NearDuplicates

ALL, DEFINED = "all", "defined"  # the rows compared


@dataclass(frozen=True)
class Study:
    """S scorers compared on N rows."""

    names: list[str]
    tables: list[ScoreTable]
    epochs: int  # epochs recorded in every table, n in the formulas
    metrics: list[str]  # keys of METRICS that need at most `epochs` epochs
    pcts: list[float]
    scores: NDArray[np.float64]  # (M, S, N), NaN where undefined
    turn: NDArray[np.int64]  # tie-breaking order of `tie_turns`, (N,)
    defined: NDArray[np.bool_]  # with a supervised token, an answer, and a score by every metric and table, (N,)
    lowest: NDArray[np.bool_]  # lowest of the defined rows by metric, table and percentage, (M, S, P, N)
    cluster: NDArray[np.int32] | None
    between: dict[tuple[str, str], Agreement]  # between scorers, by (metric, rows), where rows is ALL or DEFINED
    in_clusters: dict[tuple[str, str], list[Agreement]]  # for every large enough cluster; empty without clusters

    @property
    def named_tables(self) -> list[tuple[str, ScoreTable]]:
        return list(zip(self.names, self.tables, strict=True))

    @property
    def rows(self) -> dict[str, NDArray[np.bool_]]:
        """Masks of the rows that are compared, (N,), by DEFINED or ALL."""
        return {DEFINED: self.defined, ALL: np.ones_like(self.defined)}

    def filled(self, rows: str) -> NDArray[np.float64]:
        """Scores of the rows ALL or DEFINED, (M, S, R); undefined scores are 0, as in the paper's released code."""
        return np.nan_to_num(self.scores[:, :, self.rows[rows]], nan=0.0)


def study(
    names: Sequence[str], tables: Sequence[ScoreTable], pcts: Sequence[float], cluster: NDArray[np.int32] | None = None
) -> Study:
    """Compare tables of the same rows.

    Raises:
        UserError: a table has no recorded epoch, fewer than two rows are defined in all tables, or a percentage is
            less than half a row.
    """
    epochs = min(table.epochs for table in tables)
    if epochs < 1:
        name = names[[table.epochs for table in tables].index(0)]
        raise UserError(name, None, "has no records after an epoch", "use scores with nll_0 and nll_1 (or ppl)")
    metrics = [name for name, metric in METRICS.items() if epochs >= metric.epochs]
    first = [table.first_epochs(epochs) for table in tables]
    scores_MSN = np.array([[learning_percentage(table, metric) for table in first] for metric in metrics])
    defined_N = np.isfinite(scores_MSN).all(axis=(0, 1)) & np.all([t.response_tokens > 0 for t in tables], axis=0)
    defined_N &= ~np.any([table.empty_answer for table in tables if table.empty_answer is not None], axis=0)
    if defined_N.sum() < 2:
        problem = f"{int(defined_N.sum())} rows have a score in all tables"
        raise UserError(", ".join(names), None, problem, "use tables with scores of the same rows")
    for pct in pcts:
        row_budget(pct, int(defined_N.sum()))
    turn_N = tie_turns(tables)
    low_MSPN = np.zeros((len(metrics), len(tables), len(pcts), len(turn_N)), np.bool_)
    for m, scores_SN in enumerate(scores_MSN):
        for p, pct in enumerate(pcts):
            low_MSPN[m][:, p, defined_N] = lowest(scores_SN[:, defined_N], pct, turn_N[defined_N])
    result = Study(
        names=list(names),
        tables=list(tables),
        epochs=epochs,
        metrics=metrics,
        pcts=list(pcts),
        scores=scores_MSN,
        turn=turn_N,
        defined=defined_N,
        lowest=low_MSPN,
        cluster=cluster,
        between={},
        in_clusters={},
    )
    for rows, mask_N in result.rows.items():
        for metric, scores_SN in zip(metrics, result.filled(rows), strict=True):
            turn_R = turn_N[mask_N]
            result.between[metric, rows] = agreement(scores_SN, pcts, turn_R)
            if cluster is not None:
                result.in_clusters[metric, rows] = agreement_in_clusters(scores_SN, cluster[mask_N], pcts, turn_R)
    return result


def numbers(
    study: Study, characters_2N: NDArray[np.int32] | None = None, near: "Sequence[NearDuplicates] | None" = None
) -> dict[str, Any]:
    """Convert a study to plain values for agreement.json, one entry per table line; undefined values are NaN.

    Args:
        characters_2N: characters of the prompt and the response of every row, used without token counts.
        near: near-duplicates among the lowest rows, in the order of `Study.lowest`.
    """
    clusters = None
    if study.cluster is not None:
        clusters = {"clusters": count_clusters(study.cluster), "rows_in_none": int((study.cluster < 0).sum())}
    return {
        "n": len(study.defined),
        "n_defined": int(study.defined.sum()),
        "epochs": study.epochs,
        "metrics": study.metrics,
        "pct": study.pcts,
        "clusters": clusters,
        "notes": list(_notes(study)),
        "tables": [_table(name, table, study.scores[:, s]) for s, (name, table) in enumerate(study.named_tables)],
        "pairs": list(_pairs(study)),
        "within": list(_within(study)),
        "diagnosis": list(_diagnosis(study, characters_2N, near)),
    }


def _notes(study: Study) -> Iterator[str]:
    """Explain which comparisons are missing, and why."""
    needed = METRICS["lp"].epochs
    if study.epochs < needed:
        fewest = [name for name, table in study.named_tables if table.epochs == study.epochs]
        yield f"LP needs at least {needed} recorded epochs and {', '.join(fewest)} has 1: LP_app only."
    elif len({table.epochs for table in study.tables}) > 1:
        yield f"LP is computed over {study.epochs} epochs, which all tables have."
    if study.cluster is not None and not any(study.in_clusters.values()):
        yield "No cluster has enough rows for a comparison of its own."


def _table(name: str, table: ScoreTable, scores_MN: NDArray[np.float64]) -> dict[str, Any]:
    empty_N = table.response_tokens == 0
    return {
        "name": name,
        "rows": len(table),
        "epochs": table.epochs,
        "rows_without_supervised_token": int(empty_N.sum()),
        "rows_otherwise_undefined": int((~np.isfinite(scores_MN).all(axis=0) & ~empty_N).sum()),
        "tokens_known": table.tokens_known,
    }


def _pairs(study: Study) -> Iterator[dict[str, Any]]:
    """Agreement of every two tables by the same metric."""
    for (metric, rows), between in study.between.items():
        clusters = study.in_clusters.get((metric, rows))
        for a, b in combinations(range(len(study.names)), 2):
            in_clusters = _pair_in_clusters(clusters, study.pcts, a, b) if clusters else None
            pair = _pair(study.names, between, study.pcts, a, b)
            yield {"metric": metric, "rows": rows, **pair, "in_clusters": in_clusters}


def _within(study: Study) -> Iterator[dict[str, Any]]:
    """Agreement of every two metrics of the same table."""
    for rows, mask_N in study.rows.items():
        for name, scores_MN in zip(study.names, study.filled(rows).swapaxes(0, 1), strict=True):
            between = agreement(scores_MN, study.pcts, study.turn[mask_N])
            for a, b in combinations(range(len(study.metrics)), 2):
                yield {"table": name, "rows": rows, **_pair(study.metrics, between, study.pcts, a, b)}


def _pair(names: Sequence[str], between: Agreement, pcts: Sequence[float], a: int, b: int) -> dict[str, Any]:
    return {
        "n": between.n,
        "a": names[a],
        "b": names[b],
        "spearman": float(between.spearman[a, b]),
        "kendall_tau_b": float(between.kendall[a, b]),
        "lowest": [
            {
                "pct": pct,
                "rows": int(between.lowest[p]),
                "common": int(between.common[p, a, b]),
                "share": float(between.share[p, a, b]),
                "chance": float(between.chance[p, a, b]),
            }
            for p, pct in enumerate(pcts)
        ],
    }


def _pair_in_clusters(clusters: Sequence[Agreement], pcts: Sequence[float], a: int, b: int) -> dict[str, Any]:
    """Quartiles over the clusters in which a value is defined, and the overlap over all clusters."""
    share_CP = np.array([c.share[:, a, b] for c in clusters])
    lowest_P = np.sum([c.lowest for c in clusters], axis=0)
    with np.errstate(invalid="ignore"):
        pooled_P = np.sum([c.common[:, a, b] for c in clusters], axis=0) / lowest_P
        chance_P = np.nansum([c.lowest * c.chance[:, a, b] for c in clusters], axis=0) / lowest_P
    return {
        "clusters": len(clusters),
        "spearman": _quartiles([c.spearman[a, b] for c in clusters]),
        "kendall_tau_b": _quartiles([c.kendall[a, b] for c in clusters]),
        "lowest": [
            {"pct": pct, **_quartiles(share_CP[:, p]), "pooled": float(pooled_P[p]), "chance": float(chance_P[p])}
            for p, pct in enumerate(pcts)
        ],
    }


def _quartiles(values_C: ArrayLike) -> dict[str, float]:
    values_C = np.asarray(values_C)[np.isfinite(values_C)]
    quartiles = np.quantile(values_C, [0.25, 0.5, 0.75]) if len(values_C) else [math.nan] * 3
    return dict(zip(("lower_quartile", "median", "upper_quartile"), map(float, quartiles), strict=True))


def _diagnosis(
    study: Study, characters_2N: NDArray[np.int32] | None, near: "Sequence[NearDuplicates] | None"
) -> Iterator[dict[str, Any]]:
    """What each score correlates with, and properties of its lowest rows, over rows with a score in every table."""
    rows = np.flatnonzero(study.defined)
    n_metrics, n_tables, n_pcts, _ = study.lowest.shape
    near_MSP2 = None if near is None else np.array(near, np.int64).reshape(n_metrics, n_tables, n_pcts, 2).tolist()
    for s, (name, table) in enumerate(study.named_tables):
        unit = "tokens" if table.tokens_known else "characters"
        sides = (table.prompt_tokens, table.response_tokens) if table.tokens_known else characters_2N
        lengths = {} if sides is None else {f"response_{unit}": sides[1], f"prompt_{unit}": sides[0]}
        clustered = replace(table, cluster=study.cluster)
        for m, metric in enumerate(study.metrics):
            used = table.first_epochs(1 if METRICS[metric].epochs == 1 else study.epochs)  # by the formula
            correlations = score_correlations(study.scores[m, s], clustered, rows, lengths)
            lowest_P = []
            for p, pct in enumerate(study.pcts):
                properties = {"pct": pct, **_lowest(study.lowest[m, s, p], used, study.defined)}
                if near_MSP2 is not None:
                    properties["near_duplicates"], properties["near_duplicates_among"] = near_MSP2[m][s][p]
                lowest_P.append(properties)
            yield {"table": name, "metric": metric, "n": len(rows), **correlations, "lowest": lowest_P}


def _lowest(low_N: NDArray[np.bool_], table: ScoreTable, defined_N: NDArray[np.bool_]) -> dict[str, Any]:
    """Numbers of known, rising and repeated rows among the lowest and, with token counts, their lengths."""
    counts = {"rows": int(low_N.sum()), **learned_and_rising(table, low_N), "duplicates": duplicates(table, low_N)}
    if not table.tokens_known:
        return counts
    length_N = table.response_tokens
    return counts | {
        "auc": auc(length_N[defined_N], low_N[defined_N]),
        "mean_tokens": float(length_N[low_N].mean()),
        "mean_tokens_all": float(length_N[defined_N].mean()),
    }
