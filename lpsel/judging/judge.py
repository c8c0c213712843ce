"""The interface of judges, and judging pairs of answers with cached verdicts and a cost limit."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from lpsel.cache import Journal
from lpsel.console import track
from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt
from lpsel.storage import digest

log = logging.getLogger(__name__)

Order = Literal["baseline_first", "model_first"]
ORDERS: tuple[Order, ...] = ("baseline_first", "model_first")
WIN, TIE, LOSS = 2.0, 1.5, 1.0
# Reasons for a missing verdict.
UNREADABLE = "unreadable"
CUT_OFF = "cut off"
NO_REFERENCE = "no reference"
TOO_LONG = "longer than the judge's context"
NOT_ASKED = "price cap"
FINAL = (NO_REFERENCE, TOO_LONG)  # asking again would not help


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the same prompt."""

    id: str  # prompt id
    prompt: str
    baseline: str  # answer of the baseline, and below of the model
    model: str
    prompt_set: str = ""
    category: str | None = None
    reference: str | None = None
    stopped: tuple[bool, bool] = (True, True)  # whether the model and the baseline stopped before the token limit

    @property
    def equal(self) -> bool:
        """Whether both answers are identical, which is a tie without a question."""
        return self.baseline == self.model

    @property
    def prompt_digest(self) -> str:
        """A digest of the prompt, to recognize prompts that are in several sets."""
        return digest(self.prompt)[:16]

    def shown(self, order: Order) -> tuple[str, str]:
        """Return the first and the second answer in this order."""
        return (self.baseline, self.model) if order == "baseline_first" else (self.model, self.baseline)


def preference_of(verdict: float, order: Order) -> float:
    """Convert a verdict on the answers as shown (1: first is better, 2: second) to a preference, or vice versa."""
    return verdict if order == "baseline_first" else WIN + LOSS - verdict


def higher_score_wins(first: float, second: float) -> float:
    """Return the verdict on two answers with these scores; equal scores are a tie."""
    if first == second:
        return TIE
    return LOSS if first > second else WIN


class Judgement(NamedTuple):
    """The judgement of a pair in one order.

    As in AlpacaEval, `preference` is 1 if the baseline's answer is better, 2 if the model's is, and 1.5 for a tie;
    other numbers in between are fractional preferences.
    """

    id: str  # id of the pair
    order: Order
    preference: float | None  # None without a verdict
    raw: str | None = None  # the judge's last reply
    prompt_tokens: int | None = None  # total of all attempts
    completion_tokens: int | None = None
    attempts: int = 1
    failure: str | None = None  # why there is no preference
    letter_probability: float | None = None  # that the next token is A or B, if the judge compares them


Question = tuple[Pair, Order]


