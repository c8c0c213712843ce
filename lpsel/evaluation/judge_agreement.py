"""How far a judge agrees with itself when the answers change places, and how far two judges agree. Pure functions."""

# N prompts, O orders in which the two answers were shown

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.evaluation.winrate import TIE, checked

Floats = NDArray[np.float64]


def combined(preference_NO: ArrayLike) -> Floats:
    """One preference for every prompt of those in each order, shape (N,); NaN where any of them is missing.

    Shares are averaged. Plain verdicts (win, tie, loss) that are not the same in every order are a tie: they say which
    place the judge liked (Zheng et al. 2023, section 3.4, count a win only where both orders give it). A prompt that
    was read in one order alone would bring in that liking.
    """
    preference_NO = _by_order(preference_NO)
    mean_N = preference_NO.mean(axis=1)
    if not np.isin(preference_NO[~np.isnan(preference_NO)], (1.0, TIE, 2.0)).all():
        return mean_N
    same_N = (preference_NO == preference_NO[:, :1]).all(axis=1)
    return np.where(same_N | np.isnan(mean_N), mean_N, TIE)


def flip_rate(preference_NO: ArrayLike) -> float | None:
    """Percentage of the prompts read in both orders whose verdict (win, tie or loss) was not the same in both.

    None where no prompt was read in both. 100 minus it is the consistency of Zheng et al. 2023, Judging
    LLM-as-a-judge.
    """
    preference_NO = _by_order(preference_NO)
    if preference_NO.shape[1] != 2:
        return None
    verdict_n2 = np.sign(preference_NO[~np.isnan(preference_NO).any(axis=1)] - TIE)
    return 100 * float((verdict_n2[:, 0] != verdict_n2[:, 1]).mean()) if len(verdict_n2) else None


def judges_agreement(preference_N: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    """Every two judges on the same prompts: how often their verdicts (win, tie, loss) are the same, and Cohen's kappa.

    Args:
        preference_N: of each judge, a preference for each prompt, all in the same order.

    Returns:
        For each two `judges`, `n` prompts that both judged, `agreement` in percent and `kappa` (Cohen 1960; None where
        chance alone would agree on all).
    """
    from sklearn.metrics import cohen_kappa_score

    verdict_N = {judge: np.sign(checked(values) - TIE) for judge, values in preference_N.items()}
    found = []
    for first, second in combinations(verdict_N, 2):
        both = ~np.isnan(verdict_N[first]) & ~np.isnan(verdict_N[second])
        a, b = verdict_N[first][both], verdict_N[second][both]
        one_verdict = len(np.unique(np.concatenate([a, b]))) < 2
        kappa = math.nan if one_verdict else float(cohen_kappa_score(a, b))
        found.append(
            {
                "judges": [first, second],
                "n": len(a),
                "agreement": 100 * float((a == b).mean()) if len(a) else None,
                "kappa": kappa if math.isfinite(kappa) else None,
            }
        )
    return found


def _by_order(preference_NO: ArrayLike) -> Floats:
    preference_NO = np.array(preference_NO, dtype=np.float64)
    columns = preference_NO[:, None] if preference_NO.ndim == 1 else preference_NO
    return np.column_stack([checked(column) for column in columns.T])
