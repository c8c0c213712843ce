"""Win rates: how often a model's answers are preferred to a baseline's, with all related statistics. Pure functions.

docs/reference/metrics.md has the formulas, and `lpsel.evaluation.judgements` the coding of preferences.
"""

# N prompts, n judged prompts (resampled), T distinct texts, S prompt sets, R resamples

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.evaluation.judgements import TIE, as_preferences, combined, flip_rate
from lpsel.evaluation.length_control import length_controlled_win_rate, minimal_win_rate
from lpsel.evaluation.statistics import (
    RESAMPLES,
    Estimate,
    bootstrap_means,
    bootstrap_ratios,
    interval,
    score_interval,
    sign_flip_test,
)

GROUP_METRICS = (
    "n", "wins", "ties", "losses", "failed", "win_rate", "standard_error", "ci_low", "ci_high",
    "wilson_low", "wilson_high",
)  # fmt: skip

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WinRate:
    """Win rate of a model against a baseline. Rates are in percent; undefined values are None."""

    n: int  # prompts judged: wins + ties + losses
    wins: int  # preferences above 1.5
    ties: int
    losses: int
    failed: int  # prompts without a verdict
    win_rate: float | None = None  # 100 x mean(preference - 1); for plain verdicts 100 x (wins + ties / 2) / n
    standard_error: float | None = None  # 100 x sample standard deviation / sqrt(n), as in alpaca_eval
    ci_low: float | None = None  # 95% percentile bootstrap interval of the win rate over prompts, for n > 1
    ci_high: float | None = None
    discrete_win_rate: float | None = None  # 100 x (wins + ties / 2) / n, also for fractional preferences
    wilson_low: float | None = None  # 95% score interval of the win rate, for n > 1: see `score_interval`
    wilson_high: float | None = None
    p_value: float | None = None  # two-sided sign-flip test; for plain verdicts, the exact sign test
    winning_score: float | None = None  # (wins - losses) / n + 1, from 0 to 2, as in Cherry LLM (Li et al. 2024)


class Sample(NamedTuple):
    """The judged prompts, as a sample of all prompts.

    Identical answers are ties without judging. While judging is unfinished, counting all of them but only some of the
    other prompts would bias the win rate toward 50. The judged prompts then represent all prompts whose answers differ.
    """

    rows_N: Bools  # the prompts to average over
    equal: int  # number of other prompts, whose answers are identical
    weight: float  # fraction of all prompts that these rows represent; the others are ties

    @classmethod
    def of(cls, preference_N: Floats, equal_N: Bools | None) -> "Sample":
        judged_N = ~np.isnan(preference_N)
        if equal_N is None or judged_N.all() or not (equal_N & judged_N).any():
            return cls(judged_N, 0, 1.0)
        equal_N = equal_N & judged_N
        return cls(judged_N & ~equal_N, int(equal_N.sum()), 1 - float(equal_N.mean()))

    def all_prompts(self, rate: float) -> float:
        """Convert the win rate of the sampled rows to that of all prompts, in percent."""
        return self.weight * rate + (1 - self.weight) * 50

    def estimate(self, of_rows: Estimate) -> Estimate:
        """Convert a win rate and its interval with `all_prompts`."""
        return Estimate(*(None if rate is None else self.all_prompts(rate) for rate in of_rows))


def win_rate(
    preference_N: ArrayLike, *, equal_N: Bools | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> WinRate:
    """Compute the win rate from one preference per prompt, with its bootstrap interval over prompts and its p-value.

    Args:
        equal_N: prompts with identical answers, if judging is unfinished, see `Sample`.

    Raises:
        UserError: a value is not a valid preference.
    """
    preference_N = as_preferences(preference_N)
    sample = Sample.of(preference_N, equal_N)
    share_n = preference_N[sample.rows_N] - 1
    n = len(share_n)
    wins, losses = int((share_n > 0.5).sum()), int((share_n < 0.5).sum())
    ties = n - wins - losses
    counts = {"n": n + sample.equal, "wins": wins, "ties": ties + sample.equal, "losses": losses}
    counts["failed"] = len(preference_N) - counts["n"]
    if n == 0:
        return WinRate(**counts)
    rate = 100 * float(share_n.mean())
    only_win_rate = WinRate(
        **counts,
        win_rate=sample.all_prompts(rate),
        discrete_win_rate=sample.all_prompts(100 * (wins + ties / 2) / n),
        p_value=sign_flip_test(share_n - 0.5, seed=seed),
        winning_score=1 + sample.weight * (wins - losses) / n,
    )
    if n == 1:
        return only_win_rate
    _, low, high = bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed).estimate(0)
    assert low is not None
    assert high is not None
    wilson_low, wilson_high = score_interval(share_n)
    return replace(
        only_win_rate,
        standard_error=sample.weight * 100 * float(share_n.std(ddof=1)) / math.sqrt(n),
        ci_low=sample.all_prompts(min(low, rate)),  # resampled means of equal verdicts differ by rounding errors
        ci_high=sample.all_prompts(max(high, rate)),
        wilson_low=sample.all_prompts(100 * wilson_low),
        wilson_high=sample.all_prompts(100 * wilson_high),
    )


