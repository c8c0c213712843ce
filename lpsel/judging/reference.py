"""A judge without a model: the answer that is more like the reference wins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt
from lpsel.generation.text_metrics import exact_match, rouge_l
from lpsel.judging.judge import LOSS, NO_REFERENCE, TIE, WIN, Judgement, Order, Pair

MEASURES = {"rouge_l": rouge_l, "exact_match": exact_match}


@dataclass(frozen=True)
class ReferenceJudge:
    """Compares both answers with the reference answer of the prompt; equally like it is a tie.

    It does not see an order, so that it is asked in one.

    Attributes:
        measure: rouge_l, or exact_match.
    """

    measure: str = "rouge_l"
    name: str = "reference"
    orders: tuple[Order, ...] = ("baseline_first",)

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(f"judge.measure={self.measure}: must be one of {', '.join(MEASURES)}.")

    def identity(self) -> dict[str, Any]:
        return {"judge": "reference", "measure": self.measure}

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Whether any of the prompts has a reference."""
        _require_references([prompt.reference for prompt in prompts])

    def cost(self, judgement: Judgement) -> float | None:
        return None

    def judge(self, asked: Sequence[tuple[Pair, Order]], keep: Callable[[Judgement], None]) -> None:
        """Judge pairs; one without a reference has failed.

        Raises:
            UserError: none of several has a reference.
        """
        _require_references([pair.reference for pair, _ in asked])
        measure = MEASURES[self.measure]
        for pair, order in asked:
            if pair.reference is None:
                keep(Judgement(pair.id, order, None, failure=NO_REFERENCE))
                continue
            baseline, model = measure(pair.baseline, pair.reference), measure(pair.model, pair.reference)
            preference = TIE if baseline == model else LOSS if baseline > model else WIN
            keep(Judgement(pair.id, order, preference))


def _require_references(references: Sequence[str | None]) -> None:
    if references and all(reference is None for reference in references):
        raise UserError(
            f"judge=reference: none of {len(references)} prompts has a reference answer; take prompts with references, "
            "or judge=openai or judge=hf."
        )
