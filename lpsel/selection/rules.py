"""Selection rules: functions that map a table of scores to one number per row, by which rows are selected.

N rows, M eligible or ranked rows, C clusters

A rule is a function here (or in `coverage`) and a file in conf/selection. It receives the table with at most the
epochs that its file sets, and returns NaN where its score is undefined. `select` handles clusters, budgets, buckets
and rows without supervised tokens. docs/reference/rules.md lists the rules with their sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.data.random_order import random_keys
from lpsel.errors import UserError
from lpsel.scoring import metrics
from lpsel.scoring.table import ScoreTable
from lpsel.selection.budget import Ties, rank_in_clusters

Band = Literal["high", "low", "mid"]
PROMPT = "same prompt"  # the column that numbers the prompts of a table

Pick = Callable[[NDArray[np.int64], int, int], NDArray[np.int64]]


class Ranking(NamedTuple):
    # Float64 (N,), lowest first; not finite where undefined. None for a rule that picks rows without scoring them: a
    # row's score is then its position in the order of choice.
    score: NDArray[np.float64] | None
    excluded: Mapping[str, NDArray[np.bool_]] = {}  # reason -> bool (N,), rows that the rule itself excludes
    descending: bool = False  # highest first instead
    in_unit_interval: bool = False  # scores are usually in [0, 1]; those outside are counted
    arbitrary: bool = False  # the order of the scores is random or has no meaning
    # For a greedy rule: a function of the positions of eligible rows in the order of their score, int64 (M,), of the
    # number to pick, n <= M, and of the number picked before, from other clusters or lengths. It returns positions in
    # the order of choice, int64 (n,).
    pick: Pick | None = None


@dataclass(frozen=True)
class Rule:
    """Decorator for a rule function, with the properties that must be known before it runs."""

    function: Callable[..., Ranking]  # of a table and `seed`; further keyword arguments are options of conf/selection
    picks_rows: bool = False  # the ranking has `pick`
    uses_lengths: bool = False  # the rule ranks by token counts
    uses_query: bool = False  # the rule selects for examples of the user's task
    takes_all: bool = False  # the rule selects everything, including rows with an empty answer
    uses_group: bool = False  # the rule compares answers to the same prompt
    epochs: int | None = None  # fewest recorded epochs that the formula needs; None if it needs no scores

    def __call__(self, table: ScoreTable, *, seed: int, **options: Any) -> Ranking:
        return self.function(table, seed=seed, **options)


@partial(Rule, takes_all=True)
def full(table: ScoreTable, *, seed: int) -> Ranking:
    """Select all rows, in no particular order."""
    return Ranking(np.zeros(len(table)), arbitrary=True)


@Rule
def random(table: ScoreTable, *, seed: int) -> Ranking:
    """Select rows uniformly at random; the order depends on seed and content, not on the position of the rows."""
    return Ranking(random_keys(table.id, table.index, seed), arbitrary=True)


@Rule
def cluster_random(table: ScoreTable, *, seed: int) -> Ranking:
    """Select whole clusters at random until the budget is filled, and random rows of the last one.

    Clusters are ordered by the first of their rows in the order of `random`. The integer part of the score is the
    cluster's position in this order.

    Raises:
        UserError: the rows have no clusters.
    """
    if table.cluster is None:
        raise UserError("selection", "cluster_random", "needs clusters, and there are none", "leave out cluster=none")
    key_N = random_keys(table.id, table.index, seed)
    clusters, code_N = np.unique(table.cluster, return_inverse=True)
    first_key_C = np.ones(len(clusters))
    np.minimum.at(first_key_C, code_N, key_N)
    position_C = np.empty(len(clusters))
    position_C[np.argsort(first_key_C, kind="stable")] = np.arange(len(clusters))
    return Ranking(position_C[code_N] + key_N, arbitrary=True)


@partial(Rule, epochs=2)
def lp(table: ScoreTable, *, seed: int, basis: metrics.Basis = "perplexity") -> Ranking:
    """LP(1), hardest (lowest) first, over all epochs of the table (Mekala, Nguyen, Shang 2024).

    With basis nll, the same as `lp_nll`.
    """
    metric = "lp_nll" if basis == "nll" else "lp"
    return Ranking(metrics.learning_percentage(table, metric), in_unit_interval=True)


@partial(Rule, epochs=1)
def lp_app(table: ScoreTable, *, seed: int, basis: metrics.Basis = "perplexity") -> Ranking:
    """LP_app(1), hardest (lowest) first, from one epoch (Mekala, Nguyen, Shang 2024).

    With basis nll, the same as `lp_app_nll`.
    """
    metric = "lp_app_nll" if basis == "nll" else "lp_app"
    return Ranking(metrics.learning_percentage(table, metric), in_unit_interval=True)


@partial(Rule, epochs=2)
def lp_nll(table: ScoreTable, *, seed: int) -> Ranking:
    """LP(1) of mean NLLs (log-perplexities) in place of perplexities, lowest first."""
    return Ranking(metrics.learning_percentage(table, "lp_nll"), in_unit_interval=True)


@partial(Rule, epochs=1)
def lp_app_nll(table: ScoreTable, *, seed: int) -> Ranking:
    """LP_app(1) of mean NLLs, lowest first; unlike LP_app of perplexities, it is relative to the initial loss."""
    return Ranking(metrics.learning_percentage(table, "lp_app_nll"), in_unit_interval=True)


@partial(Rule, uses_query=True, epochs=1)
def task_lp(table: ScoreTable, *, seed: int) -> Ranking:
    """The relative drop in NLL after training on examples of the user's task, highest first (Yang, He, Cheng 2026).

    (L_0 - L_n) / L_0, where n is the last epoch of the table and the scorer is trained on the examples only.
    """
    return Ranking(metrics.relative_drop(table.nll), descending=True, in_unit_interval=True)


@partial(Rule, uses_lengths=True)
def longest(table: ScoreTable, *, seed: int) -> Ranking:
    """Longest responses first, in supervised tokens (Zhao, Andriushchenko, Croce, Flammarion 2024)."""
    return Ranking(table.response_tokens.astype(np.float64), descending=True)


@partial(Rule, epochs=0)
def perplexity(table: ScoreTable, *, seed: int, band: Band = "high") -> Ranking:
    """Perplexity before training: highest, lowest, or closest to the median first (Marion et al. 2023).

    With band=mid, the score is the distance of a row's rank from the middle rank, as a fraction of the rows with a
    supervised token: 0 for the median and at most 1/2.
    """
    ppl_N = metrics.perplexity(table.nll[0]) if table.ppl is None else table.ppl[0]
    if band != "mid":
        return Ranking(ppl_N, descending=band == "high")
    ranked_N = np.isfinite(ppl_N) & (table.response_tokens > 0)
    rank_M = metrics.mid_ranks(ppl_N[ranked_N])
    m = len(rank_M)
    distance_N = np.full(len(ppl_N), np.nan)
    distance_N[ranked_N] = np.abs(rank_M - (m - 1) / 2) / max(m, 1)
    return Ranking(distance_N)


@partial(Rule, uses_group=True, epochs=0)
def grape(table: ScoreTable, *, seed: int) -> Ranking:
    """Select the answer to every prompt that the model finds most likely before training (Zhang, Dai, Peng 2025).

    The integer part of the score is the rank of a row's mean NLL among the answers to its prompt, lowest first, from
    0; empty answers do not count. The fraction is random, by content and seed, so the choice of prompts does not
    depend on how likely their answers are.
    """
    answered_N = table.usable & (table.response_tokens > 0) & np.isfinite(table.nll[0])
    if table.empty_answer is not None:
        answered_N &= ~table.empty_answer
    prompt_N = table.columns[PROMPT].astype(np.int32)
    ranked = rank_in_clusters(np.flatnonzero(answered_N), prompt_N, table.nll[0], Ties(table.id, table.index))
    score_N = np.full(len(table), np.nan)
    score_N[ranked.row] = ranked.rank + random_keys(table.id, table.index, seed)[ranked.row]
    return Ranking(score_N)


@partial(Rule, epochs=0)
def ifd(table: ScoreTable, *, seed: int) -> Ranking:
    """Instruction-following difficulty: loss with prompt / loss without, highest first below 1 (Li et al. 2024).

    Rows at 1 or above, for which the prompt does not help, are excluded.
    """
    nll_N, noprompt_N = table.nll[0], table.columns["nll_0_noprompt"]
    defined_N = np.isfinite(nll_N) & np.isfinite(noprompt_N) & (noprompt_N > 0)
    ratio_N = np.divide(nll_N, noprompt_N, out=np.full(len(table), np.nan), where=defined_N)
    return Ranking(ratio_N, {"IFD of 1 or more": ratio_N >= 1}, descending=True)


@partial(Rule, epochs=0)
def superfilter(table: ScoreTable, *, seed: int) -> Ranking:
    """IFD of a small model as a ratio of perplexities, highest first below 1 (Superfiltering, Li et al. 2024)."""
    nll_N, noprompt_N = table.nll[0], table.columns["nll_0_noprompt"]
    with np.errstate(over="ignore", invalid="ignore"):
        ratio_N = np.where(np.isfinite(nll_N) & np.isfinite(noprompt_N), np.exp(nll_N - noprompt_N), np.nan)
    return Ranking(ratio_N, {"IFD of 1 or more": ratio_N >= 1}, descending=True)


@partial(Rule, epochs=0)
def el2n(table: ScoreTable, *, seed: int) -> Ranking:
    """EL2N before training, the 2-norm of the error of the predicted distribution, highest first (Paul et al. 2021)."""
    return Ranking(table.columns["el2n_0"], descending=True)


@partial(Rule, epochs=1)
def forgetting(table: ScoreTable, *, seed: int) -> Ranking:
    """Most forgotten rows first, by the NLLs of successive epochs (after Toneva et al. 2019).

    The integer part of the score counts increases of the NLL; the fraction orders equal counts by the last NLL.
    """
    return Ranking(metrics.forgetting_events(table.nll), descending=True)


@partial(Rule, epochs=1)
def learning_speed(table: ScoreTable, *, seed: int) -> Ranking:
    """Slowest to learn first, by the NLL curve over the recorded epochs (after Jiang et al. 2021)."""
    return Ranking(metrics.mean_relative_drop(table.nll), in_unit_interval=True)


@Rule
def score_column(table: ScoreTable, *, seed: int, column: str, descending: bool = False) -> Ranking:
    """Rank by a numeric column of the scores or the dataset, lowest or highest first."""
    return Ranking(table.columns[column], descending=descending)
