"""How often one model's answers are preferred to a baseline's, with every statistic of the comparison. Pure functions.

docs/guides/win-rates.md has the formulas. For the coding of preferences see `lpsel.evaluation.preferences`.
"""

# N prompts, n of them judged, S prompt sets, R resamples

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.evaluation.length_control import length_controlled_win_rate
from lpsel.evaluation.preferences import TIE, as_preferences, combined, flip_rate
from lpsel.evaluation.statistics import RESAMPLES, bootstrap_means, holm, interval, sign_test, wilson

GROUP_METRICS = ("n", "wins", "ties", "losses", "failed", "win_rate", "standard_error", "ci_low", "ci_high")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WinRate:
    """A model against a baseline. Rates are in percent; None where the data do not define a value."""

    n: int  # prompts judged: wins + ties + losses
    wins: int  # preferences above 1.5
    ties: int
    losses: int
    failed: int  # prompts without a verdict
    win_rate: float | None = None  # 100 x mean(preference - 1); for plain verdicts 100 x (wins + ties / 2) / n
    standard_error: float | None = None  # 100 x sample standard deviation / sqrt(n), as in alpaca_eval
    ci_low: float | None = None  # 95 % percentile bootstrap interval of the win rate over prompts
    ci_high: float | None = None
    discrete_win_rate: float | None = None  # 100 x (wins + ties / 2) / n, also for fractional preferences
    wilson_low: float | None = None  # 95 % Wilson score interval of the discrete win rate
    wilson_high: float | None = None
    p_value: float | None = None  # two-sided exact sign test of wins against losses
    winning_score: float | None = None  # (wins - losses) / n + 1, from 0 to 2, as in Cherry LLM (Li et al. 2024)


