"""Do scores predict results? Subsets' mean scores, and the loss that a model trained on each subset reaches.

The check of linear datamodels (Ilyas et al. 2022, arXiv 2202.00622; as a score, Park et al. 2023, arXiv 2303.14186),
for the mean loss on held-out rows: a score that is worth anything ranks random subsets by what they lead to.
"""

# K subsets, R resamples of them

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from lpsel.evaluation.statistics import RESAMPLES, Estimate, interval


def rank_correlation(score_K: ArrayLike, result_K: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Spearman's correlation of two values of each subset, with a percentile interval over resampled subsets.

    Ties get their mean rank. Undefined where all subsets have the same score or the same result.
    """
    pair_2K = np.array([score_K, result_K], np.float64)
    draw_RK = np.random.default_rng(seed).integers(pair_2K.shape[1], size=(resamples, pair_2K.shape[1]))
    (value,), resampled_R = _spearman(*pair_2K[:, None]), _spearman(*pair_2K[:, draw_RK])
    return interval(value, resampled_R, pair_2K.shape[1])


def _spearman(first_RK: NDArray[np.float64], second_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every row, (R,); NaN where one side is constant."""
    a_RK, b_RK = (rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (first_RK, second_RK))
    with np.errstate(invalid="ignore"):
        return (a_RK * b_RK).sum(1) / np.sqrt((a_RK**2).sum(1) * (b_RK**2).sum(1))


def conclusive(correlation: Estimate) -> bool:
    """Whether the interval excludes 0."""
    return correlation.low is not None and correlation.high is not None and correlation.low * correlation.high > 0


def conclusion(correlation: Estimate, subsets: int) -> str:
    """What a correlation of subsets' mean score with their NLL says, in one sentence."""
    if correlation.value is None or correlation.low is None or correlation.high is None:
        return "Not defined: all subsets have the same mean score or the same NLL."
    found = f"{correlation.value:.2f} (95 % interval {correlation.low:.2f} to {correlation.high:.2f})"
    if not conclusive(correlation):
        return f"{found}: too wide for a conclusion from {subsets} subsets, it contains 0. Raise --subsets or --seeds."
    which = "lower" if correlation.value > 0 else "higher"
    return f"{found}: subsets with lower scores lead to a {which} NLL."
