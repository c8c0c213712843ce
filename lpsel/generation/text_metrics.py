"""Agreement of an answer with its reference: exact match and ROUGE-L."""

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

WORD = re.compile(r"[^\W_]+")


def exact_match(output: str, reference: str) -> bool:
    """Whether both are the same text except for white space around it."""
    return output.strip() == reference.strip()


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L F1 between 0 and 1, without stemming (Lin 2004, ROUGE, section 3; the rouge-score package).

    Words are lower-case runs of letters and digits of any script; rouge-score itself only keeps ASCII. Two texts
    without words, such as punctuation, score 1 if they match and 0 otherwise.
    """
    if not WORD.search(output) and not WORD.search(reference):
        return float(exact_match(output, reference))
    return float(_scorer().score(target=reference, prediction=output)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    words = SimpleNamespace(tokenize=lambda text: WORD.findall(text.lower()))
    return RougeScorer(["rougeL"], tokenizer=words)
