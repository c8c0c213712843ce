"""The win rate a model would have if its answers were as long as the baseline's.

Dubois, Galambosi, Liang and Hashimoto 2024, Length-Controlled AlpacaEval (arXiv:2404.04475), section 3, without the
term for the difficulty of the instruction: what the alpaca_eval package calls `length_controlled_minimal`.

    logit P(model preferred) = theta + phi x tanh((baseline's length - model's length) / s)

s is the sample standard deviation of the length differences, in characters. The length-controlled win rate is the
prediction at no difference, 100 x sigmoid(theta).
"""

# n judged prompts, U distinct ones, m of them left out, S strengths, F folds, R resamples, 2 coefficients: the model's
# (theta) and the length's (phi)

from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from lpsel.evaluation.statistics import (
    RESAMPLES,
    UNDEFINED,
    Estimate,
    bootstrap_means,
    distinct_rows,
    draws,
    interval,
)
from lpsel.evaluation.winrate import checked

FOLDS = 5
FEWEST = 2 * FOLDS
STRENGTHS = np.logspace(-4, 4, 10)
RIDGE = 1e-9  # where a resample has nothing but wins, its loss has no curvature far out
NO_WEIGHT = 1e-12  # liblinear leaves out rows of weight 0, and then may know one outcome only
LARGEST_STEP = 2.0
TOLERANCE = 1e-4  # of a step: the one after it is its square
ITERATIONS = 100

Floats = NDArray[np.float64]


