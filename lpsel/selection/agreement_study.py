"""Everything the agreement report says, computed from tables of the same rows. Pure numbers, no I/O.

N rows, S scorers (tables), M metrics
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.errors import UserError
from lpsel.scoring.metrics import METRICS
from lpsel.scoring.table import ScoreTable
from lpsel.selection.agreement import (
    Agreement,
    ClusterAgreement,
    agreement,
    agreement_in_clusters,
    auc,
    defined_rows,
    lowest,
    metrics_of,
    score,
    spearman,
)
from lpsel.selection.budget import rows_of

ALL, DEFINED = "all", "defined"  # the rows compared


@dataclass(frozen=True)
class Study:
    """S scorers compared on N rows.

    Attributes:
        names: of the scorers.
        tables: their scores.
        epochs: recorded epochs that all of them have.
        metrics: what could be computed, keys of METRICS.
        pcts: shares in percent.
        scores: (M, S, N), NaN where undefined.
        defined: rows with a supervised token and a number by every metric in every table, (N,).
        cluster: of every row, (N,), or None.
        between: agreement of the scorers by (metric, rows).
        inside: the same inside clusters; no entry without clusters.
    """

    names: list[str]
    tables: list[ScoreTable]
    epochs: int
    metrics: list[str]
    pcts: list[float]
    scores: NDArray[np.float64]
    defined: NDArray[np.bool_]
    cluster: NDArray[np.int32] | None
    between: dict[tuple[str, str], Agreement]
    inside: dict[tuple[str, str], ClusterAgreement]

    @property
    def rows(self) -> dict[str, NDArray[np.bool_]]:
        """The two sets of rows that are compared."""
        return {DEFINED: self.defined, ALL: np.ones_like(self.defined)}

    def filled(self, rows: str) -> NDArray[np.float64]:
        """Scores of those rows, an undefined one as 0, which is the paper's released rule; (M, S, rows)."""
        return np.nan_to_num(self.scores[:, :, self.rows[rows]], nan=0.0)


def study(
    names: Sequence[str],
    tables: Sequence[ScoreTable],
    pcts: Sequence[float],
    cluster: NDArray[np.int32] | None = None,
) -> Study:
    """Compare tables of the same rows.

    Raises:
        UserError: a table has no epoch recorded, no share is left, or fewer than two rows are defined in all tables.
    """
    epochs = min(table.epochs for table in tables)
    if epochs < 1:
        name = names[[table.epochs for table in tables].index(0)]
        raise UserError(
            f"{name}: has no records after an epoch; give scores with nll_0 and nll_1 (or ppl_0 and ppl_1)."
        )
    metrics = metrics_of(epochs)
    scores_MSN = np.array([[score(table, metric, epochs) for table in tables] for metric in metrics])
    defined_N = defined_rows(tables, scores_MSN)
    if defined_N.sum() < 2:
        raise UserError(
            f"{', '.join(names)}: {int(defined_N.sum())} rows have a score in all of them; give tables with scores of "
            "the same rows."
        )
    for pct in pcts:
        rows_of(pct, int(defined_N.sum()))
    made = Study(
        list(names), list(tables), epochs, metrics, list(pcts), scores_MSN, defined_N, cluster, between={}, inside={}
    )
    for rows, chosen_N in made.rows.items():
        for metric, scores_SN in zip(metrics, made.filled(rows), strict=True):
            made.between[metric, rows] = agreement(scores_SN, pcts)
            if cluster is not None:
                inside = agreement_in_clusters(scores_SN, cluster[chosen_N], pcts)
                if inside:
                    made.inside[metric, rows] = inside
    return made


def numbers(made: Study) -> dict[str, Any]:
    """A study as plain values for agreement.json: one entry a line of its tables. NaN where a figure is undefined."""
    return {
        "n": len(made.defined),
        "n_defined": int(made.defined.sum()),
        "epochs": made.epochs,
        "metrics": made.metrics,
        "pct": made.pcts,
        "clusters": _clusters(made),
        "notes": notes(made),
        "tables": [_table(made, s) for s in range(len(made.names))],
        "pairs": list(_pairs(made)),
        "within": list(_within(made)),
        "length": list(_length(made)),
    }


