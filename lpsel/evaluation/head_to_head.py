"""All figures of models against one baseline, from verdicts on the same prompts. Pure functions."""

# N prompts, O orders in which the two answers were shown, S prompt sets, R resamples

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.evaluation.judge_agreement import combined, flip_rate
from lpsel.evaluation.length_control import length_controlled_win_rate
from lpsel.evaluation.statistics import RESAMPLES, bootstrap_means, interval
from lpsel.evaluation.winrate import holm, longer_wins, win_rate

OF_GROUPS = ("n", "wins", "ties", "losses", "failed", "win_rate", "standard_error", "ci_low", "ci_high")

Floats = NDArray[np.float64]


def figures(
    preference_NO: ArrayLike,
    *,
    model_chars_N: ArrayLike,
    baseline_chars_N: ArrayLike,
    category_N: Sequence[str | None] | None = None,
    prompt_set_N: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """One model against the baseline; docs/guides/win-rates.md has every figure's formula.

    Args:
        preference_NO: as in `winrate`, shape (N,), or a column for each order in which the answers were shown.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; None or NaN where they are not known.
        category_N, prompt_set_N: of the prompts, where they have any.
        resamples: of the prompts, for all bootstrap intervals.
        seed: of the resamples.

    Returns:
        The fields of `WinRate`; `flip_rate`; `model_mean_chars` and `baseline_mean_chars`; `longer_wins`;
        `length_controlled_win_rate` with `length_controlled_ci_low` and `_ci_high`; `by_category` and `by_prompt_set`,
        dictionaries, and `mean_of_prompt_sets`, None where there are none. Rates are in percent.

    Raises:
        UserError: a number that is no preference.
    """
    preference_N = combined(preference_NO)
    model_chars_N = np.asarray(model_chars_N, dtype=np.float64)
    baseline_chars_N = np.asarray(baseline_chars_N, dtype=np.float64)
    controlled = length_controlled_win_rate(
        preference_N, model_chars_N, baseline_chars_N, resamples=resamples, seed=seed
    )
    by_set = _by(prompt_set_N, preference_N, resamples, seed)
    return {
        **asdict(win_rate(preference_N, resamples=resamples, seed=seed)),
        "flip_rate": flip_rate(preference_NO),
        "model_mean_chars": _mean(model_chars_N),
        "baseline_mean_chars": _mean(baseline_chars_N),
        "longer_wins": longer_wins(preference_N, model_chars_N, baseline_chars_N),
        "length_controlled_win_rate": controlled.value,
        "length_controlled_ci_low": controlled.low,
        "length_controlled_ci_high": controlled.high,
        "by_category": _by(category_N, preference_N, resamples, seed),
        "by_prompt_set": by_set,
        "mean_of_prompt_sets": by_set and _mean_of_sets(prompt_set_N or (), preference_N, resamples, seed),
    }


def compare_models(figures_of: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same figures with `p_value_holm`, the sign test corrected for the number of models (Holm).

    A model without a judged prompt has no p-value and does not count as a test.
    """
    tested = [name for name, of_model in figures_of.items() if of_model["p_value"] is not None]
    adjusted = dict(zip(tested, holm([figures_of[name]["p_value"] for name in tested]), strict=True))
    return {name: {**of_model, "p_value_holm": adjusted.get(name)} for name, of_model in figures_of.items()}


def _by(
    group_N: Sequence[str | None] | None, preference_N: Floats, resamples: int, seed: int
) -> dict[str, dict[str, Any]] | None:
    """The figures of every group, in the order in which the groups come; prompts of no group are left out."""
    found = {}
    for name, of_group in _members(group_N).items():
        of_prompts = asdict(win_rate(preference_N[of_group], resamples=resamples, seed=seed))
        found[name] = {key: of_prompts[key] for key in OF_GROUPS}
    return found or None


def _mean_of_sets(
    prompt_set_N: Sequence[str | None], preference_N: Floats, resamples: int, seed: int
) -> dict[str, float | None] | None:
    """The mean of the sets' win rates, each set counting the same; prompts are resampled within their set."""
    value_S, resampled_SR = [], []
    for i, of_set in enumerate(_members(prompt_set_N).values()):
        share_n = preference_N[of_set] - 1
        share_n = share_n[~np.isnan(share_n)]
        if len(share_n) == 0:
            return None
        of_prompts = bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed + i)
        value_S.append(of_prompts.value_K[0])
        resampled_SR.append(of_prompts.resampled_RK[:, 0])
    judged = int((~np.isnan(preference_N)).sum())
    mean = interval(float(np.mean(value_S)), np.mean(resampled_SR, axis=0), judged)
    return {"win_rate": mean.value, "ci_low": mean.low, "ci_high": mean.high}


def _members(group_N: Sequence[str | None] | None) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for i, name in enumerate(group_N or ()):
        if name:
            members.setdefault(name, []).append(i)
    return members


def _mean(chars_N: Floats) -> float | None:
    known = chars_N[~np.isnan(chars_N)]
    return float(known.mean()) if len(known) else None
