"""Rules: from a table of scores to one number per row, by which rows are chosen.

N rows

A rule is a function here (or in `coverage`) and a file in conf/selection. It sees the table with no more epochs than
its file asks for, says NaN where its number is undefined, and leaves clusters, budgets, buckets and rows without
supervised tokens to `choose`. docs/guides/rules.md lists them with their sources.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.scoring.metrics import Basis, forgetting_events, learning_percentage, mean_relative_drop, mid_ranks
from lpsel.scoring.metrics import perplexity as perplexity_of
from lpsel.scoring.table import ScoreTable

Band = Literal["high", "low", "mid"]


class Ranking(NamedTuple):
    """What a rule makes of a table.

    Attributes:
        score: float64 (N,), lower is chosen first; not finite where undefined.
        excluded: reason -> bool (N,), rows that the rule itself rules out, where it does.
        descending: higher is chosen first instead.
        unit: the score is a share that mostly lies in [0, 1]; those outside are counted.
        arbitrary: the score puts rows in some order and says nothing of them.
    """

    score: NDArray[np.float64]
    excluded: Mapping[str, NDArray[np.bool_]] = {}
    descending: bool = False
    unit: bool = False
    arbitrary: bool = False


class Greedy(NamedTuple):
    """A rule that picks rows one after another, each with a view to those picked before.

    Attributes:
        pick: called with positions of rows that can be chosen, int64 (M,), and how many to pick, n <= M: their
            positions in the order of choice, int64 (n,).
        score: what to show of every row, float64 (N,), not finite where that leaves a row out; None for the turn in
            which a row is picked.
    """

    pick: Callable[[NDArray[np.int64], int], NDArray[np.int64]]
    score: NDArray[np.float64] | None = None


class Rule(Protocol):
    def __call__(self, table: ScoreTable, *, seed: int) -> Any: ...


def full(table: ScoreTable, *, seed: int) -> Ranking:
    """Everything, no row before another."""
    return Ranking(np.zeros(len(table)), arbitrary=True)


def random(table: ScoreTable, *, seed: int) -> Ranking:
    """Uniformly at random from the seed; a row's place depends on its content alone, not on where it stands."""
    return Ranking(random_keys(table.id, table.index, seed), arbitrary=True)


def cluster_random(table: ScoreTable, *, seed: int) -> Ranking:
    """Whole clusters, drawn at random from the seed until the budget is filled; of the last one random rows.

    A cluster's place is the lowest of its rows' places. The integer part of the score is the cluster's turn.

    Raises:
        UserError: rows are not clustered.
    """
    if table.cluster is None:
        raise UserError("selection=cluster_random: draws whole clusters and there are none; leave cluster=none out.")
    place = random_keys(table.id, table.index, seed)
    known, code = np.unique(table.cluster, return_inverse=True)
    first = np.ones(len(known))
    np.minimum.at(first, code, place)
    turn = np.empty(len(known))
    turn[np.argsort(first, kind="stable")] = np.arange(len(known))
    return Ranking(turn[code] + place, arbitrary=True)


def lp(table: ScoreTable, *, seed: int, basis: Basis = "perplexity") -> Ranking:
    """LP(1), hardest (lowest) first, over as many epochs as the table has (Mekala, Nguyen, Shang 2024).

    With basis nll, the same of mean NLL in place of perplexity.
    """
    return Ranking(learning_percentage(table, "lp", basis), unit=True)


def lp_app(table: ScoreTable, *, seed: int, basis: Basis = "perplexity") -> Ranking:
    """LP_app(1), hardest (lowest) first, from one epoch (Mekala, Nguyen, Shang 2024).

    With basis nll, the same of mean NLL in place of perplexity.
    """
    return Ranking(learning_percentage(table, "lp_app", basis), unit=True)


def longest(table: ScoreTable, *, seed: int) -> Ranking:
    """The longest responses, in supervised tokens (Zhao, Andriushchenko, Croce, Flammarion 2024)."""
    return Ranking(table.response_tokens.astype(np.float64), descending=True)


def perplexity(table: ScoreTable, *, seed: int, band: Band = "high") -> Ranking:
    """Perplexity before training: the highest, the lowest, or those nearest to the middle (Marion et al. 2023).

    The middle is that of the ranks of all rows with a supervised token: the score is then the distance of a row's
    rank from it, as a share of the rows, 0 for the median and at most 1/2.
    """
    ppl_N = perplexity_of(table.nll[0]) if table.ppl is None else table.ppl[0]
    if band == "mid":
        ranked = np.isfinite(ppl_N) & (table.response_tokens > 0)
        distance = np.full(len(ppl_N), np.nan)
        rank = mid_ranks(ppl_N[ranked])
        distance[ranked] = np.abs(rank - (len(rank) - 1) / 2) / max(len(rank), 1)
        return Ranking(distance)
    return Ranking(ppl_N, descending=band == "high")


def ifd(table: ScoreTable, *, seed: int) -> Ranking:
    """Instruction-following difficulty: loss with the prompt over loss without, highest first below 1 (Li et al. 2024).

    Rows at 1 or above, to which the prompt is no help, are left out.
    """
    nll_N, alone_N = table.nll[0], table.columns["nll_0_noprompt"]
    ratio_N = np.divide(nll_N, alone_N, out=np.full(len(table), np.nan), where=alone_N > 0)
    return Ranking(ratio_N, {"IFD of 1 or more": ratio_N >= 1}, descending=True)


def superfilter(table: ScoreTable, *, seed: int) -> Ranking:
    """IFD of a small model as a ratio of perplexities, highest first below 1 (Superfiltering, Li et al. 2024)."""
    with np.errstate(over="ignore", invalid="ignore"):
        ratio_N = np.exp(table.nll[0] - table.columns["nll_0_noprompt"])
    return Ranking(ratio_N, {"IFD of 1 or more": ratio_N >= 1}, descending=True)


def el2n(table: ScoreTable, *, seed: int) -> Ranking:
    """EL2N before training, the 2-norm of the error of the predicted distribution, highest first (Paul et al. 2021)."""
    return Ranking(table.columns["el2n_0"], descending=True)


def forgetting(table: ScoreTable, *, seed: int) -> Ranking:
    """Rows forgotten most often, by the NLLs of successive recorded passes (after Toneva et al. 2019).

    The integer part of the score counts the rises; the fraction orders equal counts by NLL after the last epoch.
    """
    return Ranking(forgetting_events(table.nll), descending=True)


def learning_speed(table: ScoreTable, *, seed: int) -> Ranking:
    """Slowest learnt first, by the NLL curve over the recorded epochs (after Jiang et al. 2021)."""
    return Ranking(mean_relative_drop(table.nll), unit=True)


def score_column(table: ScoreTable, *, seed: int, column: str, descending: bool = False) -> Ranking:
    """Any column of numbers, of the table of scores or the data set: the lowest first, or the highest."""
    return Ranking(table.columns[column], descending=descending)
