"""Pairs of answers, judgements of them, and what every judge can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt

Order = Literal["baseline_first", "model_first"]
ORDERS: tuple[Order, ...] = ("baseline_first", "model_first")
WIN, TIE, LOSS = 2.0, 1.5, 1.0
# Reasons for a missing verdict.
UNREADABLE = "unreadable"
CUT_OFF = "cut off"
NO_REFERENCE = "no reference"
TOO_LONG = "longer than the judge's context"
NOT_ASKED = "price cap"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    id: str  # of the prompt
    prompt: str
    baseline: str  # answers
    model: str
    prompt_set: str = ""
    category: str | None = None
    reference: str | None = None
    stopped: tuple[bool, bool] = (True, True)  # the model's answer and the baseline's: not at the token limit

    def shown(self, order: Order) -> tuple[str, str]:
        """The first answer and the second."""
        return (self.baseline, self.model) if order == "baseline_first" else (self.model, self.baseline)


def preference_of(verdict: float, order: Order) -> float:
    """The preference for a verdict on the answers as shown (1: first is better, 2: second), or the other way round."""
    return verdict if order == "baseline_first" else WIN + LOSS - verdict


class Judgement(NamedTuple):
    """The judgement of a pair in one order.

    `preference` is 1 if the baseline's answer is better, 2 if the model's is, and 1.5 for a tie, as in AlpacaEval;
    numbers in between are fractional preferences.
    """

    id: str  # of the pair
    order: Order
    preference: float | None  # None without a verdict
    raw: str | None = None  # the judge's last reply
    prompt_tokens: int | None = None  # of all attempts
    completion_tokens: int | None = None
    attempts: int = 1
    failure: str | None = None  # why there is no preference
    letter_probability: float | None = None  # of A and B together as the next token, where the judge compares them


class Judge(Protocol):
    """Decides which of two answers is better.

    Attributes:
        name: shown in results.
        orders: every pair is judged in each of them.
    """

    name: str
    orders: Sequence[Order]

    def identity(self) -> dict[str, Any]:
        """Everything except the pair that its verdicts depend on, without secrets."""

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Check the configuration and the prompts before any answer is generated; a UserError if they are unusable."""

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """Dollars for a judgement with these tokens; None if a price or a count is unknown."""

    def judge(self, questions: Sequence[tuple[Pair, Order]], save: Callable[[Judgement], None]) -> None:
        """Judge pairs and pass each judgement to `save`, which writes it to disk. Calls of `save` do not overlap.

        Questions beyond a price cap are left out.

        Raises:
            UserError: no further question can succeed, for example because the API key is wrong.
        """


def check_orders(orders: Sequence[str]) -> None:
    """Raise a UserError unless `orders` holds one or both orders, once each."""
    if not orders or not set(orders) <= set(ORDERS) or len(set(orders)) < len(orders):
        hint = "set [baseline_first], [model_first] or [baseline_first,model_first]"
        raise UserError("judge.orders", list(orders), "must name one or both orders, once each", hint)
