"""Control tokens: tell those that a template writes from text that only mentions them.

A tokenizer recognizes its control tokens (BOS, EOS, the markers of a chat template) anywhere in a text. A rendered row
records which of them its template wrote; the same strings in a prompt or an answer are encoded as ordinary text.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

Span = tuple[int, int]

# Stand-ins for control tokens: unassigned and private-use characters, except those that occur in a text.
STAND_INS = range(0x40000, 0x10FFFE)


class Rendered(NamedTuple):
    """A row as text."""

    text: str
    supervised: list[Span]  # half-open character spans of the text
    append_eos: bool  # whether to append the EOS id as a supervised token
    add_special_tokens: bool  # whether the tokenizer adds tokens such as BOS; chat templates write their own
    controls: list[Span] | None = None  # spans of control tokens; None for all that the tokenizer finds
    text_omitted: bool = False  # whether the template leaves out reasoning or a question of the row


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and other added tokens that structure a conversation.

    The latter occur in the chat template or have the form <|NAME|>. All other added tokens, such as Gemma's tokens for
    white space, are ordinary text.

    Attributes:
        tags: paired tokens that are not special, such as <think> and </think>; models generate them in answers.
    """

    def __init__(self, tokenizer: Any, chat_template: str) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        marks = {
            token.content
            for token in added
            if not token.special
            and not token.content.isspace()
            and (token.content in chat_template or re.fullmatch(r"<\|.+\|>", token.content))
        }
        self.texts = sorted(marks | {token.content for token in added if token.special} - {""})
        opening = {text for text in marks if f"{text[0]}/{text[1:]}" in marks}
        self.tags = opening | {f"{text[0]}/{text[1:]}" for text in opening}
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        self._lengths = sorted({len(text) for text in self.texts}, reverse=True)
        first_characters = "".join(sorted({text[0] for text in self.texts}))
        self._first_character = re.compile(f"[{re.escape(first_characters)}]" if first_characters else "(?!)")
        self._backends: dict[int, Any] = {}

    def end(self, text: str, begin: int) -> int | None:
        """Return the end of the longest control token that begins at `begin`; None if there is none."""
        for length in self._lengths:  # longest first
            token = text[begin : begin + length]  # shorter at the end of the text
            if token in self._numbers:
                return begin + len(token)
        return None

    def find(self, text: str) -> list[Span]:
        """Return the spans of control tokens in a text, as the tokenizer finds them."""
        spans: list[Span] = []
        for match in self._first_character.finditer(text):
            begin = match.start()
            if spans and begin < spans[-1][1]:  # inside the previous token
                continue
            end = self.end(text, begin)
            if end is not None:
                spans.append((begin, end))
        return spans

    def base(self, text: str) -> int:
        """Find a range of consecutive characters not in `text`, one per control token; return its first character."""
        used = sorted({ord(character) for character in text if ord(character) in STAND_INS})
        edges = [STAND_INS.start - 1, *used, STAND_INS.stop]
        return next(before + 1 for before, after in pairwise(edges) if after - before > len(self.texts))

    def hide(self, text: str, spans: Iterable[Span], base: int) -> str:
        """Replace control tokens with stand-ins: runs of one character that are as long as the token."""
        parts, position = [], 0
        for begin, end in spans:
            parts += [text[position:begin], self._stand_in(text[begin:end], base)]
            position = end
        return "".join([*parts, text[position:]])

    def show(self, text: str, base: int) -> str:
        """Replace stand-ins with the control tokens that they stand for."""

        def token(run: re.Match[str]) -> str:
            content = self.texts[ord(run[1]) - base]
            return (content * len(run[0]))[: len(run[0])]

        return re.sub(f"([{chr(base)}-{chr(base + len(self.texts) - 1)}])\\1*", token, text)

    def encode(self, rendered: Rendered) -> Any:
        """Encode a text so that exactly the spans in `rendered.controls` become control tokens."""
        assert rendered.controls is not None
        base = self.base(rendered.text)
        if base not in self._backends:
            names = {text: self._stand_in(text, base) for text in self.texts}
            self._backends[base] = _renamed(self.backend(), names)
        text = self.hide(rendered.text, rendered.controls, base)
        return self._backends[base].encode(text, add_special_tokens=rendered.add_special_tokens)

    def backend(self) -> Any:
        """Copy the tokenizer's backend without truncation and padding, with offsets that include leading spaces.

        Byte-level tokenizers such as GPT-2's exclude the space of ` foo` from its offsets (trim_offsets). A token that
        begins in the prompt would seem to begin in the answer, and a single space would have an empty span.
        """
        from tokenizers import Tokenizer

        state = self._tokenizer.backend_tokenizer.to_str().replace('"trim_offsets":true', '"trim_offsets":false')
        backend = Tokenizer.from_str(state)
        backend.no_truncation()
        backend.no_padding()
        return backend

    def _stand_in(self, text: str, base: int) -> str:
        return chr(base + self._numbers[text]) * len(text)


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of a transformers tokenizer."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return _control_tokens(tokenizer, template if isinstance(template, str) else json.dumps(template))


_control_tokens = lru_cache(maxsize=8)(ControlTokens)


def _renamed(backend: Any, names: dict[str, str]) -> Any:
    """Copy a backend and rename tokens; their ids stay the same.

    Merges that involve a renamed token are removed, because their tokens no longer exist.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint([*pair, "".join(pair)])]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(state))
