"""Perplexity and learning percentage of recorded losses.

E recorded columns (0 = before training, then one after each epoch), N rows

Formulas: Mekala, Nguyen, Shang, Smaller Language Models are capable of selecting Instruction-Tuning Training Data for
Larger Language Models, Findings of ACL 2024, arXiv 2402.10430, unless another source is named.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lpsel.scoring.table import ScoreTable

Floats = NDArray[np.float64]
Basis = Literal["perplexity", "nll"]

LARGEST_EXPONENT = 700.0  # exp of it is still a float64


def lp(records_EN: Floats, epoch: int = 1) -> Floats:
    """LP(i) = (P_{i-1} - P_i) / (P_0 - P_n) with i = `epoch` and n the last column, shape (N,).

    The fraction of what the scorer learns about a row in n epochs that it learns in epoch i; low is hard. Mostly in
    [0, 1], but perplexity may rise in between. NaN where it is undefined: P_0 = P_n, or a record that is not finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(records_EN[epoch - 1] - records_EN[epoch], records_EN[0] - records_EN[-1], records_EN)


def lp_app(records_EN: Floats, epoch: int = 1) -> Floats:
    """LP_app(i) = (P_{i-1} - P_i) / P_0 with i = `epoch`, shape (N,): one epoch is enough for LP_app(1).

    At most 1 for i = 1; low is hard, and below 0 the row got harder. NaN where a record up to column i is not finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(records_EN[epoch - 1] - records_EN[epoch], records_EN[0], records_EN[: epoch + 1])


@dataclass(frozen=True)
class Metric:
    """A learning percentage.

    Attributes:
        title: for tables and figures.
        epochs: recorded epochs that it needs; with one epoch, LP(1) is 1 for every row.
        formula: of records, (E, N), and an epoch.
        basis: what the formula is applied to.
    """

    title: str
    epochs: int
    formula: Callable[[Floats, int], Floats]
    basis: Basis = "perplexity"


METRICS = {
    "lp": Metric("LP", 2, lp),
    "lp_app": Metric("LP_app", 1, lp_app),
    "lp_nll": Metric("LP of NLL", 2, lp, "nll"),
    "lp_app_nll": Metric("LP_app of NLL", 1, lp_app, "nll"),
}


def learning_percentage(scores: ScoreTable | Floats, metric: str, basis: Basis | None = None, epoch: int = 1) -> Floats:
    """The learning percentage of every row, shape (N,): low is hard, NaN where it is undefined.

    Args:
        scores: a table of scores, or mean NLLs in nats, (E, N). Perplexities that the table was read with are used as
            they are: exp(log(P)) can separate rows that tie.
        metric: a key of `METRICS`.
        basis: `perplexity` or `nll` instead of the metric's own.
        epoch: the i of the formulas.
    """
    nll_EN, ppl_EN = (scores.nll, scores.ppl) if isinstance(scores, ScoreTable) else (scores, None)
    if (basis or METRICS[metric].basis) == "nll":
        records_EN = nll_EN
    else:
        records_EN = scaled_perplexity(nll_EN) if ppl_EN is None else ppl_EN
    return METRICS[metric].formula(records_EN, epoch)


def perplexity(nll_EN: Floats) -> Floats:
    """P = exp(NLL) of the mean NLL per supervised token in nats, same shape. Infinite above an NLL of 709.78."""
    with np.errstate(over="ignore"):
        return np.exp(nll_EN)


def scaled_perplexity(nll_EN: Floats) -> Floats:
    """Perplexities that are comparable within a row, (E, N): exp(NLL), divided by one factor per row on overflow.

    The factor cancels in quotients of a row's perplexities and of their differences, such as the learning percentage.
    """
    top_N = np.fmax.reduce(nll_EN, axis=0)
    shift_N = np.where(np.isfinite(top_N), np.maximum(top_N - LARGEST_EXPONENT, 0.0), 0.0)
    return perplexity(nll_EN - shift_N)


def forgetting_events(nll_EN: Floats) -> Floats:
    """How often NLL rises from one recorded pass to the next, plus a fraction below 1 that orders ties, shape (N,).

    After Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019,
    section 3, who count changes from correct to incorrect classification; for a response, a rise of its loss takes
    their place. The fraction is (rank + 1) / (N + 1) of the last NLL, so that equal counts are ordered by loss. NaN
    where a record is not finite.
    """
    defined_N = np.isfinite(nll_EN).all(axis=0)
    events_N = np.full(nll_EN.shape[1], np.nan)
    nll_EM = nll_EN[:, defined_N]
    fraction_M = (mid_ranks(nll_EM[-1]) + 1) / (nll_EM.shape[1] + 1)
    events_N[defined_N] = (np.diff(nll_EM, axis=0) > 0).sum(axis=0) + fraction_M
    return events_N


def relative_drop(nll_EN: Floats) -> Floats:
    """(L_0 - L_n) / L_0 with L_n the last NLL, shape (N,): the score of Yang, He, Cheng 2026, arXiv 2605.09404.

    NaN where a record is not finite or L_0 = 0.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(nll_EN[0] - nll_EN[-1], nll_EN[0], nll_EN)


