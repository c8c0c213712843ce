"""How often one model's answers are preferred to a baseline's, with every statistic of the comparison. Pure functions.

docs/reference/metrics.md has the formulas. For the coding of preferences see `lpsel.evaluation.judgements`.
"""

# N prompts, n judged prompts that are resampled, T distinct texts, S prompt sets, R resamples

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """A model against a baseline. Rates are in percent; None where the data do not define a value."""

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
    p_value: float | None = None  # two-sided sign-flip test of an even mean: the exact sign test of plain verdicts
    winning_score: float | None = None  # (wins - losses) / n + 1, from 0 to 2, as in Cherry LLM (Li et al. 2024)


class Sample(NamedTuple):
    """The judged prompts that stand for all of them.

    Equal answers are ties that nobody judged. In unfinished judging, counting all of them next to a part of the other
    prompts would pull the win rate toward 50. The judged prompts then stand for all whose answers differ.
    """

    rows_N: Bools  # the prompts to average
    equal: int  # further prompts, whose answers are equal
    weight: float  # fraction of the prompts that the rows stand for; the others are ties

    @classmethod
    def of(cls, preference_N: Floats, equal_N: Bools | None) -> "Sample":
        judged_N = ~np.isnan(preference_N)
        if equal_N is None or judged_N.all() or not (equal_N & judged_N).any():
            return cls(judged_N, 0, 1.0)
        equal_N = equal_N & judged_N
        return cls(judged_N & ~equal_N, int(equal_N.sum()), 1 - float(equal_N.mean()))

    def all_prompts(self, rate: float) -> float:
        """The rate of all prompts, given that of the rows, in percent."""
        return self.weight * rate + (1 - self.weight) * 50

    def estimate(self, of_rows: Estimate) -> Estimate:
        """The same for a rate and its interval."""
        return Estimate(*(None if rate is None else self.all_prompts(rate) for rate in of_rows))


