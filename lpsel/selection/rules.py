"""Rules: from a table of scores to one number per row, the lower chosen first.

N rows

A rule is a function here and a file in conf/selection. It sees the table with no more epochs than its file asks for,
says NaN where its number is undefined, and leaves clusters, budgets, buckets and rows without supervised tokens to
`choose`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lpsel.selection.hashing import random_place
from lpsel.selection.metrics import learning_percentage, learning_percentage_app, scaled_perplexity
from lpsel.selection.table import ScoreTable


class Ranking(NamedTuple):
    """What a rule makes of a table.

    Attributes:
        score: float64 (N,), lower is chosen first; not finite where undefined.
        excluded: reason -> bool (N,), rows that the rule itself rules out, where it does.
    """

    score: NDArray[np.float64]
    excluded: Mapping[str, NDArray[np.bool_]] = {}


class Rule(Protocol):
    def __call__(self, table: ScoreTable, *, seed: int) -> Ranking: ...


def full(table: ScoreTable, *, seed: int) -> Ranking:
    """Everything, no row before another."""
    return Ranking(np.zeros(len(table)))


def random(table: ScoreTable, *, seed: int) -> Ranking:
    """Uniformly at random from the seed; a row's place depends on its content alone, not on where it stands."""
    return Ranking(random_place(table, seed))


def lp(table: ScoreTable, *, seed: int) -> Ranking:
    """LP(1), hardest (lowest) first, over as many epochs as the table has (Mekala, Nguyen, Shang 2024)."""
    return Ranking(learning_percentage(_perplexity(table)))


def lp_app(table: ScoreTable, *, seed: int) -> Ranking:
    """LP_app(1), hardest (lowest) first, from one epoch (Mekala, Nguyen, Shang 2024)."""
    return Ranking(learning_percentage_app(_perplexity(table)))


def _perplexity(table: ScoreTable) -> NDArray[np.float64]:
    return scaled_perplexity(table.nll) if table.ppl is None else table.ppl