def mean_relative_drop(nll_EN: Floats) -> Floats:
    """1/n sum over e = 1..n of (L_0 - L_e) / L_0, with L_e the NLL after epoch e, shape (N,): low is learned slowly.

    One minus the area under the NLL curve (right Riemann sum) in units of L_0. Jiang et al., Characterizing Structural
    Regularities of Labeled Data in Overparameterized Models, ICML 2021, rank by the same average over training of
    accuracy or probability ("cumulative learning speed"). NaN where a record is not finite or L_0 = 0.
    """
    return 1 - _quotient(nll_EN[1:].mean(axis=0), nll_EN[0], nll_EN)


def known_level(nll_EN: Floats, rows_N: NDArray[np.bool_]) -> float:
    """The median NLL of rows after the last epoch of the records: below it before training, a row counts as known.

    NaN if no row has a record.
    """
    last_M = nll_EN[-1, rows_N & np.isfinite(nll_EN[-1])]
    return float(np.median(last_M)) if len(last_M) else float("nan")


def rises(nll_EN: Floats) -> NDArray[np.bool_]:
    """Whether the NLL after any recorded epoch is above that before training, shape (N,)."""
    return np.fmax.reduce(nll_EN[1:], axis=0) > nll_EN[0]


def mid_ranks(values_N: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs, shape (N,)."""
    _, rank_N, count = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[rank_N]


def _quotient(numerator_N: Floats, denominator_N: Floats, records_EN: Floats) -> Floats:
    """The quotient, NaN where the denominator is 0 or a record or the result is not finite."""
    defined_N = np.isfinite(records_EN).all(axis=0) & (denominator_N != 0)
    with np.errstate(over="ignore"):
        quotient_N = np.divide(numerator_N, denominator_N, out=np.full(len(numerator_N), np.nan), where=defined_N)
    return np.where(np.isfinite(quotient_N), quotient_N, np.nan)


def correlation_interval(correlation: float, rows: int, several: int = 1) -> tuple[float, float]:
    """95% interval of Spearman's correlation of more than three rows, by Fisher's transform.

    Bonett and Wright, Psychometrika 65, 2000; docs/results/win-rates.md has its coverage. For one of `several`
    correlations, chosen by its value, it is 95% for all of them together (Bonferroni).
    """
    z = math.atanh(max(min(correlation, 1 - 1e-9), 1e-9 - 1))
    error = NormalDist().inv_cdf(1 - 0.025 / several) * math.sqrt((1 + correlation**2 / 2) / (rows - 3))
    return math.tanh(z - error), math.tanh(z + error)
