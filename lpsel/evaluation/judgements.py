"""Verdicts of judges as numbers: combining both orders, agreement between judges, and judgements.parquet.

Preferences are coded as in AlpacaEval: 1 if the first answer (the baseline's) is better, 2 if the second one (the
model's) is, 1.5 or 0 for a tie, numbers between 1 and 2 for fractional preferences, NaN if not judged.
"""

# N prompts, O orders in which the two answers were shown, U distinct prompts of several models or judges

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpsel.errors import UserError
from lpsel.judging.judge import LOSS, NOT_ASKED, TIE, WIN
from lpsel.storage import write_table

log = logging.getLogger(__name__)

CODES = "use 1 (the baseline's answer is better), 2 (the model's), a number between, 0 or 1.5 (a tie), or null"
KAPPAS = {"kappa": None, "weighted_kappa": "linear"}  # weights of scikit-learn
JUDGEMENTS = "judgements.parquet"
VERDICTS = {1: "win", 0: "tie", -1: "loss"}
# Columns of judgements.parquet; all others are strings.
FLOATS = ("preference", "letter_probability", "model_chars", "baseline_chars")
INTEGERS = ("prompt_tokens", "completion_tokens", "attempts")
BOTH_ORDERS = 0.1  # minimum fraction of prompts judged in both orders; below it, each prompt counts as judged once

Floats = NDArray[np.float64]
# A verdict: id, order, model, judge, baseline, category, prompt_set, text (digest of the prompt), preference,
# model_chars, baseline_chars, equal (identical answers), failure, and the other columns of judgements.parquet.
Row = dict[str, Any]


def as_preferences(values: ArrayLike) -> Floats:
    """Convert preferences of any shape to float64; ties become 1.5, and None becomes NaN.

    Raises:
        UserError: a value is not a valid preference.
    """
    preference = np.array(values, dtype=np.float64)
    preference[preference == 0] = TIE
    wrong = np.argwhere((preference < LOSS) | (preference > WIN))
    if len(wrong):
        value = preference[tuple(wrong[0])]
        raise UserError("preference", f"{value:g}", f"row {wrong[0][0]} is not a preference", CODES)
    return preference


def combined(preference_NO: ArrayLike) -> Floats:
    """Combine the preferences in each order into one per prompt, shape (N,); NaN if any of them is missing.

    If the orders agree on the verdict (win, tie, loss), it is their mean. Otherwise it is a tie, because the verdicts
    only reflect position bias (Zheng et al. 2023, section 3.4, count a win only if both orders agree). For the same
    reason, a prompt that was judged in only one of two orders has no preference.
    """
    preference_NO = _by_order(preference_NO)
    mean_N = preference_NO.mean(axis=1)
    verdict_NO = np.sign(preference_NO - TIE)
    flipped_N = (verdict_NO != verdict_NO[:, :1]).any(axis=1)
    return np.where(flipped_N & ~np.isnan(mean_N), TIE, mean_N)


def flip_rate(preference_NO: ArrayLike) -> float | None:
    """Compute the percentage of prompts judged in both orders whose verdict (win, tie or loss) depends on the order.

    None without such prompts. 100 minus the flip rate is the consistency of Zheng et al. 2023, Judging LLM-as-a-judge.
    """
    preference_NO = _by_order(preference_NO)
    if preference_NO.shape[1] != 2:
        return None
    verdict_n2 = np.sign(preference_NO[~np.isnan(preference_NO).any(axis=1)] - TIE)
    return 100 * float((verdict_n2[:, 0] != verdict_n2[:, 1]).mean()) if len(verdict_n2) else None


