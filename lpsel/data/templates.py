"""The text of a row, and the parts of it that are supervised.

Three templates: `alpaca`, the prompt of Stanford Alpaca, as in the paper; `chat`, the tokenizer's chat template;
`plain`, the content of the turns only.
"""

import hashlib
import json
from functools import lru_cache
from typing import Any, NamedTuple

from lpsel.data.column_forms import Example, Turn
from lpsel.errors import UserError, check_choice, first_line

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_INSTRUCTION = "### Instruction:\n"
ALPACA_INPUT = "\n\n### Input:\n"
ALPACA_RESPONSE = "### Response:"
BETWEEN = "\n\n"

# Replaces a turn's content to find its position in a chat template: private-use characters.
SENTINEL = "\ue3a7\uf1c2\ue3a7"
# Some chat templates (Llama 3.2, SmolLM3) write today's date: a fixed date, so that scores do not depend on it.
# transformers passes no custom function to a template, but a template can define its own macro.
DATE_CODES = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
SAME_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in DATE_CODES.items())
    + " }}{%- endmacro -%}"
)


class Rendered(NamedTuple):
    """A row as text.

    Attributes:
        supervised: half-open character spans of `text`.
        append_eos: whether the EOS id follows the last token, supervised as well.
        add_special_tokens: whether the tokenizer adds its own, such as BOS.
    """

    text: str
    supervised: list[tuple[int, int]]
    append_eos: bool
    add_special_tokens: bool


def render(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text of a row, with every assistant turn and the token that ends it supervised.

    Raises:
        UserError: an unknown template, or template=chat and the tokenizer has no chat template or it rejects the
            conversation.
    """
    check_choice("template", template, ("alpaca", "chat", "plain"))
    if template == "chat":
        return _chat(example, tokenizer)
    if template == "alpaca":
        return _join(example.turns, _alpaca_sections(example), BETWEEN + ALPACA_RESPONSE, tokenizer.eos_token)
    return _join(example.turns, [turn.content for turn in _with_input(example)], "", tokenizer.eos_token)


def render_prompt(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text to generate from: all turns before the last assistant turn, and the beginning of the answer."""
    answers = [i for i, turn in enumerate(example.turns) if turn.role == "assistant"]
    before = example.turns[: answers[-1]] if answers else example.turns
    if template == "chat":
        text = _apply_chat(chat_messages(Example(before, example.input)), tokenizer, add_generation_prompt=True)
        return Rendered(text, [], append_eos=False, add_special_tokens=False)
    # An empty answer adds the text that the template writes before an answer.
    opened = render(Example((*before, Turn("assistant", "")), example.input), template, tokenizer)
    return opened._replace(supervised=[], append_eos=False)


def template_hash(template: str, tokenizer: Any) -> str:
    """SHA-256 of everything in the template that affects the text."""
    parts: dict[str, list[Any]] = {
        "alpaca": [ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, ALPACA_INSTRUCTION, ALPACA_INPUT, ALPACA_RESPONSE, BETWEEN],
        "chat": [getattr(tokenizer, "chat_template", None), SAME_DATE, BETWEEN],
        "plain": [BETWEEN],
    }
    return hashlib.sha256(json.dumps([template, *parts[template]], sort_keys=True).encode()).hexdigest()


def _join(turns: tuple[Turn, ...], sections: list[str], before_answer: str, eos: str) -> Rendered:
    """Join one section per turn; answers are supervised.

    EOS as text ends an answer that other turns follow. The EOS id ends the last answer, so that it does not depend on
    how the tokenizer splits the text.
    """
    text = ""
    supervised = []
    for i, (turn, section) in enumerate(zip(turns, sections, strict=True)):
        if turn.role == "assistant":
            text += before_answer if text else before_answer.lstrip()
            answer = section if i == len(turns) - 1 else section + eos
            supervised.append((len(text), len(text) + len(answer)))
            text += answer
        else:
            text += section
    return Rendered(text, supervised, append_eos=turns[-1].role == "assistant", add_special_tokens=True)


def _alpaca_sections(example: Example) -> list[str]:
    """The section of each turn in the prompt of Stanford Alpaca; a system turn precedes the preamble."""
    sections = []
    has_preamble = False
    for i, turn in enumerate(example.turns):
        section = turn.content
        if turn.role == "user":
            section = ALPACA_INSTRUCTION + section
            if not has_preamble:
                preamble = ALPACA_WITH_INPUT if example.input else ALPACA_WITHOUT_INPUT
                section = preamble + BETWEEN + section + (ALPACA_INPUT + example.input if example.input else "")
            has_preamble = True
        sections.append(BETWEEN + section if i and turn.role != "assistant" else section)
    return sections


def _with_input(example: Example) -> list[Turn]:
    """The turns, with Alpaca's input appended to the first user turn after an empty line."""
    turns = list(example.turns)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if example.input and first is not None:
        turns[first] = turns[first]._replace(content=turns[first].content + BETWEEN + example.input)
    return turns


def _chat(example: Example, tokenizer: Any) -> Rendered:
    """Render the conversation and find the answers in the text, for any template.

    Each answer is replaced by a sentinel. The text that both renderings share before and after the sentinel is not the
    answer, so the rest is, whatever the template strips, adds or drops elsewhere. The special token that ends the turn
    is part of the answer.
    """
    messages = chat_messages(example)
    text = _apply_chat(messages, tokenizer)
    supervised = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        marked = _apply_chat([*messages[:i], {**message, "content": SENTINEL}, *messages[i + 1 :]], tokenizer)
        before, found, rest = marked.partition(SENTINEL)
        if not found:  # the template drops this turn
            continue
        after = rest.rpartition(SENTINEL)[2]
        start = _common_prefix(text, before)
        end = max(start, len(text) - _common_prefix(text[::-1], after[::-1]))
        supervised.append((start, _end_of_turn(text, end, tokenizer)))
    return Rendered(text, supervised, append_eos=False, add_special_tokens=False)


def chat_messages(example: Example) -> list[dict[str, Any]]:
    """The turns as messages for a chat template or an endpoint."""
    return [{"role": turn.role, "content": turn.content, **turn.fields} for turn in _with_input(example)]


def _apply_chat(messages: list[dict[str, Any]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        problem = f"the tokenizer of {tokenizer.name_or_path} has no chat template"
        hint = "set model.template=alpaca (scorer.template=alpaca for the scorer)"
        raise UserError("template", "chat", problem, hint)
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = SAME_DATE + template
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        problem = f"rejects a conversation of {roles}: {first_line(error)}"
        hint = "remove the row or set template=alpaca"
        raise UserError(f"chat template of {tokenizer.name_or_path}", None, problem, hint) from None


def _common_prefix(text: str, other: str) -> int:
    """Length of the common prefix."""
    if text.startswith(other):
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))


def _end_of_turn(text: str, end: int, tokenizer: Any) -> int:
    """The end of the special token that follows `end`, possibly after white space; else `end`."""
    begin = end
    while begin < len(text) and text[begin].isspace():
        begin += 1
    specials, lengths = _special_tokens(tokenizer)
    return next((begin + n for n in lengths if text[begin : begin + n] in specials), end)


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> tuple[frozenset[str], tuple[int, ...]]:
    """The texts of a tokenizer's special tokens, and their lengths in descending order."""
    texts = frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return texts, tuple(sorted({len(text) for text in texts}, reverse=True))
