"""Two answers to one prompt, and what a judge says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from lpsel.generation.prompts import Prompt

Order = Literal["baseline_first", "model_first"]
ORDERS: tuple[Order, ...] = ("baseline_first", "model_first")
WIN, TIE, LOSS = 2.0, 1.5, 1.0
UNREADABLE = "unreadable"  # failures that are final; others are asked again by the next run
NO_REFERENCE = "no reference"
TOO_LONG = "longer than the judge's context"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        id: of the prompt.
        prompt: as text.
        baseline, model: the answers.
        prompt_set, category, reference: as the prompt's.
    """

    id: str
    prompt: str
    baseline: str
    model: str
    prompt_set: str = ""
    category: str | None = None
    reference: str | None = None

    def shown(self, order: Order) -> tuple[str, str]:
        """The answers, the one that is shown first in front."""
        return (self.baseline, self.model) if order == "baseline_first" else (self.model, self.baseline)


def preference_of(verdict: float, order: Order) -> float:
    """From a verdict on the answers as shown (1: the first is better, 2: the second) to a preference, and back."""
    return verdict if order == "baseline_first" else WIN + LOSS - verdict


class Judgement(NamedTuple):
    """What a judge said of a pair whose answers it was shown in one order.

    Attributes:
        id: of the pair.
        order: which answer was shown first.
        preference: 1 the baseline's answer is better, 2 the model's, 1.5 a tie, as AlpacaEval counts; numbers between
            are shares; None where nothing could be read.
        raw: what the judge wrote, None where it has written nothing.
        prompt_tokens, completion_tokens: of all attempts, where the judge reports them.
        attempts: how often it was asked.
        failure: why preference is None.
    """

    id: str
    order: Order
    preference: float | None
    raw: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 1
    failure: str | None = None


class Judge(Protocol):
    """Anything that can say which of two answers is better.

    Attributes:
        name: shown in results.
        orders: in which every pair is shown.
    """

    name: str
    orders: tuple[Order, ...]

    def identity(self) -> dict[str, Any]:
        """All that its verdicts depend on but the pair: model, prompt, settings. No secrets."""

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Look for what can be wrong with its configuration or the prompts before any answer is generated.

        Raises:
            UserError: with one line that names the value and the remedy.
        """

    def cost(self, judgement: Judgement) -> float | None:
        """Dollars that a judgement cost, None where no price or no token count is known."""

    def judge(self, asked: Sequence[tuple[Pair, Order]], keep: Callable[[Judgement], None]) -> None:
        """Judge pairs, and hand each judgement to `keep`, which puts it on disk, before the next is asked for.

        `keep` may be called from several threads. May stop before all are judged (a price cap); what is missing then
        is known from what was kept.

        Raises:
            UserError: what no further question could mend, such as a wrong key. What was kept stays.
        """
