"""Verdicts on two answers as they are shown, read from a judge's reply.

A verdict is 1 if the first answer is better, 2 if the second is, 1.5 for a tie, and None if the reply leaves any doubt.
A marked verdict only counts at the very end of a reply. Others may come before it, where the judge quotes an answer or
weighs both, if the last one has its own line. A JSON object at the end, also in a code fence, counts as well.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from lpsel.judging.judge import LOSS, TIE, WIN

Parser = Callable[[str], float | None]

VERDICTS = {"A": LOSS, "B": WIN, "C": TIE, "TIE": TIE}
KEYS = ("verdict", "winner", "choice", "better", "answer")  # of a JSON object
_END = r"[\s.*_`]*\Z"
_START = r"(?:\A|\n)(?:[^\n\[\]]*:)?[ \t*_`>]*"  # of a line, or `Verdict:`
_LETTER = r"\[\[([ABC])\]\]"
_ONLY_LETTER = re.compile(r"[\s*_`]*([AB])[.*_`)]*[ \t]*(?:\n|\Z)")
_NUMBER = r"(10(?:\.0+)?|[1-9](?:\.[0-9]+)?)"
_SCORES = rf"\[\[A: ?{_NUMBER}\]\][\s,;*_`]*\[\[B: ?{_NUMBER}\]\]"
_SCORE = r"\[\[[AB]:[^\]]*\]\]"


def pairwise(reply: str) -> float | None:
    """[[A]], [[B]] or [[C]] at the end, or {"verdict": "A"}; C and tie are a tie."""
    reply = _without_thoughts(reply)
    match = _last(_LETTER, _LETTER, reply)
    return VERDICTS[match[1]] if match else _chosen(_json(reply))


def letter(reply: str) -> float | None:
    """A or B as the whole first line, for models too small to explain a verdict; the lines after it are ignored."""
    reply = _without_thoughts(reply)
    match = _ONLY_LETTER.match(reply)
    return VERDICTS[match[1]] if match else _chosen(_json(reply))


def score(reply: str) -> float | None:
    """[[A: x]] [[B: y]] at the end or {"A": x, "B": y}, from 1 to 10: the higher one is better, equal is a tie."""
    reply = _without_thoughts(reply)
    match = _last(_SCORES, _SCORE, reply)
    given = _json(reply)
    scores = match.groups() if match else [str(given.get(name)) for name in "ab"]
    if not all(re.fullmatch(_NUMBER, text) for text in scores):
        return None
    first, second = map(float, scores)
    return TIE if first == second else LOSS if first > second else WIN


def _last(verdict: str, mark: str, reply: str) -> re.Match[str] | None:
    """The verdict at the end, if it has its own line or no other mark comes before it."""
    if match := re.search(_START + verdict + _END, reply):
        return match
    match = re.search(verdict + _END, reply)
    same = match and {*re.findall(mark, reply[: match.start()])} <= {*re.findall(mark, match[0])}
    return match if same else None


def _json(reply: str) -> dict[str, Any]:
    """The JSON object at the end of a reply, with its keys in lower case; empty without one."""
    text = reply.strip().removesuffix("```").rstrip()
    for start in re.finditer("{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if end == len(text):
            return {str(name).lower(): each for name, each in value.items()}
    return {}


def _chosen(given: dict[str, Any]) -> float | None:
    """The verdict of a JSON object."""
    return next((VERDICTS.get(str(given[key]).strip(" []").upper()) for key in KEYS if key in given), None)


def _without_thoughts(reply: str) -> str:
    """The reply after the thoughts that some servers include."""
    return reply.rpartition("</think>")[2]
