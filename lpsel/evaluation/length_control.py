"""Length-controlled win rate: the win rate that a model would have if its answers were as long as the baseline's.

Dubois, Galambosi, Liang and Hashimoto 2024, Length-Controlled AlpacaEval (arXiv:2404.04475), section 3, without the
term for the difficulty of the instruction: `length_controlled_minimal` in the alpaca_eval package.

    logit P(model preferred) = theta + phi x tanh((baseline's length - model's length) / s)

s is the sample standard deviation of the length differences, in characters. The length-controlled win rate is the
prediction at no difference, 100 x sigmoid(theta).

The win rate and its interval come from one fit, with the weakest of alpaca_eval's L1 penalties on both coefficients,
which is close to maximum likelihood. alpaca_eval itself selects the penalty by 5-fold cross-validation, which shrinks
small effects to exactly 50; `minimal_win_rate` reproduces its value for comparison.

With few prompts, wins or losses, bootstrap resamples vary too little (docs/results/win-rates.md), so the interval is a
profile likelihood interval over phi (Venzon and Moolgavkar 1988).
"""

# N prompts, n judged prompts, U distinct ones, R resamples, 2 coefficients: theta and phi

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import chdtri, expit

from lpsel.evaluation.judgements import as_preferences
from lpsel.evaluation.statistics import (
    LEVEL,
    RARE,
    RESAMPLES,
    UNDEFINED,
    Estimate,
    distinct_rows,
    draws,
    interval,
    score_interval,
)

FEW = 100  # prompts; with fewer, the interval is that of the likelihood ratio
BOUND = 12.0  # limit of both coefficients in the likelihood ratio: expit(12) is 99.999%
FOLDS = 5
FEWEST = 2 * FOLDS
STRENGTHS = np.logspace(-4, 4, 10)  # inverse strengths of the penalty, scikit-learn's C
NO_WEIGHT = 1e-12  # liblinear drops rows of weight 0, and fails if only one outcome is left
RIDGE = 1e-9  # added to the curvature, which vanishes if a resample has only wins
ITERATIONS = 100
LARGEST_STEP = 2.0
TOLERANCE = 1e-4  # Newton's method converges quadratically: the error is about the square of the last step

Floats = NDArray[np.float64]