def win_rate(
    preference_N: ArrayLike, *, equal_N: Bools | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> WinRate:
    """Win rate of one preference per prompt, with its bootstrap interval over prompts and its test.

    Args:
        equal_N: in unfinished judging, the prompts with equal answers, see `Sample`.

    Raises:
        UserError: a number that is not a preference.
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
    low, high = bootstrap_means(100 * share_n[:, None], resamples=resamples, seed=seed).estimate(0)[1:]
    if low is not None and high is not None:  # resampled means of equal verdicts differ by rounding errors
        low, high = sample.all_prompts(min(low, rate)), sample.all_prompts(max(high, rate))
    score = [sample.all_prompts(100 * end) for end in score_interval(share_n)] if n > 1 else [None, None]
    return WinRate(
        **counts,
        win_rate=sample.all_prompts(rate),
        standard_error=sample.weight * 100 * float(share_n.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        ci_low=low,
        ci_high=high,
        discrete_win_rate=sample.all_prompts(100 * (wins + ties / 2) / n),
        wilson_low=score[0],
        wilson_high=score[1],
        p_value=sign_flip_test(share_n - 0.5, seed=seed),
        winning_score=1 + sample.weight * (wins - losses) / n,
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
    equal_N: ArrayLike | None = None,
    unfinished: bool = False,
    text_N: Sequence[str | None] | None = None,
    category_N: Sequence[str | None] | None = None,
    prompt_set_N: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every statistic of one model against the baseline.

    Args:
        preference_NO: shape (N,), or a column for each order in which the answers were shown.
        model_chars_N, baseline_chars_N: lengths of the answers in characters; None or NaN where unknown.
        equal_N: prompts with equal answers, which were not judged.
        unfinished: prompts without a verdict have not been judged yet, see `Sample`.
        text_N: a digest of each prompt's text. A prompt that is in several sets counts once, except within each set.
        category_N, prompt_set_N: of the prompts.
        resamples, seed: of the bootstrap over prompts.

    Returns:
        The fields of `WinRate`; `repeated` prompts, which are not among them; those with `equal` answers; `flip_rate`
        of the prompts that were judged; `model_mean_chars` and `baseline_mean_chars`; `longer_wins`;
        `length_controlled_win_rate` with `length_controlled_ci_low` and `_ci_high`; `length_controlled_minimal`;
        `by_category`, `by_prompt_set` and `mean_of_prompt_sets`, None without groups. Rates are in percent.

    Raises:
        UserError: a number that is not a preference.
    """
    preference_NO = as_preferences(preference_NO)
    preference_N = combined(preference_NO)
    model_chars_N = np.asarray(model_chars_N, dtype=np.float64)
    baseline_chars_N = np.asarray(baseline_chars_N, dtype=np.float64)
    equal_N = np.zeros(len(preference_N), bool) if equal_N is None else np.asarray(equal_N, dtype=bool)
    tied_N = equal_N & unfinished
    texts, first_N = _texts(text_N, len(preference_N))
    draws: dict[str, int] = {"resamples": resamples, "seed": seed}
    sample = Sample.of(preference_N[first_N], tied_N[first_N])
    verdicts = np.where(sample.rows_N, preference_N[first_N], np.nan), model_chars_N[first_N], baseline_chars_N[first_N]
    controlled = sample.estimate(length_controlled_win_rate(*verdicts, **draws))
    sets = _groups(prompt_set_N)
    of_categories = {name: [i for i in rows if first_N[i]] for name, rows in _groups(category_N).items()}
    return {
        **asdict(win_rate(preference_N[first_N], equal_N=tied_N[first_N], **draws)),
        "repeated": int((~first_N).sum()),
        "equal": int((equal_N & first_N).sum()),
        "flip_rate": flip_rate(preference_NO[first_N & ~equal_N]),
        "model_mean_chars": _mean(model_chars_N),
        "baseline_mean_chars": _mean(baseline_chars_N),
        "longer_wins": longer_wins(preference_N[first_N], model_chars_N[first_N], baseline_chars_N[first_N]),
        "length_controlled_win_rate": controlled.value,
        "length_controlled_ci_low": controlled.low,
        "length_controlled_ci_high": controlled.high,
        "length_controlled_minimal": sample.estimate(Estimate(minimal_win_rate(*verdicts), None, None)).value,
        "by_category": _by_group(of_categories, preference_N, tied_N, draws),
        "by_prompt_set": _by_group(sets, preference_N, tied_N, draws),
        "mean_of_prompt_sets": _mean_of_sets(list(sets.values()), texts, preference_N, tied_N, draws),
    }


def shown_interval(counted: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval to show next to `win_rate`, None for a single verdict: the bootstrap's covers less with few wins."""
    kind = "wilson" if "wilson_low" in counted else "ci"
    return counted.get(f"{kind}_low"), counted.get(f"{kind}_high")


def _texts(text_N: Sequence[str | None] | None, rows: int) -> tuple[NDArray[np.int64], Bools]:
    """A number for every text, and where it occurs first; a prompt whose text is unknown has its own."""
    number: dict[Any, int] = {}
    texts = [
        number.setdefault(i if text is None else text, len(number)) for i, text in enumerate(text_N or [None] * rows)
    ]
    first_N = np.zeros(rows, bool)
    first_N[np.unique(texts, return_index=True)[1]] = True
    return np.array(texts, np.int64), first_N


def _groups(group_N: Sequence[str | None] | None) -> dict[str, list[int]]:
    """Rows of each group, in order of first occurrence; prompts without a group are left out."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(group_N or ()):
        if name:
            groups.setdefault(name, []).append(i)
    return groups


def _by_group(
    groups: dict[str, list[int]], preference_N: Floats, equal_N: Bools, draws: dict[str, int]
) -> dict[str, dict[str, Any]] | None:
    by_group = {
        name: asdict(win_rate(preference_N[rows], equal_N=equal_N[rows], **draws)) for name, rows in groups.items()
    }
    return {name: {key: rate[key] for key in GROUP_METRICS} for name, rate in by_group.items()} or None


def _mean_of_sets(
    sets: list[list[int]], texts: NDArray[np.int64], preference_N: Floats, equal_N: Bools, draws: dict[str, int]
) -> dict[str, float | None] | None:
    """Unweighted mean of the win rates of the sets, None if one is empty.

    Texts are resampled, each with its verdicts in all sets: sets that share prompts do not vary independently.
    """
    samples = [Sample.of(preference_N[rows], equal_N[rows]) for rows in sets]
    if not sets or not all(sample.rows_N.any() for sample in samples):
        return None
    won_TS, judged_TS = np.zeros((2, len(preference_N), len(sets)))
    for s, (rows, sample) in enumerate(zip(sets, samples, strict=True)):
        used = np.array(rows)[sample.rows_N]
        np.add.at(won_TS[:, s], texts[used], preference_N[used] - 1)
        np.add.at(judged_TS[:, s], texts[used], 1)
    occurs_T = judged_TS.any(axis=1)
    rates = bootstrap_ratios(100 * won_TS[occurs_T], judged_TS[occurs_T], **draws)
    weight_S = np.array([sample.weight for sample in samples])
    value, resampled_R = (
        (weight_S * rate + (1 - weight_S) * 50).mean(axis=-1) for rate in (rates.value_K, rates.resampled_RK)
    )
    mean = interval(float(value), resampled_R, int(occurs_T.sum()))
    share_S = weight_S / judged_TS.sum(axis=0)
    weight_t, won_t = ((counts_TS @ share_S)[occurs_T] for counts_TS in (judged_TS, won_TS))
    judged = weight_S.mean()
    ends = [judged * 100 * end + (1 - judged) * 50 for end in score_interval(won_t / weight_t, weight_t)]
    return dict(zip(("win_rate", "ci_low", "ci_high", "wilson_low", "wilson_high"), [*mean, *ends], strict=True))


def _mean(chars_N: Floats) -> float | None:
    known = chars_N[~np.isnan(chars_N)]
    return float(known.mean()) if len(known) else None
