"""What a selection amounts to, as numbers and as a few lines of text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.selection.choose import Selection
from lpsel.selection.table import ScoreTable


def summary(selection: Selection, table: ScoreTable) -> dict[str, Any]:
    """The selection in numbers, with the names that result.json has for them.

    Scores and token counts are of the chosen rows and of all rows; tokens are None where the table does not know them.
    """
    chosen, everything = selection.selected, np.ones(selection.n_total, np.bool_)
    cluster = selection.cluster
    return {
        "rule": selection.rule,
        "pct": selection.pct,
        "budget": selection.budget,
        "n_total": selection.n_total,
        "n_eligible": selection.n_eligible,
        "n_selected": selection.n_selected,
        "reasons": selection.counts,
        "clusters": None if cluster is None else len(np.unique(cluster)),
        "clusters_selected": None if cluster is None else len(np.unique(cluster[chosen])),
        "score": {
            "selected": _range(selection.score[chosen]),
            "all": _range(selection.score[~np.isnan(selection.score)]),
        },
        "mean_tokens": {
            side: {
                "selected": _mean(counts, chosen) if table.tokens_known else None,
                "all": _mean(counts, everything) if table.tokens_known else None,
            }
            for side, counts in (("prompt", table.prompt_tokens), ("response", table.response_tokens))
        },
    }


def describe(numbers: dict[str, Any]) -> list[str]:
    """`summary` as lines to print."""
    n_total, n_selected = numbers["n_total"], numbers["n_selected"]
    clusters = (
        ""
        if numbers["clusters"] is None
        else f", from {numbers['clusters_selected']:,} of {numbers['clusters']:,} clusters"
    )
    lines = [
        f"Selection {numbers['rule']}: {n_selected:,} of {n_total:,} rows ({100 * n_selected / n_total:.3g} %, "
        f"asked for {numbers['pct']:g} %, budget {numbers['budget']}){clusters}"
    ]
    scores = [
        f"{who} {r['lowest']:.4g} to {r['highest']:.4g}, mean {r['mean']:.4g}"
        for who, r in numbers["score"].items()
        if r is not None
    ]
    if scores:
        lines.append(f"  scores: {'; '.join(scores)}")
    if numbers["mean_tokens"]["response"]["all"] is not None:
        sides = (f"{side} {m['selected']:.1f} (all: {m['all']:.1f})" for side, m in numbers["mean_tokens"].items())
        lines.append(f"  mean tokens: {', '.join(sides)}")
    lines += [f"  left out, {reason}: {count:,}" for reason, count in numbers["reasons"].items()]
    return lines


def _range(score: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(score):
        return None
    return {"lowest": float(score.min()), "mean": float(score.mean()), "highest": float(score.max())}


def _mean(counts: NDArray[np.int32], rows: NDArray[np.bool_]) -> float | None:
    return float(counts[rows].mean()) if rows.any() else None
