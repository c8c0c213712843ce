"""Parse verdicts on two answers, in the order shown, from a judge's reply.

A verdict is 1 if the first answer is better, 2 if the second is, 1.5 for a tie, and None if the reply is ambiguous. A
marked verdict such as [[A]] only counts at the very end of a reply. If other marks come before it, for example because
the judge quotes an answer, it must be on its own line. A JSON object at the end, also in a code fence, counts as well.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from lpsel.judging.judge import LOSS, TIE, WIN, higher_score_wins

Parser = Callable[[str], float | None]

VERDICTS = {"A": LOSS, "B": WIN, "C": TIE, "TIE": TIE}
KEYS = ("verdict", "winner", "choice", "better", "answer")  # keys of a verdict in a JSON object
_END = r"[\s.*_`]*\Z"
_START = r"(?:\A|\n)(?:[^\n\[\]]*:)?[ \t*_`>]*"  # start of a line, or text such as `Verdict:`
_LETTER = r"\[\[([ABC])\]\]"
_ONLY_LETTER = re.compile(r"[\s*_`]*([AB])[.*_`)]*[ \t]*(?:\n|\Z)")
_NUMBER = r"(10(?:\.0+)?|[1-9](?:\.[0-9]+)?)"
_SCORES = rf"\[\[A: ?{_NUMBER}\]\][\s,;*_`]*\[\[B: ?{_NUMBER}\]\]"
_SCORE = r"\[\[[AB]:[^\]]*\]\]"


def pairwise(reply: str) -> float | None:
    """Parse [[A]], [[B]] or [[C]] at the end, or {"verdict": "A"}; C or tie means a tie."""
    reply = _without_thoughts(reply)
    match = _last(_LETTER, _LETTER, reply)
    return VERDICTS[match[1]] if match else _chosen(_json(reply))


def letter(reply: str) -> float | None:
    """Parse A or B as the entire first line, for models too small to explain a verdict; other lines are ignored."""
    reply = _without_thoughts(reply)
    match = _ONLY_LETTER.match(reply)
    return VERDICTS[match[1]] if match else _chosen(_json(reply))


def score(reply: str) -> float | None:
    """Parse scores from 1 to 10, [[A: x]] [[B: y]] at the end or {"A": x, "B": y}; equal scores are a tie."""
    reply = _without_thoughts(reply)
    match = _last(_SCORES, _SCORE, reply)
    if match:
        first, second = match.groups()
    else:
        fields = _json(reply)
        first, second = str(fields.get("a")), str(fields.get("b"))
    if not re.fullmatch(_NUMBER, first) or not re.fullmatch(_NUMBER, second):
        return None
    return higher_score_wins(float(first), float(second))


def _last(verdict: str, mark: str, reply: str) -> re.Match[str] | None:
    """Match the verdict at the end, if it is on its own line or no different mark comes before it.

    Args:
        verdict: pattern of a verdict, which may consist of several marks.
        mark: pattern of a single mark.
    """
    match = re.search(_START + verdict + _END, reply)
    if match:
        return match
    match = re.search(verdict + _END, reply)
    if match is None:
        return None
    earlier_marks = set(re.findall(mark, reply[: match.start()]))
    return match if earlier_marks <= set(re.findall(mark, match[0])) else None


def _json(reply: str) -> dict[str, Any]:
    """Return the JSON object at the end of a reply, with keys in lower case; empty if there is none."""
    text = reply.strip().removesuffix("```").rstrip()
    for start in re.finditer("{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if end == len(text):
            return {str(name).lower(): item for name, item in value.items()}
    return {}


def _chosen(fields: dict[str, Any]) -> float | None:
    """Return the verdict in a JSON object."""
    for key in KEYS:
        if key in fields:
            return VERDICTS.get(str(fields[key]).strip(" []").upper())
    return None


def _without_thoughts(reply: str) -> str:
    """Remove the reasoning that some servers include in a reply."""
    return reply.rpartition("</think>")[2]
