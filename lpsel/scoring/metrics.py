"""Compute perplexity, learning percentage and related metrics from recorded losses.

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
    """Compute LP(i) = (P_{i-1} - P_i) / (P_0 - P_n) with i = `epoch` and n the last column, shape (N,).

    The fraction of the scorer's total improvement on a row in n epochs due to epoch i; low means hard. Mostly in
    [0, 1], but perplexity may rise in between. NaN if P_0 = P_n or a record is not finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(records_EN[epoch - 1] - records_EN[epoch], records_EN[0] - records_EN[-1], records_EN)


def lp_app(records_EN: Floats, epoch: int = 1) -> Floats:
    """Compute LP_app(i) = (P_{i-1} - P_i) / P_0 with i = `epoch`, shape (N,). LP_app(1) needs only one epoch.

    At most 1 for i = 1; low means hard, negative that perplexity rose. NaN if a record up to column i is not finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(records_EN[epoch - 1] - records_EN[epoch], records_EN[0], records_EN[: epoch + 1])


@dataclass(frozen=True)
class Metric:
    """Definition of a learning percentage.

    Attributes:
        title: name in tables and figures.
        epochs: minimum number of recorded epochs; LP needs two, since LP(1) of one epoch is 1 for every row.
        formula: function of the records, (E, N), and an epoch.
        basis: whether the formula is applied to perplexities or NLLs.
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


def learning_percentage(scores: ScoreTable | Floats, metric: str, epoch: int = 1) -> Floats:
    """Compute the learning percentage of every row, shape (N,): low means hard, NaN where it is undefined.

    Args:
        scores: a table of scores, or mean NLLs in nats, (E, N). If the table was read from perplexities, they are used
            directly: exp(log(P)) can break ties between rows.
        metric: a key of `METRICS`.
        epoch: i in the formulas.
    """
    nll_EN = scores.nll if isinstance(scores, ScoreTable) else scores
    formula = METRICS[metric].formula
    if METRICS[metric].basis == "nll":
        return formula(nll_EN, epoch)
    if isinstance(scores, ScoreTable) and scores.ppl is not None:
        return formula(scores.ppl, epoch)
    return formula(scaled_perplexity(nll_EN), epoch)


def perplexity(nll_EN: Floats) -> Floats:
    """Compute P = exp(NLL) from the mean NLL per supervised token in nats, same shape. Infinite above 709.78 nats."""
    with np.errstate(over="ignore"):
        return np.exp(nll_EN)


def scaled_perplexity(nll_EN: Floats) -> Floats:
    """Compute perplexities that are comparable within a row, (E, N): exp(NLL), scaled per row to avoid overflow.

    The scale cancels in ratios of a row's perplexities or their differences, such as the learning percentage.
    """
    top_N = np.fmax.reduce(nll_EN, axis=0)
    shift_N = np.where(np.isfinite(top_N), np.maximum(top_N - LARGEST_EXPONENT, 0.0), 0.0)
    return perplexity(nll_EN - shift_N)


def forgetting_events(nll_EN: Floats) -> Floats:
    """Count how often NLL rises from one recorded pass to the next, plus a fraction below 1 to break ties, shape (N,).

    Based on Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019,
    section 3, who count changes from correct to incorrect classification; for responses, we count increases of the
    loss. The fraction is (rank + 1) / (N + 1) of the last NLL, so that equal counts are ordered by loss. NaN if a
    record is not finite.
    """
    defined_N = np.isfinite(nll_EN).all(axis=0)
    events_N = np.full(nll_EN.shape[1], np.nan)
    nll_EM = nll_EN[:, defined_N]
    fraction_M = (mid_ranks(nll_EM[-1]) + 1) / (nll_EM.shape[1] + 1)
    events_N[defined_N] = (np.diff(nll_EM, axis=0) > 0).sum(axis=0) + fraction_M
    return events_N


def relative_drop(nll_EN: Floats) -> Floats:
    """Compute (L_0 - L_n) / L_0 with L_n the last NLL, shape (N,). Yang, He, Cheng 2026, arXiv 2605.09404.

    NaN if a record is not finite or L_0 = 0.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(nll_EN[0] - nll_EN[-1], nll_EN[0], nll_EN)


def mean_relative_drop(nll_EN: Floats) -> Floats:
    """Compute the mean of (L_0 - L_e) / L_0 over e = 1..n, with L_e the NLL after epoch e, shape (N,): low means slow.

    Equals one minus the area under the NLL curve (right Riemann sum) in units of L_0. Jiang et al., Characterizing
    Structural Regularities of Labeled Data in Overparameterized Models, ICML 2021, average accuracy or probability over
    training in the same way ("cumulative learning speed"). NaN if a record is not finite or L_0 = 0.
    """
    return 1 - _quotient(nll_EN[1:].mean(axis=0), nll_EN[0], nll_EN)


def known_level(nll_EN: Floats, rows_N: NDArray[np.bool_]) -> float:
    """Compute the median NLL after the last recorded epoch; rows below it before training count as known.

    NaN if no row has a record.
    """
    last_M = nll_EN[-1, rows_N & np.isfinite(nll_EN[-1])]
    return float(np.median(last_M)) if len(last_M) else float("nan")


def rises(nll_EN: Floats) -> NDArray[np.bool_]:
    """Whether a row's NLL after any recorded epoch is higher than before training, shape (N,)."""
    return np.fmax.reduce(nll_EN[1:], axis=0) > nll_EN[0]


def mid_ranks(values_N: Floats) -> Floats:
    """Compute ranks from 0, shape (N,); equal values get their mean rank."""
    _, rank_N, count = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[rank_N]


def _quotient(numerator_N: Floats, denominator_N: Floats, records_EN: Floats) -> Floats:
    """Divide, with NaN if the denominator is 0 or if a record or the result is not finite."""
    defined_N = np.isfinite(records_EN).all(axis=0) & (denominator_N != 0)
    with np.errstate(over="ignore"):
        quotient_N = np.divide(numerator_N, denominator_N, out=np.full(len(numerator_N), np.nan), where=defined_N)
    return np.where(np.isfinite(quotient_N), quotient_N, np.nan)


def correlation_interval(correlation: float, rows: int, candidates: int = 1) -> tuple[float, float]:
    """Compute the 95% interval of Spearman's correlation over more than three rows with Fisher's transform.

    Bonett and Wright, Psychometrika 65, 2000; docs/results/win-rates.md reports its coverage. If the correlation was
    chosen from several `candidates` by its value, the level holds for all of them jointly (Bonferroni).
    """
    z = math.atanh(max(min(correlation, 1 - 1e-9), 1e-9 - 1))
    error = NormalDist().inv_cdf(1 - 0.025 / candidates) * math.sqrt((1 + correlation**2 / 2) / (rows - 3))
    return math.tanh(z - error), math.tanh(z + error)