def longer_wins(preference_N: ArrayLike, model_chars_N: ArrayLike, baseline_chars_N: ArrayLike) -> float | None:
    """Compute how often the longer answer wins, in percent of the decided prompts with answers of unequal length."""
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
    equal_N: ArrayLike | None = None,
    unfinished: bool = False,
    text_N: Sequence[str | None] | None = None,
    category_N: Sequence[str | None] | None = None,
    prompt_set_N: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute all statistics of one model against the baseline.

    Args:
        preference_NO: shape (N,), or one column per order in which the answers were shown.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; None or NaN where unknown.
        equal_N: whether both answers are identical, and were therefore not judged.
        unfinished: whether prompts without a verdict have not been judged yet, see `Sample`.
        text_N: digests of the prompt texts. A text that is repeated counts once overall, and once in each prompt set.
        category_N, prompt_set_N: category and prompt set of each prompt.
        resamples, seed: settings of the bootstrap over prompts.

    Returns:
        The fields of `WinRate`; the number of `repeated` prompts, which are excluded, and of prompts with `equal`
        answers; `flip_rate` of the judged prompts; `model_mean_chars` and `baseline_mean_chars`; `longer_wins`;
        `length_controlled_win_rate` with `length_controlled_ci_low` and `_ci_high`; `length_controlled_minimal`;
        `by_category`, `by_prompt_set` and `mean_of_prompt_sets`, None without groups. Rates are in percent.

    Raises:
        UserError: a value is not a valid preference.
    """
    preference_NO = as_preferences(preference_NO)
    preference_N = combined(preference_NO)
    model_chars_N = np.asarray(model_chars_N, dtype=np.float64)
    baseline_chars_N = np.asarray(baseline_chars_N, dtype=np.float64)
    equal_N = np.zeros(len(preference_N), bool) if equal_N is None else np.asarray(equal_N, dtype=bool)
    tied_N = equal_N & unfinished  # ties that do not count like judged prompts, see `Sample`
    draws: dict[str, int] = {"resamples": resamples, "seed": seed}

    code_N, first_N = _text_codes(text_N, len(preference_N))
    preference_T, tied_T = preference_N[first_N], tied_N[first_N]
    chars_2T = model_chars_N[first_N], baseline_chars_N[first_N]
    sample = Sample.of(preference_T, tied_T)
    sampled_T = np.where(sample.rows_N, preference_T, np.nan)
    controlled = sample.estimate(length_controlled_win_rate(sampled_T, *chars_2T, **draws))
    minimal = sample.estimate(Estimate(minimal_win_rate(sampled_T, *chars_2T), None, None))

    prompt_sets = {name: _first_of_each_text(rows, code_N) for name, rows in _groups(prompt_set_N).items()}
    categories = {name: [i for i in rows if first_N[i]] for name, rows in _groups(category_N).items()}
    return {
        **asdict(win_rate(preference_T, equal_N=tied_T, **draws)),
        "repeated": int((~first_N).sum()),
        "equal": int((equal_N & first_N).sum()),
        "flip_rate": flip_rate(preference_NO[first_N & ~equal_N]),
        "model_mean_chars": _mean(model_chars_N),
        "baseline_mean_chars": _mean(baseline_chars_N),
        "longer_wins": longer_wins(preference_T, *chars_2T),
        "length_controlled_win_rate": controlled.value,
        "length_controlled_ci_low": controlled.low,
        "length_controlled_ci_high": controlled.high,
        "length_controlled_minimal": minimal.value,
        "by_category": _by_group(categories, preference_N, tied_N, draws),
        "by_prompt_set": _by_group(prompt_sets, preference_N, tied_N, draws),
        "mean_of_prompt_sets": _mean_of_sets(list(prompt_sets.values()), code_N, preference_N, tied_N, draws),
    }


def shown_interval(counted: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the interval to show next to `win_rate`, if any; the bootstrap's coverage is too low with few wins."""
    kind = "wilson" if "wilson_low" in counted else "ci"
    return counted.get(f"{kind}_low"), counted.get(f"{kind}_high")


