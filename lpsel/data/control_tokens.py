"""Control tokens: where a template writes them, and text that only mentions them.

A tokenizer finds its control tokens (BOS, EOS, the marks of a chat template) anywhere in a text. A rendered row knows
which of them its template wrote; others, in a prompt or an answer, are encoded like any text.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

Span = tuple[int, int]

# Stand-ins for control tokens: unassigned and private-use characters, of which those that a text contains are left out.
STAND_INS = range(0x40000, 0x10FFFE)


class Rendered(NamedTuple):
    """A row as text."""

    text: str
    supervised: list[Span]  # half-open character spans of the text
    append_eos: bool  # the EOS id follows the last token, supervised as well
    add_special_tokens: bool  # the tokenizer adds its own, such as BOS: not to a chat template, which writes them
    controls: list[Span] | None = None  # of the control tokens; None where they are those that the tokenizer finds
    text_omitted: bool = False  # the template leaves out reasoning or a question of the row


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and other added tokens that mark the parts of a chat.

    The latter are those that its chat template contains, or with the form <|NAME|>. Added tokens of white space (Gemma)
    and other additions to the vocabulary are text.

    Attributes:
        tags: not special and in pairs, such as <think> and </think>: a model writes them itself, and so can an answer.
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
        first = {text[0] for text in self.texts}
        self._first = re.compile(f"[{re.escape(''.join(sorted(first)))}]" if first else "(?!)")
        self._backends: dict[int, Any] = {}

    def end(self, text: str, begin: int) -> int | None:
        """The end of the control token that begins at `begin`, the longest one; None if there is none."""
        tokens = (text[begin : begin + n] for n in self._lengths)  # shorter than n at the end of the text
        return next((begin + len(token) for token in tokens if token in self._numbers), None)

    def find(self, text: str) -> list[Span]:
        """The control tokens in a text, as the tokenizer finds them."""
        spans: list[Span] = []
        for match in self._first.finditer(text):
            begin = match.start()
            if (not spans or begin >= spans[-1][1]) and (end := self.end(text, begin)):
                spans.append((begin, end))
        return spans

    def base(self, text: str) -> int:
        """The first of as many characters in a row that `text` does not contain as there are control tokens."""
        used = sorted({ord(character) for character in text if ord(character) in STAND_INS})
        edges = [STAND_INS.start - 1, *used, STAND_INS.stop]
        return next(a + 1 for a, b in pairwise(edges) if b - a > len(self.texts))

    def hide(self, text: str, spans: Iterable[Span], base: int) -> str:
        """Replace control tokens by stand-ins: runs of one character, as long as the token."""
        parts, position = [], 0
        for begin, end in spans:
            parts += [text[position:begin], self._stand_in(text[begin:end], base)]
            position = end
        return "".join([*parts, text[position:]])

    def show(self, text: str, base: int) -> str:
        """Replace stand-ins by the control tokens that they stand for."""

        def token(run: re.Match[str]) -> str:
            content = self.texts[ord(run[1]) - base]
            return (content * len(run[0]))[: len(run[0])]

        return re.sub(f"([{chr(base)}-{chr(base + len(self.texts) - 1)}])\\1*", token, text)

    def encode(self, rendered: Rendered) -> Any:
        """The encoding of a text in which exactly the spans `rendered.controls` are control tokens."""
        assert rendered.controls is not None
        base = self.base(rendered.text)
        if base not in self._backends:
            names = {text: self._stand_in(text, base) for text in self.texts}
            self._backends[base] = _renamed(self.backend(), names)
        text = self.hide(rendered.text, rendered.controls, base)
        return self._backends[base].encode(text, add_special_tokens=rendered.add_special_tokens)

    def backend(self) -> Any:
        """A copy of the tokenizer's backend without truncation and padding whose offsets include leading spaces.

        Byte-level tokenizers such as GPT-2's leave the space of ` foo` out of its offsets (trim_offsets): a token that
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
    """The control tokens of a tokenizer of transformers."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return _control_tokens(tokenizer, template if isinstance(template, str) else json.dumps(template))


_control_tokens = lru_cache(maxsize=8)(ControlTokens)


def _renamed(backend: Any, names: dict[str, str]) -> Any:
    """A copy of a backend whose tokens have other texts and the same ids."""
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
