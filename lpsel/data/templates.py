"""The text of a row, and the parts of it that are supervised.

Three templates: `alpaca`, the prompt of Stanford Alpaca, as in the paper; `chat`, the tokenizer's chat template;
`plain`, the content of the turns only. `auto` is one of the first two, for all rows of a dataset: scores of rows can be
compared only if their prompts have the same format, and the trained model needs one format to be used with.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lpsel.data.apply_template import SAME_DATE
from lpsel.data.chat_template import BETWEEN, render_chat, with_input
from lpsel.data.column_forms import Example, Turn, choose_form, is_conversation
from lpsel.data.control_tokens import Rendered, Span, control_tokens
from lpsel.data.dataset import Source
from lpsel.errors import UnusableRow, check_choice

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


def holds_conversations(source: Source) -> bool:
    """Whether the first usable row of a dataset is a list of turns; False if there is none."""
    raw = next((row.raw for row in source if row.unusable is None), None)
    return raw is not None and is_conversation(raw, choose_form(source.forms(tuple(raw)), raw))


def resolve_template(template: str, conversations: bool, tokenizer: Any) -> str:
    """The template that `auto` stands for: chat for conversations if the tokenizer has a chat template, else alpaca.

    Args:
        conversations: whether the rows are lists of turns, see `holds_conversations`.
    """
    if template != "auto":
        return template
    return "chat" if conversations and getattr(tokenizer, "chat_template", None) else "alpaca"


def render(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text of a row, with every assistant turn that is trained on, and the token that ends it, supervised.

    Raises:
        UserError: an unknown template, or template=chat and the tokenizer has no chat template.
        UnusableRow: the chat template rejects the conversation; or the row has tools, calls or their results, and the
            template has no place for them, as alpaca and plain.
    """
    check_choice("template", template, ("alpaca", "chat", "plain"))
    rendered = _render(example, template, tokenizer)
    omitted = any(text.strip() not in rendered.text for text in _must_be_written(example))
    return rendered._replace(text_omitted=True) if omitted else rendered


def _must_be_written(example: Example) -> Iterator[str]:
    """The reasoning, the questions and the text next to calls, of which some chat templates leave out a part."""
    for role, content, _, fields in example.turns:
        if fields:
            yield from (fields[key] for key in ("reasoning_content", "thinking") if key in fields)
        if (role != "assistant" and role != "tool") or "tool_calls" in fields:
            yield content


def render_prompt(example: Example, template: str, tokenizer: Any) -> Rendered:
    """The text to generate from: all turns before the last assistant turn, and the beginning of the answer."""
    before = example.prompt()
    if template == "chat":
        return render_chat(before, tokenizer, prompt=True)
    # An empty answer adds the text that the template writes before an answer.
    opened = render(before._replace(turns=(*before.turns, Turn("assistant", ""))), template, tokenizer)
    return opened._replace(supervised=[], append_eos=False)


def template_hash(template: str, tokenizer: Any) -> str:
    """SHA-256 of everything in the template that affects the text."""
    parts: dict[str, list[Any]] = {
        "alpaca": [ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, ALPACA_INSTRUCTION, ALPACA_INPUT, ALPACA_RESPONSE, BETWEEN],
        "chat": [getattr(tokenizer, "chat_template", None), SAME_DATE, BETWEEN],
        "plain": [BETWEEN],
    }
    return hashlib.sha256(json.dumps([template, *parts[template]], sort_keys=True).encode()).hexdigest()


def _render(example: Example, template: str, tokenizer: Any) -> Rendered:
    if template == "chat":
        return render_chat(example, tokenizer)
    if example.tools or any(turn.role == "tool" or "tool_calls" in turn.fields for turn in example.turns):
        hint = "set template=chat for a model whose chat template has tools, or remove the row"
        raise UnusableRow("template", template, "has no place for tools", hint, kind=f"tools with template={template}")
    if template == "alpaca":
        return _join(example.turns, _alpaca_sections(example), BETWEEN + ALPACA_RESPONSE, tokenizer)
    return _join(example.turns, (turn.content for turn in with_input(example)), "", tokenizer)


def _join(turns: tuple[Turn, ...], sections: Iterable[str], before_answer: str, tokenizer: Any) -> Rendered:
    """Join one section per turn; answers are supervised.

    EOS as text ends an answer that other turns follow. The EOS id ends the last answer, so that it does not depend on
    how the tokenizer splits the text.
    """
    text, eos = "", tokenizer.eos_token
    answers: list[Span] = []
    ends: list[Span] = []
    for i, (turn, section) in enumerate(zip(turns, sections, strict=True)):
        if turn.role != "assistant":
            text += section
            continue
        text += before_answer if text else before_answer.lstrip()
        start = len(text)
        text += section
        if i < len(turns) - 1:
            ends.append((len(text), len(text) + len(eos)))
            text += eos
        answers.append((start, len(text)))
    trained = [turn.supervised for turn in turns if turn.role == "assistant"]
    controls = control_tokens(tokenizer)
    found = controls.find(text)
    written = [
        (begin, end)
        for begin, end in found
        if (begin, end) in ends
        or (text[begin:end] in controls.tags and any(start <= begin < stop for start, stop in answers))
    ]
    return Rendered(
        text,
        supervised=[span for span, supervised in zip(answers, trained, strict=True) if supervised],
        append_eos=turns[-1].role == "assistant" and turns[-1].supervised,
        add_special_tokens=True,
        controls=None if found == written else written,
    )


def _alpaca_sections(example: Example) -> Iterator[str]:
    """The section of each turn in the prompt of Stanford Alpaca; a system turn precedes the preamble."""
    has_preamble = False
    for i, turn in enumerate(example.turns):
        section = turn.content
        if turn.role == "user":
            section = ALPACA_INSTRUCTION + section
            if not has_preamble:
                preamble = ALPACA_WITH_INPUT if example.input else ALPACA_WITHOUT_INPUT
                section = preamble + BETWEEN + section + (ALPACA_INPUT + example.input if example.input else "")
            has_preamble = True
        yield BETWEEN + section if i and turn.role != "assistant" else section
