"""Find the supervised tokens of a row."""

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Any, NamedTuple

from lpsel.data.control_tokens import Rendered, Span


class Encoded(NamedTuple):
    """A row as token ids, after truncation."""

    ids: list[int]
    spans: list[Span]  # half-open spans of supervised tokens
    truncated: bool  # whether the row was longer
    text_omitted: bool = False  # whether the template leaves out reasoning or a question of the row
    unusable: str | None = None  # why the row has no tokens


def supervise_and_truncate(encoding: Any, rendered: Rendered, eos: int, max_length: int) -> Encoded:
    """Find the tokens of the supervised spans, add EOS, then truncate to `max_length` tokens.

    Args:
        encoding: an encoding of the tokenizers library, with offsets in `rendered.text`.
        eos: id of the EOS token.
    """
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
    supervised: list[Span] = []
    first_free = 1  # the first token is never predicted, and a token that belongs to two answers counts once
    for start, stop in spans:
        start, stop = max(start, first_free), min(stop, max_length)
        if start < stop:
            supervised.append((start, stop))
            first_free = stop
    return Encoded(ids[:max_length], supervised, len(ids) > max_length, rendered.text_omitted)


def _tokens_after_prompt(offsets: list[Span], start: int, end: int, end_of_text: int) -> Span:
    """Return the tokens that begin in an answer.

    A token that begins in the prompt and ends in the answer is not supervised, since the paper masks as many tokens as
    the prompt has when tokenized separately, which includes that token.
    """
    first = bisect_left(offsets, (start,), 0, end_of_text)
    stop = bisect_left(offsets, (end,), first, end_of_text)
    while first < stop and offsets[first][0] == offsets[first][1]:  # a token without text
        first += 1
    return first, stop


def _tokens_of_answer(offsets: list[Span], start: int, end: int, end_of_text: int) -> Span:
    """Return the tokens that overlap an answer, including a first token that starts with the template's space."""
    first = bisect_right(offsets, start, 0, end_of_text, key=itemgetter(1))
    stop = bisect_left(offsets, (end,), first, end_of_text) if start < end else first
    return first, stop
