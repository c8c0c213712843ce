"""From what a judge wrote to a verdict on the answers as they were shown.

1 the first is better, 2 the second, 1.5 neither; None where the reply does not say so beyond doubt. Nothing is guessed:
a marked verdict counts only at the very end of the reply, and only if no other verdict stands anywhere before it, since
a judge may quote an answer that names one.
"""

import re
from collections.abc import Callable

from lpsel.judging.judge import LOSS, TIE, WIN

Parser = Callable[[str], float | None]

_END = r"[\s.*_`]*\Z"
_LETTER = re.compile(r"\[\[([ABC])\]\]")
_LAST_LETTER = re.compile(_LETTER.pattern + _END)
_ALONE = re.compile(r"\s*[*_`]*([AB])[.*_`)]*[ \t]*(?:\n|\Z)")
_NUMBER = r"(10(?:\.0+)?|[1-9](?:\.[0-9]+)?)"
_SCORES = re.compile(rf"\[\[A: ?{_NUMBER}\]\][\s,;*_`]*\[\[B: ?{_NUMBER}\]\]")
_LAST_SCORES = re.compile(_SCORES.pattern + _END)
_SCORE = re.compile(r"\[\[[AB]:[^\]]*\]\]")


def pairwise(reply: str) -> float | None:
    """[[A]], [[B]] or [[C]] at the end."""
    reply = _without_thoughts(reply)
    found = _LAST_LETTER.search(reply)
    if found is None or len(set(_LETTER.findall(reply))) > 1:
        return None
    return {"A": LOSS, "B": WIN, "C": TIE}[found[1]]


def letter(reply: str) -> float | None:
    """A or B alone on the first line, for a model too small to explain itself; what it goes on to say is not read."""
    found = _ALONE.match(_without_thoughts(reply))
    return {"A": LOSS, "B": WIN}[found[1]] if found else None


def score(reply: str) -> float | None:
    """[[A: x]] [[B: y]] at the end, both from 1 to 10: the higher is better, equal ones a tie."""
    reply = _without_thoughts(reply)
    found = _LAST_SCORES.search(reply)
    if found is None or len(set(_SCORES.findall(reply))) > 1:
        return None
    if len(_SCORE.findall(reply)) > 2 * len(_SCORES.findall(reply)):  # a score that stands alone, before the two
        return None
    first, second = float(found[1]), float(found[2])
    return TIE if first == second else LOSS if first > second else WIN


def _without_thoughts(reply: str) -> str:
    """What stands behind the thoughts that some servers leave in a reply."""
    return reply.rpartition("</think>")[2]
