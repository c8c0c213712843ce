"""What a selection amounts to, as numbers and as a few lines of text."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.scoring.table import ScoreTable
from lpsel.selection.select import Selection

ODD = {
    "undefined": "undefined",
    "not_finite": "of these with a record that is not finite",
    "above_1": "above 1",
    "below_0": "below 0",
}
EXAMPLES = 10  # of each end of the ranking, and of rows at random
TEXT = 200  # characters of a row's text that are kept


def ends(selection: Selection, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Positions of the rows that come first and last in the ranking and of some at random, at most EXAMPLES each.

    All are in the ranking's order. Rows that cannot be chosen or have no score are left out.
    """
    rows = np.flatnonzero((selection.reason < 0) & ~np.isnan(selection.score))
    sign = -1 if selection.descending else 1
    key, index = sign * selection.score[rows], selection.index[rows]
    some = np.random.default_rng(seed).choice(len(rows), min(EXAMPLES, len(rows)), replace=False)
    return {
        "first": rows[_lowest(key, index)],
        "last": rows[_lowest(-key, -index)][::-1],
        "random": rows[some[np.lexsort((index[some], key[some]))]],
    }


def examples(
    selection: Selection, texts: Mapping[int, str], places: Mapping[str, NDArray[np.int64]]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of both ends, and some at random, as result.json has them.

    Args:
        texts: by row number, the instruction of every row at `places`.
        places: as `ends` gives them.
    """
    return {
        name: [
            {
                "index": int(selection.index[row]),
                "id": None if selection.id is None else selection.id[int(row)].as_py(),
                "score": float(selection.score[row]),
                "selected": bool(selection.selected[row]),
                "text": _first_line(texts[int(selection.index[row])]),
            }
            for row in rows
        ]
        for name, rows in places.items()
    }


def summary(selection: Selection, table: ScoreTable, mean_characters: Mapping[str, Any]) -> dict[str, Any]:
    """The selection in numbers, with the names that result.json has for them.

    Scores and lengths are of the chosen rows and of all rows; scores are None where they say nothing of the rows,
    tokens where the table does not know them.
    A cluster below 0 is none: its rows give a share together, and are counted for themselves.

    Args:
        mean_characters: of `prompt` and `response`, each `selected` and `all`, as result.json has it.
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
        "settings": selection.settings,
        "reasons": selection.counts,
        "odd_scores": selection.odd,
        "clusters": None if cluster is None else _different(cluster),
        "clusters_selected": None if cluster is None else _different(cluster[chosen]),
        "rows_in_no_cluster": None
        if cluster is None
        else {"selected": int((cluster[chosen] < 0).sum()), "all": int((cluster < 0).sum())},
        "score": {
            "selected": None if selection.arbitrary else _range(selection.score[chosen]),
            "all": None if selection.arbitrary else _range(selection.score[~np.isnan(selection.score)]),
        },
        "mean_tokens": {
            side: {
                "selected": _mean(counts, chosen) if table.tokens_known else None,
                "all": _mean(counts, everything) if table.tokens_known else None,
            }
            for side, counts in (("prompt", table.prompt_tokens), ("response", table.response_tokens))
        },
        "mean_characters": mean_characters,
    }


def describe(numbers: dict[str, Any]) -> list[str]:
    """`summary` as lines to print."""
    n_total, n_selected = numbers["n_total"], numbers["n_selected"]
    clusters = ""
    if numbers["clusters"] is not None:
        clusters = f", from {numbers['clusters_selected']:,} of {numbers['clusters']:,} clusters"
        if numbers["rows_in_no_cluster"]["all"]:
            clusters += " and {selected:,} of {all:,} rows in none".format(**numbers["rows_in_no_cluster"])
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
    unit = "characters" if numbers["mean_tokens"]["response"]["all"] is None else "tokens"
    sides = (f"{side} {m['selected']:.1f} (all: {m['all']:.1f})" for side, m in numbers[f"mean_{unit}"].items())
    lines.append(f"  mean {unit}: {', '.join(sides)}")
    lines += [f"  left out, {reason}: {count:,}" for reason, count in numbers["reasons"].items()]
    odd = [f"{count:,} {ODD[name]}" for name, count in numbers["odd_scores"].items() if count]
    if odd:
        zero = (
            "; the undefined count as 0" if numbers["budget"] == "paper" and numbers["odd_scores"]["undefined"] else ""
        )
        lines.append(f"  odd scores: {', '.join(odd)}{zero}")
    return lines


def _first_line(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")[:TEXT]
    return "".join(character if character.isprintable() else " " for character in line)


def _lowest(key_M: NDArray[np.float64], index_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the EXAMPLES lowest keys, lowest first, ties by index, without sorting all."""
    n = min(EXAMPLES, len(key_M))
    if n == 0:
        return np.empty(0, np.int64)
    highest = np.partition(key_M, n - 1)[n - 1]
    below, ties = np.flatnonzero(key_M < highest), np.flatnonzero(key_M == highest)
    ties = ties[np.argpartition(index_M[ties], n - len(below) - 1)[: n - len(below)]]
    places = np.concatenate([below, ties])
    return places[np.lexsort((index_M[places], key_M[places]))]


def _different(cluster: NDArray[np.int32]) -> int:
    """How many clusters there are; a number below 0 is none."""
    known = cluster[cluster >= 0]
    if known.max(initial=0) > 2 * len(cluster):
        return len(np.unique(known))
    return int(np.count_nonzero(np.bincount(known)))


def _range(score: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(score):
        return None
    return {"lowest": float(score.min()), "mean": float(score.mean()), "highest": float(score.max())}


def _mean(counts: NDArray[np.int32], rows: NDArray[np.bool_]) -> float | None:
    return float(counts[rows].mean()) if rows.any() else None