def _text_codes(text_N: Sequence[str | None] | None, rows: int) -> tuple[NDArray[np.int64], Bools]:
    """Number the distinct texts from 0, in order, and mark their first occurrences; an unknown text is distinct."""
    code_of: dict[Any, int] = {}  # by text, or by position where the text is unknown
    texts = [i if text is None else text for i, text in enumerate(text_N or [None] * rows)]
    code_N = np.array([code_of.setdefault(text, len(code_of)) for text in texts], np.int64)
    first_N = np.zeros(rows, bool)
    first_N[np.unique(code_N, return_index=True)[1]] = True
    return code_N, first_N


def _first_of_each_text(rows: list[int], code_N: NDArray[np.int64]) -> list[int]:
    _, first = np.unique(code_N[rows], return_index=True)
    return [rows[i] for i in np.sort(first)]


def _groups(group_N: Sequence[str | None] | None) -> dict[str, list[int]]:
    """Return the rows of each group, in order of first occurrence; prompts without a group are left out."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(group_N or ()):
        if name:
            groups.setdefault(name, []).append(i)
    return groups


def _by_group(
    groups: dict[str, list[int]], preference_N: Floats, equal_N: Bools, draws: dict[str, int]
) -> dict[str, dict[str, Any]] | None:
    by_group = {}
    for name, rows in groups.items():
        metrics = asdict(win_rate(preference_N[rows], equal_N=equal_N[rows], **draws))
        by_group[name] = {metric: metrics[metric] for metric in GROUP_METRICS}
    return by_group or None


def _mean_of_sets(
    sets: list[list[int]], code_N: NDArray[np.int64], preference_N: Floats, equal_N: Bools, draws: dict[str, int]
) -> dict[str, float | None] | None:
    """Compute the unweighted mean of the win rates of the prompt sets; None if a set is empty.

    The bootstrap draws texts with their verdicts in all sets, because sets that share prompts are not independent.

    Args:
        sets: positions of the prompts of each set.
        code_N: number of each prompt's text, from `_text_codes`.
    """
    samples = [Sample.of(preference_N[rows], equal_N[rows]) for rows in sets]
    if not sets or not all(sample.rows_N.any() for sample in samples):
        return None
    won_TS, judged_TS = np.zeros((2, len(preference_N), len(sets)))
    for s, (rows, sample) in enumerate(zip(sets, samples, strict=True)):
        sampled = np.array(rows)[sample.rows_N]
        np.add.at(won_TS[:, s], code_N[sampled], preference_N[sampled] - 1)
        np.add.at(judged_TS[:, s], code_N[sampled], 1)
    occurs_T = judged_TS.any(axis=1)
    rates = bootstrap_ratios(100 * won_TS[occurs_T], judged_TS[occurs_T], **draws)
    weight_S = np.array([sample.weight for sample in samples])  # the other prompts of a set are ties, see `Sample`
    value = (weight_S * rates.value_K + (1 - weight_S) * 50).mean()
    resampled_R = (weight_S * rates.resampled_RK + (1 - weight_S) * 50).mean(axis=-1)
    mean = interval(float(value), resampled_R, int(occurs_T.sum()))
    share_S = weight_S / judged_TS.sum(axis=0)
    weight_t, won_t = (judged_TS @ share_S)[occurs_T], (won_TS @ share_S)[occurs_T]
    low, high = score_interval(won_t / weight_t, weight_t)
    weight = weight_S.mean()
    return {
        "win_rate": mean.value,
        "ci_low": mean.low,
        "ci_high": mean.high,
        "wilson_low": weight * 100 * low + (1 - weight) * 50,
        "wilson_high": weight * 100 * high + (1 - weight) * 50,
    }


def _mean(chars_N: Floats) -> float | None:
    known = chars_N[~np.isnan(chars_N)]
    return float(known.mean()) if len(known) else None
