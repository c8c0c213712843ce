"""Metrics of similarity between an answer and its reference, and a judge that compares them without a model."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unicodedata import category

from lpsel.data.values import WITHOUT_SPACES
from lpsel.errors import UserError, check_choice
from lpsel.generation.prompts import Prompt
from lpsel.judging.judge import NO_REFERENCE, Judgement, Order, Question, higher_score_wins

VERSION = 3  # of the measures, incremented when a value changes, so that cached verdicts are not reused
WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W_{WITHOUT_SPACES}][^\s{WITHOUT_SPACES}]*")


def exact_match(output: str, reference: str) -> bool:
    """Return whether both texts are equal except for surrounding white space."""
    return output.strip() == reference.strip()


def rouge_l(output: str, reference: str) -> float:
    """Compute ROUGE-L F1, between 0 and 1, without stemming (Lin 2004, ROUGE, section 3; the rouge-score package).

    Words are those of `words`; rouge-score itself only keeps ASCII. Two texts without words, such as punctuation,
    score 1 if they match and 0 otherwise.
    """
    if not any(map(str.isalnum, output + reference)):
        return float(exact_match(output, reference))
    return float(_scorer().score(target=reference, prediction=output)["rougeL"].fmeasure)


def words(text: str) -> list[str]:
    """Split a text into lower-case words: letters and digits of any script, with their vowel signs and accents.

    In scripts without spaces between words, such as Chinese and Thai, every character is a word.
    """
    separated = (c if c.isalnum() or category(c).startswith("M") else " " for c in text.lower())
    return WORD.findall("".join(separated))


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words))


MEASURES = {"rouge_l": rouge_l, "exact_match": exact_match}


@dataclass(frozen=True)
class ReferenceJudge:
    """Prefers the answer that is closer to the prompt's reference; pairs without a reference fail."""

    measure: str = "rouge_l"  # or exact_match
    name: str = "reference"
    orders: Sequence[Order] = ("baseline_first",)  # the metrics do not depend on the order

    def __post_init__(self) -> None:
        check_choice("judge.measure", self.measure, MEASURES)

    def identity(self) -> dict[str, Any]:
        return {"judge": "reference", "measure": self.measure, "version": VERSION}

    def check(self, prompts: Sequence[Prompt] = ()) -> None:
        """Check that at least one prompt has a reference."""
        if prompts and all(prompt.reference is None for prompt in prompts):
            problem = f"none of the {len(prompts)} prompts has a reference answer"
            raise UserError("judge", "reference", problem, "add references, or set judge=openai or judge=hf")

    def cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        return None

    def judge(self, questions: Sequence[Question], save: Callable[[Judgement], None]) -> None:
        measure = MEASURES[self.measure]
        for pair, order in questions:
            if pair.reference is None:
                save(Judgement(pair.id, order, None, failure=NO_REFERENCE))
                continue
            baseline, model = measure(pair.baseline, pair.reference), measure(pair.model, pair.reference)
            save(Judgement(pair.id, order, higher_score_wins(baseline, model)))
