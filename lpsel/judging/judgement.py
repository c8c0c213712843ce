"""Two answers to one prompt, and what a judge says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Order = Literal["baseline_first", "model_first"]
ORDERS: tuple[Order, ...] = ("baseline_first", "model_first")
WIN, TIE, LOSS = 2.0, 1.5, 1.0


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

    def check(self) -> None:
        """Look for what can be wrong with its configuration before any answer is generated.

        Raises:
            UserError: with one line that names the value and the remedy.
        """

    def judge(self, asked: Sequence[tuple[Pair, Order]], keep: Callable[[Judgement], None]) -> None:
        """Judge pairs, and hand each judgement to `keep`, which puts it on disk, before the next is asked for.

        May stop before all are judged (a price cap); what is missing then is known from what was kept.
        """
