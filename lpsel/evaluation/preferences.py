"""Verdicts of judges as numbers: both orders combined into one preference, and agreement between judges.

Preferences are coded like AlpacaEval's: 1 if the first answer (the baseline's) is better, 2 if the second one (the
model's) is, 1.5 or 0 for a tie, numbers between 1 and 2 for fractional preferences, NaN if not judged.
"""

# N prompts, O orders in which the two answers were shown

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.errors import UserError
from lpsel.judging.judge import LOSS, TIE, WIN

CODES = "use 1 (the baseline's answer is better), 2 (the model's), a number between, 0 or 1.5 (a tie), or null"
KAPPAS = {"kappa": None, "weighted_kappa": "linear"}  # weights of scikit-learn

Floats = NDArray[np.float64]


def as_preferences(values: ArrayLike) -> Floats:
    """Preferences of any shape as float64; every tie is 1.5, and None becomes NaN.

    Raises:
        UserError: a number that is not a preference.
    """
    preference = np.array(values, dtype=np.float64)
    preference[preference == 0] = TIE
    wrong = np.argwhere((preference < LOSS) | (preference > WIN))
    if len(wrong):
        value = preference[tuple(wrong[0])]
        raise UserError("preference", f"{value:g}", f"row {wrong[0][0]} is not a preference", CODES)
    return preference


def combined(preference_NO: ArrayLike) -> Floats:
    """One preference for every prompt from those in each order, shape (N,); NaN where any of them is missing.

    The mean where the orders agree on the verdict (win, tie, loss). Elsewhere a tie, because the verdicts only show
    which position the judge prefers (Zheng et al. 2023, section 3.4, count a win only if both orders agree). For the
    same reason, a prompt with a verdict in one order only has no preference.
    """
    preference_NO = _by_order(preference_NO)
    mean_N = preference_NO.mean(axis=1)
    verdict_NO = np.sign(preference_NO - TIE)
    flipped_N = (verdict_NO != verdict_NO[:, :1]).any(axis=1)
    return np.where(flipped_N & ~np.isnan(mean_N), TIE, mean_N)


def flip_rate(preference_NO: ArrayLike) -> float | None:
    """Percentage of the prompts judged in both orders whose verdict (win, tie or loss) differs between the orders.

    None if no prompt was judged in both. 100 minus it is the consistency of Zheng et al. 2023, Judging LLM-as-a-judge.
    """
    preference_NO = _by_order(preference_NO)
    if preference_NO.shape[1] != 2:
        return None
    verdict_n2 = np.sign(preference_NO[~np.isnan(preference_NO).any(axis=1)] - TIE)
    return 100 * float((verdict_n2[:, 0] != verdict_n2[:, 1]).mean()) if len(verdict_n2) else None


def judges_agreement(preference_N: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    """Agreement of every two judges, given the preferences of each for the same prompts in the same order.

    Returns:
        For each pair of `judges`: `n` prompts that both judged, `agreement` of their verdicts (win, tie, loss) in
        percent, Cohen's `kappa` (1960) and `weighted_kappa` (1968), for which a loss is twice as far from a win as from
        a tie. None if only one verdict occurs.
    """
    from sklearn.metrics import cohen_kappa_score

    def kappa(a: Floats, b: Floats, weights: str | None) -> float | None:
        several = len(np.unique([a, b])) > 1
        return float(cohen_kappa_score(a, b, labels=[-1, 0, 1], weights=weights)) if several else None

    verdict_N = {judge: np.sign(as_preferences(values) - TIE) for judge, values in preference_N.items()}
    pairs = []
    for first, second in combinations(verdict_N, 2):
        both = ~np.isnan(verdict_N[first]) & ~np.isnan(verdict_N[second])
        a, b = verdict_N[first][both], verdict_N[second][both]
        pairs.append(
            {
                "judges": [first, second],
                "n": len(a),
                "agreement": 100 * float((a == b).mean()) if len(a) else None,
                **{name: kappa(a, b, weights) for name, weights in KAPPAS.items()},
            }
        )
    return pairs


def _by_order(preference_NO: ArrayLike) -> Floats:
    preference = as_preferences(preference_NO)
    return preference[:, None] if preference.ndim == 1 else preference
