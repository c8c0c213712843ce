"""Test whether scores predict results: correlate the mean score of subsets with the loss after training on each subset.

The validation of linear datamodels (Ilyas et al. 2022, arXiv 2202.00622; as the linear datamodeling score, Park et al.
2023, arXiv 2303.14186) for mean held-out loss: a useful score ranks random subsets by the loss they lead to.
"""

# K subsets, R resamples of subsets

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata, spearmanr

from lpsel.evaluation.statistics import RESAMPLES, UNDEFINED, Estimate, interval
from lpsel.scoring.metrics import correlation_interval


def rank_correlation(score_K: ArrayLike, result_K: ArrayLike) -> Estimate:
    """Compute Spearman's rank correlation of score and result, with `correlation_interval` for at least four subsets.

    Ties get their mean rank. Undefined if all subsets have the same score or the same result.
    """
    score_K, result_K = np.asarray(score_K, np.float64), np.asarray(result_K, np.float64)
    if np.ptp(score_K) == 0 or np.ptp(result_K) == 0 or not np.isfinite([score_K, result_K]).all():
        return UNDEFINED
    value = float(spearmanr(score_K, result_K).statistic)
    if len(score_K) <= 3:
        return Estimate(value, None, None)
    return Estimate(value, *correlation_interval(value, len(score_K)))


def bootstrap_interval(score_K: ArrayLike, result_K: ArrayLike) -> Estimate:
    """Compute `rank_correlation` with a percentile bootstrap; with few subsets it is too wide and covers 97 to 99%."""
    estimate = rank_correlation(score_K, result_K)
    if estimate.value is None:
        return UNDEFINED
    score_K, result_K = np.asarray(score_K), np.asarray(result_K)
    k = len(score_K)
    draw_RK = np.random.default_rng(0).integers(k, size=(RESAMPLES, k))
    a_RK = rankdata(score_K[draw_RK], axis=1) - (k + 1) / 2  # ranks, centered
    b_RK = rankdata(result_K[draw_RK], axis=1) - (k + 1) / 2
    with np.errstate(invalid="ignore"):  # undefined where all drawn subsets have the same score or result
        resampled_R = (a_RK * b_RK).sum(axis=1) / np.sqrt((a_RK**2).sum(axis=1) * (b_RK**2).sum(axis=1))
    return interval(estimate.value, resampled_R, k)


def conclusive(correlation: Estimate) -> bool:
    """Whether the interval excludes 0."""
    return correlation.low is not None and correlation.high is not None and correlation.low * correlation.high > 0


def conclusion(correlation: Estimate, subsets: int) -> str:
    """Summarize the correlation between the mean score and NLL of subsets in one sentence."""
    if correlation.value is None or correlation.low is None or correlation.high is None:
        return "Not defined: a subset has no NLL, or all have the same mean score or the same NLL."
    estimate = f"{correlation.value:.2f} (95% interval {correlation.low:.2f} to {correlation.high:.2f})"
    if not conclusive(correlation):
        return (
            f"{estimate}: too wide for a conclusion from {subsets} subsets, it contains 0. Raise --subsets or --seeds."
        )
    lower_or_higher = "lower" if correlation.value > 0 else "higher"
    return f"{estimate}: subsets with lower scores lead to a {lower_or_higher} NLL."