class Judge(Protocol):
    """Decides which of two answers is better.

    Attributes:
        name: name shown in results.
        orders: the orders in which to show the answers of every pair.
    """

    name: str
    orders: Sequence[Order]

    def identity(self) -> dict[str, Any]:
        """Return everything except the pair that verdicts depend on, without secrets."""

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Check the configuration and prompts before answers are generated; raise a UserError if they are unusable."""

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """Return the cost of a judgement in dollars; None if a price or a token count is unknown."""

    def judge(self, questions: Sequence[Question], save: Callable[[Judgement], None]) -> None:
        """Judge pairs and pass each judgement to `save`, which writes it to disk. Calls of `save` do not overlap.

        No further questions are asked after a price cap is reached.

        Raises:
            UserError: no further question can succeed, for example because the API key is wrong.
        """


def check_orders(orders: Sequence[str]) -> None:
    """Raise a UserError unless `orders` contains one or both orders, once each."""
    if not orders or not set(orders) <= set(ORDERS) or len(set(orders)) < len(orders):
        hint = "set [baseline_first], [model_first] or [baseline_first,model_first]"
        raise UserError("judge.orders", list(orders), "must name one or both orders, once each", hint)


def judge_pairs(judge: Judge, pairs: Sequence[Pair], cache_dir: Path) -> tuple[list[Judgement], dict[str, Any]]:
    """Judge every pair in every order of the judge; identical answers are a tie without a question.

    Args:
        judge: the judge; verdicts are cached by its identity and the texts, and failed questions are asked again.
        pairs: pairs with distinct ids.
        cache_dir: folder for cached verdicts.

    Returns:
        A judgement for every pair and order, in the order of the pairs, with the failure "price cap" if the cap left it
        out; and a report with counts, tokens and dollars of all verdicts (None if unknown), where `unanswered` counts
        failures that another run retries, `cost_now` excludes cached verdicts, and `kept` is the path of the journal.

    Raises:
        UserError: no further question can succeed. Earlier verdicts are cached.
    """
    questions = [(pair, order) for pair in pairs for order in judge.orders]
    assert len({pair.id for pair in pairs}) == len(pairs), "ids are distinct"
    journal = Journal.of(cache_dir, "verdicts", judge.identity(), label=judge.name)
    with journal.locked():
        known = _cached(journal, questions)
        reused = len(known)
        _ask_missing(judge, questions, known, journal)
    judgements = [_judgement(pair, order, known.get(question_key(pair, order))) for pair, order in questions]
    left_out = sum(judgement.failure == NOT_ASKED for judgement in judgements)
    if left_out:
        message = "Reached judge.max_cost: %s of %s judgements are missing. Run again with a higher limit to add them."
        log.warning(message, f"{left_out:,}", f"{len(judgements):,}")
    costs = [judge.cost(judgement.prompt_tokens, judgement.completion_tokens) for judgement in known.values()]
    report = {
        "judge": judge.name,
        "identity": judge.identity(),
        "judgements": len(judgements),
        "equal": sum(pair.equal for pair, _ in questions),
        "asked": len(known) - reused,
        "reused": reused,
        "failed": sum(judgement.preference is None for judgement in judgements),
        "unanswered": sum(j.preference is None and j.failure not in FINAL for j in judgements),
        "prompt_tokens": sum_known([judgement.prompt_tokens for judgement in known.values()]),
        "completion_tokens": sum_known([judgement.completion_tokens for judgement in known.values()]),
        "cost": sum_known(costs),
        "cost_now": sum_known(costs[reused:]),
        "first_shown_wins": _first_shown_wins(judgements),
        "stopped_by_cap": left_out > 0,
        "kept": str(journal.path),
    }
    return judgements, report


def question_key(pair: Pair, order: Order) -> str:
    """Return the cache key of a question: the same for the same texts in the same order, whichever model wrote them."""
    return digest([pair.prompt, *pair.shown(order), pair.reference])


def _cached(journal: Journal, questions: Sequence[Question]) -> dict[str, Judgement]:
    """Read the judgements of questions by `question_key`; failed ones are left out, so that they are asked again."""
    keys = {question_key(pair, order) for pair, order in questions}
    judgements: dict[str, Judgement] = {}
    for line in journal.read():
        key = line.pop("question")
        if key in keys:
            judgements[key] = Judgement(**line)
    return {key: judgement for key, judgement in judgements.items() if judgement.preference is not None}


def _ask_missing(judge: Judge, questions: Sequence[Question], known: dict[str, Judgement], journal: Journal) -> None:
    """Ask the judge each new question once, and add its judgements to `known` and the journal."""
    missing: dict[str, Question] = {}
    for pair, order in questions:
        key = question_key(pair, order)
        if key not in known and not pair.equal:
            missing.setdefault(key, (pair, order))
    if not missing:
        return
    log.info("Asking %s %s questions; %s verdicts are cached", judge.name, f"{len(missing):,}", f"{len(known):,}")
    key_of = {(pair.id, order): key for key, (pair, order) in missing.items()}
    with track(f"Judging, {judge.name}", total=len(missing), unit="judgements") as advance:

        def save(judgement: Judgement) -> None:
            key = key_of[judgement.id, judgement.order]
            journal.append([{"question": key, **judgement._asdict()}])
            known[key] = judgement
            advance(1, tokens=(judgement.prompt_tokens or 0) + (judgement.completion_tokens or 0))

        judge.judge(list(missing.values()), save)


def _judgement(pair: Pair, order: Order, known: Judgement | None) -> Judgement:
    """Convert a known judgement of the same texts to one of this pair; baseline and model may be swapped."""
    if pair.equal:
        return Judgement(pair.id, order, TIE, attempts=0)
    if known is None:
        return Judgement(pair.id, order, None, attempts=0, failure=NOT_ASKED)
    preference = known.preference
    if preference is not None and known.order != order:
        preference = WIN + LOSS - preference
    return known._replace(id=pair.id, order=order, preference=preference)


def sum_known(values: Iterable[float | None]) -> float | None:
    """Sum of the values that are known; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _first_shown_wins(judgements: Sequence[Judgement]) -> float | None:
    """Compute the percentage of decided judgements won by the answer shown first; 50 means no position bias."""
    verdicts = [preference_of(j.preference, j.order) for j in judgements if j.preference is not None]
    first_wins = [verdict < TIE for verdict in verdicts if verdict != TIE]
    return 100 * sum(first_wins) / len(first_wins) if first_wins else None