def length_controlled_win_rate(
    preference_N: ArrayLike,
    model_chars_N: ArrayLike,
    baseline_chars_N: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Compute the length-controlled win rate in percent with its 95% percentile bootstrap interval over prompts.

    With fewer than 100 prompts, 15 wins or 15 losses, it is a likelihood ratio interval instead. Fractional preferences
    count as a weighted win and loss. All resamples use the same s.

    Args:
        preference_N: coded as in `win_rate`.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; NaN where unknown.
        resamples, seed: settings of the bootstrap.

    Returns:
        The estimate; the plain win rate with its `score_interval` if all answers are as long as the baseline's;
        undefined with fewer than 10 judged prompts with known lengths.
    """
    features_n2, share_n = _inputs(preference_N, model_chars_N, baseline_chars_N)
    if len(share_n) < FEWEST:
        return UNDEFINED
    if not features_n2[:, 1].any():
        low, high = score_interval(share_n)
        return Estimate(100 * float(share_n.mean()), 100 * low, 100 * high)
    distinct_U3, times_U = distinct_rows(np.column_stack([features_n2, share_n]))
    features_U2, share_U = distinct_U3[:, :2], distinct_U3[:, 2]
    [coefficients_2] = refit(features_U2, share_U, times_U[None].astype(np.float64), start_2=np.zeros(2))
    theta = float(coefficients_2[0])
    value = 100 * float(expit(theta))
    if len(share_n) < FEW or min(share_n.sum(), (1 - share_n).sum()) < RARE:
        low, high = likelihood_interval(features_n2[:, 1], share_n, theta)
        return Estimate(value, 100 * float(expit(low)), 100 * float(expit(high)))
    counts_of_blocks = draws(times_U, resamples, seed)
    coefficients_R2 = np.concatenate(
        [refit(features_U2, share_U, counts, coefficients_2) for counts in counts_of_blocks]
    )
    return interval(value, 100 * expit(coefficients_R2[:, 0]), len(share_n))


def likelihood_interval(shorter_n: Floats, share_n: Floats, theta: float) -> tuple[float, float]:
    """Compute the 95% profile likelihood interval of theta, given its estimate.

    The likelihood ratio statistic is compared with chi squared. Bounds beyond BOUND, as with only wins, are infinite.

    Args:
        shorter_n: scaled difference in length, positive if the model's answer is shorter.
        share_n: preference - 1, from 0 to 1.
    """

    def deviance(theta: float) -> float:
        """-2 log likelihood, minimized over phi."""

        def loss(phi: float) -> float:
            logit_n = theta + phi * shorter_n
            return float((np.logaddexp(0, logit_n) - share_n * logit_n).sum())

        return 2 * float(minimize_scalar(loss, bounds=(-BOUND, BOUND), method="bounded").fun)

    estimate = min(max(theta, -BOUND), BOUND)
    limit = deviance(estimate) + float(chdtri(1, 1 - LEVEL))

    def bound(farthest: float) -> float:
        """Where the deviance reaches the limit between the estimate and `farthest`, or infinity of the same sign."""
        if farthest == estimate or not deviance(farthest) > limit:
            return math.copysign(math.inf, farthest)
        return brentq(lambda theta: deviance(theta) - limit, estimate, farthest, xtol=1e-4)

    return bound(-BOUND), bound(BOUND)


def minimal_win_rate(preference_N: ArrayLike, model_chars_N: ArrayLike, baseline_chars_N: ArrayLike) -> float | None:
    """Compute alpaca_eval's `length_controlled_minimal` in percent; None if the length-controlled rate is undefined."""
    features_n2, share_n = _inputs(preference_N, model_chars_N, baseline_chars_N)
    if len(share_n) < FEWEST:
        return None
    if not features_n2[:, 1].any():
        return 100 * float(share_n.mean())
    coefficients_2, _ = fit(features_n2, share_n)
    return 100 * float(expit(coefficients_2[0]))


def _inputs(preference_N: ArrayLike, model_chars_N: ArrayLike, baseline_chars_N: ArrayLike) -> tuple[Floats, Floats]:
    """Return (1, scaled length difference), shape (n, 2), and preference - 1, shape (n,), of prompts with both.

    n is 0 if all differences are equal but not 0: effects of length and model cannot be separated.
    """
    preference_N = as_preferences(preference_N)
    shorter_N = np.asarray(baseline_chars_N, dtype=np.float64) - np.asarray(model_chars_N, dtype=np.float64)
    used_N = ~np.isnan(preference_N) & ~np.isnan(shorter_N)
    shorter_n, share_n = shorter_N[used_N], preference_N[used_N] - 1
    if shorter_n.any():
        scale = np.nanstd(shorter_N, ddof=1) if len(shorter_n) > 1 else 0.0  # includes answers without a verdict
        if scale == 0:
            return np.empty((0, 2)), np.empty(0)
        shorter_n = np.tanh(shorter_n / scale)
    return np.column_stack([np.ones(len(share_n)), shorter_n]), share_n


def fit(features_n2: Floats, share_n: Floats) -> tuple[Floats, float]:
    """Fit the coefficients, shape (2,), with the inverse penalty strength chosen by cross-validation; return both."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    rows = len(share_n)
    # Each prompt is a win weighted by its preference, and a loss with the remaining weight.
    both_outcomes = np.vstack([features_n2, features_n2])
    weight = np.maximum(np.concatenate([share_n, 1 - share_n]), NO_WEIGHT)
    folds = list(GroupKFold(FOLDS).split(both_outcomes, groups=np.tile(np.arange(rows), 2)))
    model = LogisticRegressionCV(
        Cs=STRENGTHS,
        cv=folds,
        scoring="neg_log_loss",
        l1_ratios=(1,),
        solver="liblinear",
        fit_intercept=False,
        tol=1e-9,
        max_iter=1000,
        random_state=0,
        use_legacy_attributes=False,
    )
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # some stop at the limit of float64
        model.fit(both_outcomes, np.repeat([1, 0], rows), sample_weight=weight)
    return model.coef_[0], float(model.C_)


def refit(features_n2: Floats, share_n: Floats, counts_Rn: Floats, start_2: Floats) -> Floats:
    """Fit the coefficients of R resamples with the weakest penalty, shape (R, 2).

    Row i occurs counts_Rn[r, i] times in resample r. Newton's method on all resamples at once is about 50 times faster
    than one scikit-learn fit each. A coefficient stops at 0 before it changes sign, and leaves 0 only if the loss falls
    faster than the penalty grows (Andrew and Gao 2007, Scalable training of L1-regularized log-linear models).
    """
    penalty = 1 / STRENGTHS[-1]
    coefficients_R2 = np.tile(start_2, (len(counts_Rn), 1))
    products_n4 = (features_n2[:, :, None] * features_n2[:, None, :]).reshape(-1, 4)
    active = np.arange(len(counts_Rn))  # resamples that have not converged
    for _ in range(ITERATIONS):
        current, counts = coefficients_R2[active], counts_Rn[active]
        p_Rn = expit(current @ features_n2.T)
        gradient = (counts * (p_Rn - share_n)) @ features_n2
        curvature = ((counts * (p_Rn * (1 - p_Rn))) @ products_n4).reshape(-1, 2, 2) + RIDGE * np.eye(2)
        # The sign that a coefficient may have after this step; 0 if it stays at 0.
        sign = np.where(current != 0, np.sign(current), -np.sign(gradient) * (np.abs(gradient) > penalty))
        stays = sign == 0
        curvature[stays.any(axis=1)] *= np.eye(2)  # the other coefficient is fitted alone
        penalized = np.where(stays, 0.0, gradient + penalty * sign)
        step = np.linalg.solve(curvature, penalized[..., None])[..., 0]
        moved = current - np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        coefficients_R2[active] = np.where(moved * sign > 0, moved, 0.0)
        active = active[np.abs(step).max(axis=1) > TOLERANCE]
        if not len(active):
            break
    return coefficients_R2
