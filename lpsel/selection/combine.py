"""selection=combine: rank rows by a weighted mean of their ranks under several rules and columns.

N rows, M rows that every part ranks
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.errors import UserError, is_number
from lpsel.scoring.metrics import mid_ranks
from lpsel.scoring.table import ScoreTable
from lpsel.selection.rules import Ranking, Rule
from lpsel.selection.spec import SelectionSpec, selection

# Settings of which rows are selected: set once for the combined rule, not for its parts.
SHARED_SETTINGS = (
    "budget", "bucket", "allocation", "length", "pct_of", "duplicates", "known", "rising", "min_response_tokens",
)  # fmt: skip


def combined_spec(parts: Mapping[str, SelectionSpec], weights: Mapping[str, float], **settings: Any) -> SelectionSpec:
    """Build the spec of a rule that combines several others and needs the inputs of all of them.

    The score of a row is the weighted mean of its ranks, from 0 for the first to 1 for the last, with the absolute
    weights. A negative weight reverses the order of its part. Rows that a part excludes or does not rank have no
    score.

    Raises:
        UserError: a weight is 0 or not a number, or a rule picks rows without scoring them or sets options that parts
            cannot set.
    """
    for name, weight in weights.items():
        if not is_number(weight) or weight == 0:
            raise UserError(f"selection.combine.{name}", weight, "must be a number other than 0")
        if parts[name].rule.picks_rows:
            problem, hint = "picks rows one after another and has no ranks", "combine rules that score every row"
            raise UserError("selection.combine", name, problem, hint)
        if parts[name].rule.uses_query or parts[name].group is not None:
            raise UserError("selection.combine", name, "cannot be combined", "combine rules that only need scores")
        for setting in SHARED_SETTINGS:
            value, default = getattr(parts[name], setting), getattr(SelectionSpec, setting)
            if value != default:
                problem = f"sets selection.{setting}={value}, which parts cannot"
                hint = f"combine a rule that does not, and set selection.{setting} for all parts"
                raise UserError("selection.combine", name, problem, hint)

    def weighted_mean_rank(table: ScoreTable, *, seed: int, combine: Mapping[str, float]) -> Ranking:
        keys: dict[str, NDArray[np.float64]] = {}
        excluded: dict[str, NDArray[np.bool_]] = {}
        ranked_N = table.response_tokens > 0
        for name, part in parts.items():
            ranking = part.rank(table, seed)
            assert ranking.score is not None  # the rule does not pick rows
            keys[name] = -ranking.score if ranking.descending else ranking.score
            excluded |= ranking.excluded
            ranked_N &= np.isfinite(keys[name])
        for excluded_N in excluded.values():
            ranked_N &= ~excluded_N
        m = int(ranked_N.sum())
        sum_M = np.zeros(m)
        for name, key_N in keys.items():
            rank_M = mid_ranks(key_N[ranked_N]) / max(m - 1, 1)
            sum_M += abs(combine[name]) * (rank_M if combine[name] > 0 else 1 - rank_M)
        score_N = np.full(len(table), np.nan)
        score_N[ranked_N] = sum_M / sum(map(abs, combine.values()))
        return Ranking(score_N, excluded)

    columns = dict.fromkeys(column for part in parts.values() for column in part.columns)
    rule = Rule(weighted_mean_rank, uses_lengths=any(part.rule.uses_lengths for part in parts.values()))
    spec = selection(rule=rule, combine=dict(weights), **settings | {"columns": list(columns)})
    epochs = [part.epochs for part in (*parts.values(), spec) if part.epochs is not None]
    return replace(spec, epochs=max(epochs, default=None))
