"""Verdicts on two answers as they are shown: read from a judge's reply, and cached.

A verdict is 1 if the first answer is better, 2 if the second is, 1.5 for a tie, and None if the reply leaves any doubt.
A marked verdict only counts at the very end of a reply and without any other verdict before it, since a judge may quote
an answer that contains one.
"""

import re
from collections.abc import Callable

from lpsel.cache import Journal
from lpsel.judging.judge import LOSS, NO_REFERENCE, TIE, TOO_LONG, UNREADABLE, WIN, Judgement, Order, Pair
from lpsel.storage import digest

Parser = Callable[[str], float | None]

FINAL = (UNREADABLE, TOO_LONG, NO_REFERENCE)  # failures of the judge itself; all others are asked again by the next run

_END = r"[\s.*_`]*\Z"
_LETTER = re.compile(r"\[\[([ABC])\]\]")
_LAST_LETTER = re.compile(_LETTER.pattern + _END)
_ONLY_LETTER = re.compile(r"\s*[*_`]*([AB])[.*_`)]*[ \t]*(?:\n|\Z)")
_NUMBER = r"(10(?:\.0+)?|[1-9](?:\.[0-9]+)?)"
_SCORES = re.compile(rf"\[\[A: ?{_NUMBER}\]\][\s,;*_`]*\[\[B: ?{_NUMBER}\]\]")
_LAST_SCORES = re.compile(_SCORES.pattern + _END)
_SCORE = re.compile(r"\[\[[AB]:[^\]]*\]\]")


def pairwise(reply: str) -> float | None:
    """[[A]], [[B]] or [[C]] at the end."""
    reply = _without_thoughts(reply)
    match = _LAST_LETTER.search(reply)
    if match is None or len(set(_LETTER.findall(reply))) > 1:
        return None
    return {"A": LOSS, "B": WIN, "C": TIE}[match[1]]


def letter(reply: str) -> float | None:
    """A or B as the whole first line, for models too small to explain a verdict; the lines after it are ignored."""
    match = _ONLY_LETTER.match(_without_thoughts(reply))
    return {"A": LOSS, "B": WIN}[match[1]] if match else None


def score(reply: str) -> float | None:
    """[[A: x]] [[B: y]] at the end, both from 1 to 10: the higher one is better, equal ones are a tie."""
    reply = _without_thoughts(reply)
    match = _LAST_SCORES.search(reply)
    if match is None or len(set(_SCORES.findall(reply))) > 1:
        return None
    if len(_SCORE.findall(reply)) > 2 * len(_SCORES.findall(reply)):  # a single score before the two
        return None
    first, second = float(match[1]), float(match[2])
    return TIE if first == second else LOSS if first > second else WIN


def _without_thoughts(reply: str) -> str:
    """The reply after the thoughts that some servers include."""
    return reply.rpartition("</think>")[2]


def question(pair: Pair, order: Order) -> str:
    """The cache key of a question: equal for equal texts shown in the same order, also with the models swapped."""
    return digest([pair.prompt, *pair.shown(order), pair.reference])


def read_judgements(journal: Journal) -> dict[str, Judgement]:
    """The final judgement of every cached question, by its key; failures of a request are left out, not final."""
    judgements = {line.pop("question"): Judgement(**line) for line in journal.read()}
    return {key: j for key, j in judgements.items() if j.preference is not None or j.failure in FINAL}


def judgement_of(pair: Pair, order: Order, cached: Judgement) -> Judgement:
    """The judgement of a pair from a cached one of the same texts, where baseline and model may have been swapped."""
    preference = cached.preference
    if preference is not None and cached.order != order:
        preference = WIN + LOSS - preference
    return cached._replace(id=pair.id, order=order, preference=preference)