def notes(made: Study) -> list[str]:
    """What is left out, and why."""
    said = []
    needed = METRICS["lp"].epochs
    if made.epochs < needed:
        fewest = [n for n, t in zip(made.names, made.tables, strict=True) if t.epochs == made.epochs]
        said.append(f"LP needs {needed} recorded epochs or more and {', '.join(fewest)} has 1: LP_app only.")
    elif len({table.epochs for table in made.tables}) > 1:
        said.append(f"LP counts {made.epochs} epochs, as many as all tables have.")
    if made.cluster is not None and not made.inside:
        said.append("No cluster has enough rows to be compared by itself.")
    return said


def _clusters(made: Study) -> dict[str, Any] | None:
    if made.cluster is None:
        return None
    known = made.cluster[made.cluster >= 0]
    return {"clusters": len(np.unique(known)), "rows_in_none": len(made.cluster) - len(known)}


def _table(made: Study, s: int) -> dict[str, Any]:
    table = made.tables[s]
    empty_N = table.response_tokens == 0
    return {
        "name": made.names[s],
        "rows": len(table),
        "epochs": table.epochs,
        "rows_without_supervised_token": int(empty_N.sum()),
        "rows_otherwise_undefined": int((~np.isfinite(made.scores[:, s]).all(axis=0) & ~empty_N).sum()),
        "tokens_known": table.tokens_known,
    }


def _pairs(made: Study) -> Iterator[dict[str, Any]]:
    for (metric, rows), found in made.between.items():
        inside = made.inside.get((metric, rows))
        for a in range(len(made.names)):
            for b in range(a + 1, len(made.names)):
                yield {
                    "metric": metric,
                    "rows": rows,
                    "n": found.n,
                    "a": made.names[a],
                    "b": made.names[b],
                    **_pair(found, made.pcts, a, b),
                    "in_clusters": None if inside is None else _pair_inside(inside, made.pcts, a, b),
                }


def _pair(found: Agreement, pcts: Sequence[float], a: int, b: int) -> dict[str, Any]:
    return {
        "spearman": float(found.spearman[a, b]),
        "kendall_tau_b": float(found.kendall[a, b]),
        "lowest": [
            {
                "pct": pct,
                "rows": int(found.lowest[p]),
                "common": int(found.common[p, a, b]),
                "share": float(found.share[p, a, b]),
                "chance": float(found.chance[p]),
            }
            for p, pct in enumerate(pcts)
        ],
    }


def _pair_inside(inside: ClusterAgreement, pcts: Sequence[float], a: int, b: int) -> dict[str, Any]:
    def spread(figures: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(("lower_quartile", "median", "upper_quartile"), map(float, figures), strict=True))

    return {
        "clusters": inside.clusters,
        "spearman": spread(inside.spearman[:, a, b]),
        "kendall_tau_b": spread(inside.kendall[:, a, b]),
        "lowest": [
            {
                "pct": pct,
                **spread(inside.share[:, p, a, b]),
                "pooled": float(inside.pooled[p, a, b]),
                "chance": float(inside.chance[p]),
            }
            for p, pct in enumerate(pcts)
        ],
    }


def _within(made: Study) -> Iterator[dict[str, Any]]:
    """Agreement of the metrics with each other, inside one table."""
    for rows in made.rows:
        filled_MSN = made.filled(rows)
        for s, name in enumerate(made.names):
            found = agreement(filled_MSN[:, s], made.pcts)
            for a in range(len(made.metrics)):
                for b in range(a + 1, len(made.metrics)):
                    of = {"table": name, "rows": rows, "n": found.n, "a": made.metrics[a], "b": made.metrics[b]}
                    yield of | _pair(found, made.pcts, a, b)


def _length(made: Study) -> Iterator[dict[str, Any]]:
    """Scores against supervised response tokens, where a table has token counts."""
    for rows, chosen_N in made.rows.items():
        filled_MSN = made.filled(rows)
        for s, table in enumerate(made.tables):
            if not table.tokens_known:
                continue
            length_N = table.response_tokens[chosen_N]
            for metric, score_N in zip(made.metrics, filled_MSN[:, s], strict=True):
                low_PN = [lowest(score_N[None], pct)[0] for pct in made.pcts]
                yield {
                    "table": made.names[s],
                    "rows": rows,
                    "n": len(length_N),
                    "metric": metric,
                    "spearman": float(spearman(np.array([score_N, length_N]))[0, 1]),
                    "lowest": [
                        {
                            "pct": pct,
                            "auc": auc(length_N, low_N),
                            "mean_tokens": float(length_N[low_N].mean()) if low_N.any() else math.nan,
                            "mean_tokens_all": float(length_N.mean()),
                        }
                        for pct, low_N in zip(made.pcts, low_PN, strict=True)
                    ],
                }