def win_rate(preference_N: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> WinRate:
    """Win rate of one preference per prompt, with its bootstrap interval over prompts and its test.

    Raises:
        UserError: a number that is not a preference.
    """
    preference_N = as_preferences(preference_N)
    share_n = preference_N[~np.isnan(preference_N)] - 1
    n = len(share_n)
    wins, losses = int((share_n > 0.5).sum()), int((share_n < 0.5).sum())
    counts = {"n": n, "wins": wins, "ties": n - wins - losses, "losses": losses, "failed": len(preference_N) - n}
    if n == 0:
        return WinRate(**counts)
    rate = 100 * float(share_n.mean())
    estimate = bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed).estimate(0)
    # With one verdict there is no interval; with equal ones the resampled means differ by rounding errors.
    low, high = (rate if end is None else end for end in (estimate.low, estimate.high))
    successes = wins + counts["ties"] / 2
    wilson_low, wilson_high = wilson(successes, n)
    return WinRate(
        **counts,
        win_rate=rate,
        standard_error=100 * float(share_n.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        ci_low=min(low, rate),
        ci_high=max(high, rate),
        discrete_win_rate=100 * successes / n,
        wilson_low=100 * wilson_low,
        wilson_high=100 * wilson_high,
        p_value=sign_test(wins, losses),
        winning_score=(wins - losses) / n + 1,
    )


def longer_wins(preference_N: ArrayLike, model_chars_N: ArrayLike, baseline_chars_N: ArrayLike) -> float | None:
    """Percentage of the decided prompts with answers of different lengths that the longer answer won."""
    sign_N = np.sign(as_preferences(preference_N) - TIE) * np.sign(
        np.asarray(model_chars_N, dtype=np.float64) - np.asarray(baseline_chars_N, dtype=np.float64)
    )
    decided = np.abs(sign_N) == 1  # NaN without a verdict or a length
    return 100 * float((sign_N[decided] > 0).mean()) if decided.any() else None


def pairwise_metrics(
    preference_NO: ArrayLike,
    *,
    model_chars_N: ArrayLike,
    baseline_chars_N: ArrayLike,
    category_N: Sequence[str | None] | None = None,
    prompt_set_N: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every statistic of one model against the baseline.

    Args:
        preference_NO: shape (N,), or a column for each order in which the answers were shown.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; None or NaN where unknown.
        category_N, prompt_set_N: of the prompts.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        The fields of `WinRate`; `flip_rate`; `model_mean_chars` and `baseline_mean_chars`; `longer_wins`;
        `length_controlled_win_rate` with `length_controlled_ci_low` and `_ci_high`; `by_category`, `by_prompt_set` and
        `mean_of_prompt_sets`, None without groups. Rates are in percent.

    Raises:
        UserError: a number that is not a preference.
    """
    preference_N = combined(preference_NO)
    model_chars_N = np.asarray(model_chars_N, dtype=np.float64)
    baseline_chars_N = np.asarray(baseline_chars_N, dtype=np.float64)
    draws: dict[str, int] = {"resamples": resamples, "seed": seed}
    controlled = length_controlled_win_rate(preference_N, model_chars_N, baseline_chars_N, **draws)
    sets = _groups(prompt_set_N)
    return {
        **asdict(win_rate(preference_N, **draws)),
        "flip_rate": flip_rate(preference_NO),
        "model_mean_chars": _mean(model_chars_N),
        "baseline_mean_chars": _mean(baseline_chars_N),
        "longer_wins": longer_wins(preference_N, model_chars_N, baseline_chars_N),
        "length_controlled_win_rate": controlled.value,
        "length_controlled_ci_low": controlled.low,
        "length_controlled_ci_high": controlled.high,
        "by_category": _by_group(_groups(category_N), preference_N, draws),
        "by_prompt_set": _by_group(sets, preference_N, draws),
        "mean_of_prompt_sets": _mean_of_sets(list(sets.values()), preference_N, resamples, seed),
    }


def adjust_p_values(metrics: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The metrics of several models with `p_value_holm`, the sign test corrected for the number of tested models."""
    tested = [name for name, of_model in metrics.items() if of_model["p_value"] is not None]
    adjusted = dict(zip(tested, holm([metrics[name]["p_value"] for name in tested]), strict=True))
    return {name: {**of_model, "p_value_holm": adjusted.get(name)} for name, of_model in metrics.items()}


def _groups(group_N: Sequence[str | None] | None) -> dict[str, list[int]]:
    """Rows of each group, in order of first occurrence; prompts without a group are left out."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(group_N or ()):
        if name:
            groups.setdefault(name, []).append(i)
    return groups


def _by_group(
    groups: dict[str, list[int]], preference_N: Floats, draws: dict[str, int]
) -> dict[str, dict[str, Any]] | None:
    by_group = {name: asdict(win_rate(preference_N[rows], **draws)) for name, rows in groups.items()}
    return {name: {key: rate[key] for key in GROUP_METRICS} for name, rate in by_group.items()} or None


def _mean_of_sets(
    sets: list[list[int]], preference_N: Floats, resamples: int, seed: int
) -> dict[str, float | None] | None:
    """Unweighted mean of the win rates of the sets; prompts are resampled within their set. None if a set is empty."""
    judged = ~np.isnan(preference_N)
    rows_S = [np.array(rows)[judged[rows]] for rows in sets]
    if not sets or not all(map(len, rows_S)):
        return None
    means = [
        bootstrap_means(100 * (preference_N[rows, None] - 1), resamples=resamples, seed=seed + i)
        for i, rows in enumerate(rows_S)
    ]
    resampled_R = np.mean([mean.resampled_RK[:, 0] for mean in means], axis=0)
    mean = interval(float(np.mean([mean.value_K[0] for mean in means])), resampled_R, int(judged.sum()))
    return {"win_rate": mean.value, "ci_low": mean.low, "ci_high": mean.high}


def _mean(chars_N: Floats) -> float | None:
    known = chars_N[~np.isnan(chars_N)]
    return float(known.mean()) if len(known) else None
