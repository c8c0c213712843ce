"""How often one model's answers are preferred to another's, from verdicts on the same prompts. Pure functions.

Preferences are coded as AlpacaEval codes them: 1 the first answer (the baseline's) is better, 2 the second (the
model's), 1.5 or 0 a tie, a number between 1 and 2 a share, NaN not judged.
"""

# N prompts, n of them judged

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri

from lpsel.errors import UserError
from lpsel.evaluation.statistics import LEVEL, RESAMPLES, bootstrap_means

TIE = 1.5

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WinRate:
    """A model against a baseline. Rates are in percent; None where the data do not define a figure.

    Attributes:
        n: prompts judged: wins + ties + losses.
        wins, ties, losses: preferences above, at and below 1.5.
        failed: prompts without a verdict.
        win_rate: 100 x mean(preference - 1); of plain verdicts that is 100 x (wins + ties / 2) / n.
        standard_error: 100 x sample standard deviation of the preferences / sqrt(n), as alpaca_eval has it.
        ci_low, ci_high: of the win rate, 95 % percentile bootstrap over prompts.
        discrete_win_rate: 100 x (wins + ties / 2) / n; differs from the win rate where preferences are shares.
        wilson_low, wilson_high: 95 % Wilson score interval of the discrete win rate.
        p_value: two-sided exact sign test of wins against losses.
        winning_score: (wins - losses) / n + 1, from 0 to 2, as Cherry LLM reports it (Li et al. 2024).
    """

    n: int
    wins: int
    ties: int
    losses: int
    failed: int
    win_rate: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    discrete_win_rate: float | None
    wilson_low: float | None
    wilson_high: float | None
    p_value: float | None
    winning_score: float | None


def win_rate(preference_N: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> WinRate:
    """Count and estimate.

    Args:
        preference_N: see the module.
        resamples: of the prompts, for the bootstrap interval.
        seed: of the resamples.

    Raises:
        UserError: a number that is no preference.
    """
    preference_N = checked(preference_N)
    share_n = preference_N[~np.isnan(preference_N)] - 1
    n = len(share_n)
    wins, losses = int((share_n > 0.5).sum()), int((share_n < 0.5).sum())
    ties, failed = n - wins - losses, len(preference_N) - n
    if n == 0:
        return WinRate(n, wins, ties, losses, failed, *[None] * 9)
    rate = 100 * float(share_n.mean())
    estimate = bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed).estimate(0)
    # Every resample of one verdict is that verdict. Of equal ones the resampled means are off by a rounding error.
    low, high = (rate if end is None else end for end in estimate[1:])
    return WinRate(
        n=n,
        wins=wins,
        ties=ties,
        losses=losses,
        failed=failed,
        win_rate=rate,
        standard_error=100 * float(share_n.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        ci_low=min(low, rate),
        ci_high=max(high, rate),
        discrete_win_rate=100 * (wins + ties / 2) / n,
        **dict(zip(("wilson_low", "wilson_high"), wilson(wins + ties / 2, n), strict=True)),
        p_value=sign_test(wins, losses),
        winning_score=(wins - losses) / n + 1,
    )


def checked(preference_N: ArrayLike) -> Floats:
    """The preferences as numbers, shape (N,), a tie always 1.5 and what was not judged NaN.

    Raises:
        UserError: a number that is no preference.
    """
    preference_N = np.array(preference_N, dtype=np.float64)  # None becomes NaN
    if preference_N.ndim != 1:
        raise ValueError(f"preferences of shape {preference_N.shape}: need one for every prompt.")
    preference_N[preference_N == 0] = TIE
    wrong = np.flatnonzero(~np.isnan(preference_N) & ~((preference_N >= 1) & (preference_N <= 2)))
    if len(wrong):
        raise UserError(
            f"preference {preference_N[wrong[0]]:g} in row {wrong[0]}: must be 1 (the baseline's answer is better), "
            "2 (the model's), a number between, 0 or 1.5 (a tie), or null (not judged)."
        )
    return preference_N


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share, in percent (Wilson 1927; Brown, Cai and DasGupta 2001).

    Ties count as half a success and half a failure. Their variance is smaller than a coin's, so that with many ties
    the interval is wider than it need be.
    """
    z2 = ndtri((1 + level) / 2) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of wins against losses under chance 1/2, exact; ties say nothing and are left out.

    Dixon and Mood 1946, The statistical sign test: twice the chance of so few of the rarer; 1 where nothing was
    decided.
    """
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def longer_wins(preference_N: ArrayLike, model_chars_N: ArrayLike, baseline_chars_N: ArrayLike) -> float | None:
    """Percentage of the decided prompts with answers of different lengths that the longer answer won."""
    sign_N = np.sign(checked(preference_N) - TIE) * np.sign(
        np.asarray(model_chars_N, dtype=np.float64) - np.asarray(baseline_chars_N, dtype=np.float64)
    )
    decided = np.abs(sign_N) == 1  # NaN where there is no verdict or no length
    return 100 * float((sign_N[decided] > 0).mean()) if decided.any() else None


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's step-down adjustment of several p-values, in their order (Holm 1979).

    The i-th smallest of m, counted from 0, is multiplied by m - i, and is at least as large as the one before.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return [float(x) for x in adjusted[np.argsort(order, kind="stable")]]
