"""From a row to the text a model sees, and the part of it that is learned.

Three templates. `alpaca`: the prompt of Stanford Alpaca, as the paper trains. `chat`: the tokenizer's own chat
template. `plain`: what the turns say, nothing added.
"""

import hashlib
import json
from functools import lru_cache
from typing import Any, NamedTuple

from lpsel.data.dataset import Example, Turn
from lpsel.errors import UserError

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

# Stands for a turn's content to find where a chat template puts it: private-use characters no template or text has.
SENTINEL = "\ue3a7\uf1c2\ue3a7"
# Some chat templates (Llama 3.2, SmolLM3) write today's date: one day for all, so that scores do not depend on it.
# transformers lets no function of ours into a template, but a template can define one of its own.
DATE_CODES = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
SAME_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in DATE_CODES.items())
    + " }}{%- endmacro -%}"
)


class Rendered(NamedTuple):
    """A row as text.

    `supervised` holds half-open character spans of `text`. With `append_eos` the end-of-sequence id follows the last
    token and is supervised too. `add_special_tokens`: whether the tokenizer adds its own, such as a BOS.
    """

    text: str
    supervised: list[tuple[int, int]]
    append_eos: bool
    add_special_tokens: bool


def render(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text of a whole row, every assistant turn supervised up to and with what ends it.

    Raises:
        UserError: template=chat where the tokenizer has no chat template, or one that refuses the conversation.
    """
    if template == "chat":
        return _chat(example, tokenizer)
    if template == "alpaca":
        return _glue(example.turns, _alpaca_sections(example), BETWEEN + ALPACA_RESPONSE, tokenizer.eos_token)
    if template == "plain":
        return _glue(example.turns, [turn.content for turn in _with_input(example)], "", tokenizer.eos_token)
    raise UserError(f"template={template}: must be one of alpaca, chat, plain.")


def render_prompt(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text to generate from: all turns before the last assistant turn, ready for the answer; nothing supervised."""
    answers = [place for place, turn in enumerate(example.turns) if turn.role == "assistant"]
    before = example.turns[: answers[-1]] if answers else example.turns
    if template == "chat":
        text = _apply_chat(chat_messages(Example(before, example.input)), tokenizer, add_generation_prompt=True)
        return Rendered(text, [], append_eos=False, add_special_tokens=False)
    # An empty answer brings what the template writes before an answer.
    opened = render(Example((*before, Turn("assistant", "")), example.input), template, tokenizer)
    return opened._replace(supervised=[], append_eos=False)


def template_hash(template: str, tokenizer: Any) -> str:
    """SHA-256 of everything in the template that shapes the text."""
    parts: dict[str, list[Any]] = {
        "alpaca": [ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, ALPACA_INSTRUCTION, ALPACA_INPUT, ALPACA_RESPONSE, BETWEEN],
        "chat": [getattr(tokenizer, "chat_template", None), SAME_DATE, BETWEEN],
        "plain": [BETWEEN],
    }
    return hashlib.sha256(json.dumps([template, *parts[template]], sort_keys=True).encode()).hexdigest()


def _glue(turns: tuple[Turn, ...], sections: list[str], before_answer: str, eos: str) -> Rendered:
    """Join the sections, one a turn; answers are supervised.

    An answer that other turns follow is ended by the EOS token as text, supervised with it; the answer that ends the
    row by the EOS id, which is there whatever the tokenizer would make of the text.
    """
    text = ""
    supervised = []
    for place, (turn, section) in enumerate(zip(turns, sections, strict=True)):
        if turn.role == "assistant":
            text += before_answer if text else before_answer.lstrip()
            answer = section if place == len(turns) - 1 else section + eos
            supervised.append((len(text), len(text) + len(answer)))
            text += answer
        else:
            text += section
    return Rendered(text, supervised, append_eos=turns[-1].role == "assistant", add_special_tokens=True)


def _alpaca_sections(example: Example) -> list[str]:
    """What stands for each turn in Stanford Alpaca's prompt, a system turn before its preamble."""
    sections = []
    asked = False
    for place, turn in enumerate(example.turns):
        section = turn.content
        if turn.role == "user":
            section = ALPACA_INSTRUCTION + section
            if not asked:
                preamble = ALPACA_WITH_INPUT if example.input else ALPACA_WITHOUT_INPUT
                section = preamble + BETWEEN + section + (ALPACA_INPUT + example.input if example.input else "")
            asked = True
        sections.append(BETWEEN + section if place and turn.role != "assistant" else section)
    return sections


def _with_input(example: Example) -> list[Turn]:
    """The turns, with Alpaca's input after the first user turn's text and an empty line."""
    turns = list(example.turns)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if example.input and first is not None:
        turns[first] = Turn("user", turns[first].content + BETWEEN + example.input)
    return turns


def _chat(example: Example, tokenizer: Any) -> Rendered:
    """Render the conversation, and find the answers in it without help from the template.

    Every answer in turn is replaced by a sentinel: what the two renderings have in common before and after it is
    not the answer, so what lies between is, whatever the template strips, adds or leaves out elsewhere. The
    special token that ends the turn belongs to the answer.
    """
    messages = chat_messages(example)
    text = _apply_chat(messages, tokenizer)
    supervised = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        marked = _apply_chat([*messages[:place], {**message, "content": SENTINEL}, *messages[place + 1 :]], tokenizer)
        before, found, rest = marked.partition(SENTINEL)
        if not found:  # the template leaves this turn out
            continue
        after = rest.rpartition(SENTINEL)[2]
        start = _common_prefix(text, before)
        end = max(start, len(text) - _common_prefix(text[::-1], after[::-1]))
        supervised.append((start, _end_of_turn(text, end, tokenizer)))
    return Rendered(text, supervised, append_eos=False, add_special_tokens=False)


def chat_messages(example: Example) -> list[dict[str, str]]:
    """The turns as a chat template or an endpoint takes them, Alpaca's input below the first user turn."""
    return [turn._asdict() for turn in _with_input(example)]


def _apply_chat(messages: list[dict[str, str]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"template=chat: the tokenizer of {tokenizer.name_or_path} has no chat template. Say "
            "model.template=alpaca (scorer.template=alpaca for the scorer)."
        )
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = SAME_DATE + template
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of "
            f"{', '.join(message['role'] for message in messages)}: {reason}. Leave it out or say template=alpaca."
        ) from None


def _common_prefix(text: str, other: str) -> int:
    """How many characters the two begin with alike."""
    if text.startswith(other):
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))


def _end_of_turn(text: str, end: int, tokenizer: Any) -> int:
    """Where the special token that directly follows `end` ends, white space between allowed; else `end`."""
    begin = end
    while begin < len(text) and text[begin].isspace():
        begin += 1
    specials, lengths = _special_tokens(tokenizer)
    return next((begin + n for n in lengths if text[begin : begin + n] in specials), end)


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> tuple[frozenset[str], tuple[int, ...]]:
    """The texts of a tokenizer's special tokens, and their lengths, longest first."""
    texts = frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return texts, tuple(sorted({len(text) for text in texts}, reverse=True))
