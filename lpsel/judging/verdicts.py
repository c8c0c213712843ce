"""Verdicts on two answers as they are shown, read from a judge's reply.

A verdict is 1 if the first answer is better, 2 if the second is, 1.5 for a tie, and None if the reply leaves any doubt.
A marked verdict only counts at the very end of a reply and without any other verdict before it, since a judge may quote
an answer that contains one.
"""

import re
from collections.abc import Callable

from lpsel.judging.judge import LOSS, TIE, WIN

Parser = Callable[[str], float | None]

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