def length_controlled_win_rate(
    preference_N: ArrayLike,
    model_chars_N: ArrayLike,
    baseline_chars_N: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The length-controlled win rate, in percent, with its 95 % percentile bootstrap interval over prompts.

    scikit-learn fits it as alpaca_eval does: preferences as weights of both outcomes, an L1 penalty on both
    coefficients, its strength from 5-fold cross-validation. The folds and the resamples are fitted by `penalised`, all
    at once. The resamples keep s and have the weakest penalty of all, close to maximum likelihood: a stronger one draws
    them towards 50, and fewer intervals cover the truth.

    Args:
        preference_N: as in `winrate`.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; NaN where they are not known.
        resamples: of the prompts.
        seed: of the resamples.

    Returns:
        The win rate itself where all answers are as long as the baseline's; nothing for fewer than 10 judged prompts
        with lengths.
    """
    preference_N = checked(preference_N)
    shorter_N = np.asarray(baseline_chars_N, dtype=np.float64) - np.asarray(model_chars_N, dtype=np.float64)
    used = ~np.isnan(preference_N) & ~np.isnan(shorter_N)
    share_n = preference_N[used] - 1
    if len(share_n) < FEWEST:
        return UNDEFINED
    if not shorter_N[used].any():
        return bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed).estimate(0)
    # The scale is that of all answers, those without a verdict as well.
    scale = np.nanstd(shorter_N, ddof=1)
    if scale == 0:  # all differ by the same
        return UNDEFINED
    features_n2 = np.column_stack([np.ones(len(share_n)), np.tanh(shorter_N[used] / scale)])
    coefficients_2, _ = fit(features_n2, share_n)
    distinct_U3, times_U = distinct_rows(np.column_stack([features_n2, share_n]))
    resampled = [
        penalised(distinct_U3[:, :2], distinct_U3[:, 2], counts, STRENGTHS[-1], coefficients_2)[:, 0]
        for counts in draws(times_U, resamples, seed)
    ]
    percent_R = 100 * expit(np.concatenate(resampled))
    return interval(100 * float(expit(coefficients_2[0])), percent_R, len(share_n))


def fit(features_n2: Floats, share_n: Floats) -> tuple[Floats, float]:
    """Coefficients, shape (2,), and the inverse strength of the penalty: the one of 10 that predicts best.

    The grid, the folds and the loss on left-out rows (cross-entropy with the shares) are alpaca_eval's.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    n = len(share_n)
    folds = list(GroupKFold(FOLDS).split(features_n2, groups=np.arange(n)))
    kept_Fn = np.array([np.isin(np.arange(n), kept) for kept, _ in folds], dtype=np.float64)
    # Every strength on every fold, in one fit; strengths one behind the other.
    everywhere = np.repeat(STRENGTHS, FOLDS)
    coefficients_SF2 = penalised(
        features_n2, share_n, np.tile(kept_Fn, (len(STRENGTHS), 1)), everywhere, np.zeros(2)
    ).reshape(len(STRENGTHS), FOLDS, 2)
    loss_SF = np.empty((len(STRENGTHS), FOLDS))
    for fold, (_, left_out) in enumerate(folds):
        logit_Sm = coefficients_SF2[:, fold] @ features_n2[left_out].T
        loss_SF[:, fold] = np.mean(np.logaddexp(0, logit_Sm) - share_n[left_out] * logit_Sm, axis=1)
    best = float(STRENGTHS[int(np.argmin(loss_SF.mean(axis=1)))])
    model = LogisticRegression(
        C=best, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-9, max_iter=100_000, random_state=0
    )
    model.fit(
        np.vstack([features_n2, features_n2]),
        np.repeat([1, 0], n),
        sample_weight=np.maximum(np.concatenate([share_n, 1 - share_n]), NO_WEIGHT),
    )
    return model.coef_[0], best


def penalised(
    features_n2: Floats, share_n: Floats, counts_Rn: Floats, strength: float | Floats, start_2: Floats
) -> Floats:
    """The same fit for R resamples at once, in which row i comes counts_Rn[r, i] times; shape (R, 2).

    Proximal Newton: every step minimises the quadratic model of the loss plus the penalty, coefficient by coefficient.

    Args:
        features_n2, share_n: of the rows.
        counts_Rn: how often each resample has each row.
        strength: inverse strength of the L1 penalty (scikit-learn's C), one for all or one for each.
        start_2: first coefficients.
    """
    coefficients_R2 = np.tile(start_2, (len(counts_Rn), 1))
    penalty_R = np.broadcast_to(1 / np.asarray(strength), len(counts_Rn))
    products_n3 = np.column_stack(
        [features_n2[:, 0] ** 2, features_n2[:, 0] * features_n2[:, 1], features_n2[:, 1] ** 2]
    )
    target_R2 = counts_Rn @ (features_n2 * share_n[:, None])
    left = np.arange(len(counts_Rn))
    counts = counts_Rn
    p_n = expit(features_n2 @ start_2)
    # At first all resamples are at the same place: two products of matrices.
    gradient = counts @ (features_n2 * p_n[:, None]) - target_R2
    curvature = counts @ (products_n3 * (p_n * (1 - p_n))[:, None])
    for _ in range(ITERATIONS):
        at = coefficients_R2[left]
        curvature += np.array([RIDGE, 0.0, RIDGE])
        step = np.clip(_quadratic(at, gradient, curvature, penalty_R[left]) - at, -LARGEST_STEP, LARGEST_STEP)
        coefficients_R2[left] += step
        moving = np.abs(step).max(axis=1) > TOLERANCE
        left, counts = left[moving], counts[moving]
        if not len(left):
            break
        p = expit(coefficients_R2[left] @ features_n2.T)
        gradient = (counts * p) @ features_n2 - target_R2[left]
        curvature = (counts * (p * (1 - p))) @ products_n3
    return coefficients_R2


def _quadratic(at_R2: Floats, gradient_R2: Floats, curvature_R3: Floats, penalty_R: Floats) -> Floats:
    """Where gradient . d + d . curvature . d / 2 + penalty x |at + d|_1 is smallest; at + d, shape (R, 2).

    Two coefficients have nine patterns of signs: the minimum is in the one that its own solution has.
    """
    a, b, c = curvature_R3.T
    linear_R2 = gradient_R2 - np.column_stack([a * at_R2[:, 0] + b * at_R2[:, 1], b * at_R2[:, 0] + c * at_R2[:, 1]])
    best_R2, best_R = np.zeros_like(at_R2), np.zeros(len(at_R2))
    for first, second in product((-1, 0, 1), repeat=2):
        g0, g1 = linear_R2[:, 0] + penalty_R * first, linear_R2[:, 1] + penalty_R * second
        if first and second:
            determinant = a * c - b * b
            x, y = (b * g1 - c * g0) / determinant, (b * g0 - a * g1) / determinant
        else:
            x, y = -g0 / a * abs(first), -g1 / c * abs(second)
        fits = (x * first >= 0) & (y * second >= 0)
        value = (a * x * x + c * y * y) / 2 + b * x * y + g0 * x * abs(first) + g1 * y * abs(second)
        better = fits & (value < best_R)
        best_R2[better] = np.column_stack([x, y])[better]
        best_R[better] = value[better]
    return best_R2
