"""Statistics of a selection and example rows from both ends of its ranking, for result.json.

N rows, M rows with a score, n selected rows
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.content_ids import counts
from lpsel.selection.diagnosis import count_clusters
from lpsel.selection.select import Selection

EXAMPLES = 10  # rows from each end of the ranking, and random rows
TEXT = 200  # maximum characters of a row's text


def ends(selection: Selection, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Positions of the first and last rows of the ranking and of random ones, at most EXAMPLES each.

    All are in the ranking's order; rows that are not eligible or have no score are left out.
    """
    rows_M = np.flatnonzero((selection.reason < 0) & ~np.isnan(selection.score))
    score_M = selection.score[rows_M]
    key_M = -score_M if selection.descending else score_M
    # Of tied rows, the selected ones come first, then those with the lower row number.
    tie_order_M = selection.table.index[rows_M] + selection.n_total * ~selection.selected[rows_M]
    sample = np.random.default_rng(seed).choice(len(rows_M), min(EXAMPLES, len(rows_M)), replace=False)
    sample = sample[np.lexsort((tie_order_M[sample], key_M[sample]))]
    return {
        "first": rows_M[_lowest(key_M, tie_order_M)],
        "last": rows_M[_lowest(-key_M, -tie_order_M)][::-1],
        "random": rows_M[sample],
    }


def examples(
    selection: Selection, texts: Mapping[int, str], positions: Mapping[str, NDArray[np.int64]]
) -> dict[str, list[dict[str, Any]]]:
    """Example rows at `positions`, as returned by `ends`, with the first line of their texts (by row number)."""
    table = selection.table
    return {
        name: [
            {
                "index": int(table.index[row]),
                "id": None if table.id is None else table.id[row].as_py(),
                "score": float(selection.score[row]),
                "selected": bool(selection.selected[row]),
                "text": _first_line(texts[int(table.index[row])]),
            }
            for row in rows.tolist()
        ]
        for name, rows in positions.items()
    }


def summary(selection: Selection, mean_characters: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the selected rows and of all rows, named as in result.json.

    Scores are None if they are arbitrary; tokens are None if the table has no counts. Rows with a negative cluster are
    in no cluster and are counted separately.

    Args:
        mean_characters: mean characters of `prompt` and `response`, each with `selected` and `all`.
    """
    table, spec, selected = selection.table, selection.spec, selection.selected
    clusters: dict[str, Any] = dict.fromkeys(["clusters", "clusters_selected", "rows_in_no_cluster"])
    if table.cluster is not None:
        cluster_N, cluster_n = table.cluster, table.cluster[selected]
        clusters = {
            "clusters": count_clusters(cluster_N),
            "clusters_selected": count_clusters(cluster_n),
            "rows_in_no_cluster": {"selected": int((cluster_n < 0).sum()), "all": int((cluster_N < 0).sum())},
        }
    scored = ~np.isnan(selection.score) & (not selection.arbitrary)
    tokens = {"prompt": table.prompt_tokens, "response": table.response_tokens}
    return {
        "rule": spec.name,
        "pct": selection.pct,
        "budget": spec.budget,
        "n_total": selection.n_total,
        "n_eligible": selection.n_eligible,
        "n_selected": selection.n_selected,
        "n_tied": selection.n_tied,
        "settings": spec.settings,
        "reasons": selection.counts,
        "rows_unusable": counts(table.unusable),
        "odd_scores": selection.odd,
        **clusters,
        "score": {"selected": _range(selection.score[selected & scored]), "all": _range(selection.score[scored])},
        "mean_tokens": {
            side: {
                "selected": _mean(tokens_N[selected]) if table.tokens_known else None,
                "all": _mean(tokens_N[table.usable]) if table.tokens_known else None,
            }
            for side, tokens_N in tokens.items()
        },
        "mean_characters": mean_characters,
    }


def _first_line(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")[:TEXT]
    return "".join(character if character.isprintable() else " " for character in line)


def _lowest(key_M: NDArray[np.float64], tie_order_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the EXAMPLES lowest keys, lowest first, ties by `tie_order_M`, without sorting all rows."""
    if len(key_M) > EXAMPLES:
        rows = np.flatnonzero(key_M <= np.partition(key_M, EXAMPLES - 1)[EXAMPLES - 1])
    else:
        rows = np.arange(len(key_M))
    return rows[np.lexsort((tie_order_M[rows], key_M[rows]))][:EXAMPLES]


def _range(score: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(score):
        return None
    return {"lowest": float(score.min()), "mean": float(score.mean()), "highest": float(score.max())}


def _mean(tokens: NDArray[np.int32]) -> float | None:
    return float(tokens.mean()) if len(tokens) else None
