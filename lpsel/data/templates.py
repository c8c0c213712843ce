"""Render a row as text, and mark the parts that are supervised.

There are three templates: `alpaca`, the prompt of Stanford Alpaca, as in the paper; `chat`, the tokenizer's chat
template; and `plain`, the content of the turns only. `auto` chooses alpaca or chat for all rows of a dataset, because
scores are only comparable with the same prompt format, and the trained model needs a single format at inference.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lpsel.data.apply_template import SAME_DATE, kind_without_tools
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
    """Return whether the first usable row of a dataset is a list of turns; False without usable rows."""
    raw = next((row.raw for row in source if row.unusable is None), None)
    return raw is not None and is_conversation(raw, choose_form(source.forms(tuple(raw)), raw))


def resolve_template(template: str, conversations: bool, tokenizer: Any) -> str:
    """Resolve `auto` to chat for conversations if the tokenizer has a chat template, otherwise to alpaca.

    Args:
        conversations: whether the rows are lists of turns, see `holds_conversations`.
    """
    if template != "auto":
        return template
    return "chat" if conversations and getattr(tokenizer, "chat_template", None) else "alpaca"


def render(example: Example, template: str, tokenizer: Any) -> Rendered:
    """Render a row; the assistant turns to train on, and the tokens that end them, are supervised.

    Raises:
        UserError: the template is unknown, or template=chat and the tokenizer has no chat template.
        UnusableRow: the chat template rejects the conversation; or the row has tools, tool calls or their results, and
            the template does not support them, such as alpaca and plain.
    """
    check_choice("template", template, ("alpaca", "chat", "plain"))
    rendered = _render(example, template, tokenizer)
    omitted = any(text.strip() not in rendered.text for text in _often_omitted(example))
    return rendered._replace(text_omitted=True) if omitted else rendered


def _often_omitted(example: Example) -> Iterator[str]:
    """Yield texts that some chat templates leave out: reasoning, questions, and text next to tool calls."""
    for role, content, _, fields in example.turns:
        if role == "assistant" and "</think>" in content:  # DeepSeek R1's template may write the opening tag itself
            yield content.partition("</think>")[0].rpartition("<think>")[2]
        if fields:
            yield from (fields[key] for key in ("reasoning_content", "thinking") if key in fields)
        if (role != "assistant" and role != "tool") or "tool_calls" in fields:
            yield content


def render_prompt(example: Example, template: str, tokenizer: Any) -> Rendered:
    """Render the prompt to generate from: all turns before the last answer, and the beginning of the answer."""
    prompt = example.prompt()
    if template == "chat":
        return render_chat(prompt, tokenizer, prompt=True)
    # Add an empty answer to get the text that the template writes before an answer.
    with_answer = prompt._replace(turns=(*prompt.turns, Turn("assistant", "")))
    return render(with_answer, template, tokenizer)._replace(supervised=[], append_eos=False)


def template_hash(template: str, tokenizer: Any) -> str:
    """Return the SHA-256 of everything in the template that affects the text."""
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
        hint = "set template=chat for a model whose chat template supports tools, or remove the row"
        raise UnusableRow("template", template, "does not support tools", hint, kind=kind_without_tools(template))
    if template == "alpaca":
        return _join(example.turns, _alpaca_sections(example), BETWEEN + ALPACA_RESPONSE, tokenizer)
    return _join(example.turns, (turn.content for turn in with_input(example)), "", tokenizer)


def _join(turns: tuple[Turn, ...], sections: Iterable[str], before_answer: str, tokenizer: Any) -> Rendered:
    """Join one section per turn; answers are supervised.

    Answers followed by other turns end with EOS as text. The last answer ends with the EOS id, which does not depend on
    how the tokenizer splits the text.
    """
    text, eos = "", tokenizer.eos_token
    answers: list[Span] = []
    supervised: list[Span] = []
    eos_spans: list[Span] = []
    for i, (turn, section) in enumerate(zip(turns, sections, strict=True)):
        if turn.role != "assistant":
            text += section
            continue
        text += before_answer if text else before_answer.lstrip()
        start = len(text)
        text += section
        if i < len(turns) - 1:
            eos_spans.append((len(text), len(text) + len(eos)))
            text += eos
        answers.append((start, len(text)))
        if turn.supervised:
            supervised.append(answers[-1])
    controls = control_tokens(tokenizer)
    spans = controls.find(text)

    def is_control(begin: int, end: int) -> bool:
        """Return whether a string is a control token: an EOS added above, or a tag such as <think> in an answer."""
        in_answer = any(start <= begin < stop for start, stop in answers)
        return (begin, end) in eos_spans or (text[begin:end] in controls.tags and in_answer)

    control_spans = [span for span in spans if is_control(*span)]
    return Rendered(
        text,
        supervised,
        append_eos=turns[-1].role == "assistant" and turns[-1].supervised,
        add_special_tokens=True,
        controls=None if control_spans == spans else control_spans,
    )


def _alpaca_sections(example: Example) -> Iterator[str]:
    """Yield the section of each turn in the prompt of Stanford Alpaca; a system turn precedes the preamble."""
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
