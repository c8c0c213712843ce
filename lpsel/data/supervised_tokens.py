"""Which tokens of a row are supervised."""

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Any, NamedTuple

from lpsel.data.control_tokens import Rendered, Span


class Encoded(NamedTuple):
    """A truncated row."""

    ids: list[int]
    spans: list[Span]  # the supervised tokens, first and end
    truncated: bool  # the row was longer
    text_omitted: bool = False  # the template leaves out reasoning or a question of the row
    unusable: str | None = None  # why the row has no tokens


def truncated(encoding: Any, rendered: Rendered, eos: int, max_length: int) -> Encoded:
    """Find the tokens of the supervised spans, add EOS, then truncate."""
    ids, offsets = encoding.ids, encoding.offsets
    end_of_text = len(ids)
    while end_of_text and offsets[end_of_text - 1] == (0, 0):  # added by the tokenizer itself
        end_of_text -= 1
    find = _tokens_after_prompt if rendered.add_special_tokens else _tokens_of_answer
    spans = [find(offsets, start, end, end_of_text) for start, end in rendered.supervised]
    if rendered.append_eos:
        if ids[end_of_text:] != [eos]:
            ids = [*ids, eos]
        # The last answer includes its EOS.
        spans[-1] = (min(spans[-1][0], len(ids) - 1), len(ids))
    inside: list[Span] = []
    free = 1  # nothing predicts the first token, and a token with characters of two answers counts once
    for first, last in spans:
        first, last = max(first, free), min(last, max_length)
        if first < last:
            inside.append((first, last))
            free = last
    return Encoded(ids[:max_length], inside, len(ids) > max_length, rendered.text_omitted)


def _tokens_after_prompt(offsets: list[Span], start: int, end: int, end_of_text: int) -> Span:
    """The tokens that begin in an answer.

    A token that begins in the prompt and ends in the answer is not supervised: the paper masks as many tokens as the
    prompt has on its own, which include that one.
    """
    first = bisect_left(offsets, (start,), 0, end_of_text)
    last = bisect_left(offsets, (end,), first, end_of_text)
    while first < last and offsets[first][0] == offsets[first][1]:
        first += 1
    return first, last


def _tokens_of_answer(offsets: list[Span], start: int, end: int, end_of_text: int) -> Span:
    """The tokens that have a character of an answer, also its first one together with a space of the chat template."""
    first = bisect_right(offsets, start, 0, end_of_text, key=itemgetter(1))
    return first, bisect_left(offsets, (end,), first, end_of_text) if start < end else first
