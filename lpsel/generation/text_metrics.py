"""How far an answer agrees with its reference: exact match and ROUGE-L."""

import re
from functools import cache
from typing import Any

WORD = re.compile(r"[^\W_]+")


def exact_match(output: str, reference: str) -> bool:
    """Whether both are the same text, white space around them aside."""
    return output.strip() == reference.strip()


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L F1 between 0 and 1, without stemming (Lin 2004, ROUGE, section 3; the rouge-score package).

    Words are lower-case runs of letters and digits of any script; for ASCII text these are the package's own, which
    drops every other letter. Where neither text has a word, as with punctuation alone, 1 if they match, else 0.
    """
    if not WORD.search(output) and not WORD.search(reference):
        return float(exact_match(output, reference))
    return float(_scorer().score(target=reference, prediction=output)["rougeL"].fmeasure)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