def judges_agreement(preference_N: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    """Compute the agreement of every pair of judges from their preferences for the same prompts, in the same order.

    Returns:
        For each pair of `judges`: the number `n` of prompts that both judged, the `agreement` of their verdicts (win,
        tie, loss) in percent, and Cohen's `kappa` (1960) and linearly `weighted_kappa` (1968), which are None if only
        one verdict occurs.
    """
    from sklearn.metrics import cohen_kappa_score

    def kappa(a: Floats, b: Floats, weights: str | None) -> float | None:
        if len(np.unique([a, b])) < 2:
            return None
        return float(cohen_kappa_score(a, b, labels=[-1, 0, 1], weights=weights))

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


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of one judge on one model; names are "" if unknown."""

    model: str
    judge: str
    baseline: str
    ids: list[str]  # prompt ids
    preference_NO: Floats  # coded as in the module docstring
    model_chars_N: Floats  # lengths of the answers, NaN if unknown
    baseline_chars_N: Floats
    category_N: list[str | None]
    prompt_set_N: list[str | None]
    text_N: list[str | None]
    equal_N: NDArray[np.bool_]  # whether both answers are identical, and were therefore not judged
    rows: list[Row]

    @property
    def unfinished(self) -> bool:
        """Whether some pairs have not been judged because of the price cap."""
        return any(row.get("failure") == NOT_ASKED for row in self.rows)

    @property
    def only_order(self) -> str | None:
        """The only order in which the judge has replied to pairs; None if there are several orders or no replies."""
        orders = {row["order"] for row in self.rows if row.get("raw")}
        return orders.pop() if len(orders) == 1 else None

    @property
    def letter_probability(self) -> float | None:
        """Mean probability that the next token is A or B; None unless the judge compares these probabilities."""
        known = [p for row in self.rows if (p := row.get("letter_probability")) is not None]
        return float(np.mean(known)) if known else None


def group(rows: Iterable[Row], where: str = "") -> list[Verdicts]:
    """Group verdicts by judge and model; errors name `where`, the files they were read from."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["judge"]), []).append(row)
    return [_collect(rows_of_group, where) for rows_of_group in groups.values()]


def aligned(verdicts: Sequence[Verdicts]) -> dict[str, Floats]:
    """Align the judges' preferences for one model: by judge, a value for every prompt that any judged, or NaN."""
    return by_prompt({of_judge.judge: without_equal(of_judge) for of_judge in verdicts})


def without_equal(verdicts: Verdicts) -> Verdicts:
    """Set the preferences for identical answers, which were not judged, to NaN."""
    return replace(verdicts, preference_NO=np.where(verdicts.equal_N[:, None], np.nan, verdicts.preference_NO))


def by_prompt(verdicts: Mapping[str, Verdicts]) -> dict[str, Floats]:
    """Align preferences by prompt: for each of `verdicts`, a value for every distinct prompt of all, or NaN, (U,) each.

    Prompts are the same if their texts are, or their ids where a text is unknown. The first verdict on a prompt counts,
    as in `pairwise_metrics`.
    """
    prompts = {name: [text or i for i, text in zip(v.ids, v.text_N, strict=True)] for name, v in verdicts.items()}
    position_of = {prompt: u for u, prompt in enumerate(dict.fromkeys(chain.from_iterable(prompts.values())))}
    preferences = {}
    for name, prompts_N in prompts.items():
        positions = [position_of[prompt] for prompt in prompts_N]
        preference_U = np.full(len(position_of), np.nan)
        # Reversed, so that the first verdict on a prompt overwrites the others.
        preference_U[positions[::-1]] = combined(verdicts[name].preference_NO)[::-1]
        preferences[name] = preference_U
    return preferences


def write_judgements(path: Path, verdicts: Sequence[Verdicts]) -> None:
    """Write a Parquet table for `read_judgements`, with an additional column `verdict` (win, tie or loss)."""
    rows = [row for table in verdicts for row in table.rows]
    sign_N = np.sign(as_preferences([row["preference"] for row in rows]) - TIE)
    with_verdicts = ({**row, "verdict": VERDICTS.get(sign)} for row, sign in zip(rows, sign_N, strict=True))
    types = dict.fromkeys(FLOATS, "float64") | dict.fromkeys(INTEGERS, "int64") | {"equal": "bool"}
    write_table(path, with_verdicts, types)


def _collect(rows: list[Row], where: str) -> Verdicts:
    """Convert the verdicts of one judge on one model to arrays."""
    model, judge, baseline = (rows[0][field] for field in ("model", "judge", "baseline"))
    orders = list(dict.fromkeys(row["order"] for row in rows))
    if len(orders) > 2:
        problem = f"{len(orders)} values in column order ({', '.join(orders)})"
        raise UserError("judgements", where, problem, "use one value for each of the two orders")
    first_row: dict[str, Row] = {}  # by prompt id
    preferences: dict[str, dict[str, float | None]] = {}  # by prompt id and order
    for row in rows:
        first_row.setdefault(row["id"], row)
        by_order = preferences.setdefault(row["id"], {})
        if row["order"] in by_order:
            both = f"two verdicts by {judge or 'the judge'} on {model or 'the model'}"
            problem = f"{both} for the same prompt, {row['id'][:60]!r}"
            raise UserError("judgements", where, problem, "remove one, or add a column order")
        by_order[row["order"]] = row["preference"]
    in_both_orders = sum(len(by_order) == 2 for by_order in preferences.values())
    if len(orders) == 2 and in_both_orders < BOTH_ORDERS * len(preferences):
        log.warning("%s: each prompt was judged in one order only, so position bias is not corrected", where or judge)
        judged = [[by_order[order] for order in orders if order in by_order] for by_order in preferences.values()]
        preference_NO = np.array([combined(np.array([verdicts], np.float64)) for verdicts in judged])
    else:
        judged = [[by_order.get(order) for order in orders] for by_order in preferences.values()]
        preference_NO = np.array(judged, dtype=np.float64)
    column = {field: [row.get(field) for row in first_row.values()] for field in (*rows[0], "text", "equal")}
    return Verdicts(
        model=model,
        judge=judge,
        baseline=baseline,
        ids=list(first_row),
        preference_NO=preference_NO,
        model_chars_N=np.array(column["model_chars"], dtype=np.float64),
        baseline_chars_N=np.array(column["baseline_chars"], dtype=np.float64),
        category_N=column["category"],
        prompt_set_N=column["prompt_set"],
        text_N=column["text"],
        equal_N=np.array(column["equal"], dtype=bool),
        rows=rows,
    )
