"""Render conversations with the tokenizer's chat template, and locate the answers in the text."""

import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache, partial
from itertools import count, dropwhile
from typing import Any

from lpsel.data.apply_template import (
    Messages,
    Tools,
    apply_marked,
    apply_template,
    kind_without_tools,
    template_of,
    time_limit,
)
from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import ControlTokens, Rendered, Span, control_tokens
from lpsel.errors import UnusableRow

BETWEEN = "\n\n"  # separates a turn from Alpaca's input
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks answers in a template, for transformers


def chat_messages(example: Example) -> Messages:
    """Convert the turns to messages for a chat template or an endpoint."""
    return [{"role": turn.role, "content": turn.content, **turn.fields} for turn in with_input(example)]


def with_input(example: Example) -> list[Turn]:
    """Return the turns, with Alpaca's input appended to the first user turn after an empty line."""
    turns = list(example.turns)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if example.input and first is not None:
        turns[first] = turns[first]._replace(content=turns[first].content + BETWEEN + example.input)
    return turns


def render_chat(example: Example, tokenizer: Any, prompt: bool = False) -> Rendered:
    """Render a conversation with supervised answers, or with `prompt` up to where the next answer begins.

    Raises:
        UserError: the tokenizer has no chat template.
        UnusableRow: the template rejects the conversation, or does not support its tools.
    """
    controls = control_tokens(tokenizer)
    messages, tools = chat_messages(example), list(example.tools) or None
    base = None
    texts: list[str] = []
    _mapped([messages, tools], texts.append)
    if any(map(controls.find, texts)):
        base = controls.base("".join(texts))
        messages, tools = _hidden(messages, tools, controls, base)
    supervised = [turn.supervised for turn in example.turns]
    with time_limit(tokenizer):
        text, spans = _render_calls(messages, tools, tokenizer, prompt, supervised)
    if base is None:
        return Rendered(text, spans, append_eos=False, add_special_tokens=False)
    written = controls.find(text)  # by the template: those of the row are hidden
    text = controls.show(text, base)
    all_written = written == controls.find(text)
    return Rendered(text, spans, append_eos=False, add_special_tokens=False, controls=None if all_written else written)


def arguments_as_text(messages: Messages, ensure_ascii: bool = False) -> Messages:
    """Convert the arguments of tool calls to JSON text, for templates that concatenate them, such as DeepSeek V3's."""

    def as_text(call: Any) -> Any:
        function = call["function"]
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=ensure_ascii)
        return {**call, "function": {**function, "arguments": text}}

    converted = []
    for message in messages:
        if "tool_calls" in message:
            message = {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        converted.append(message)
    return converted


def _hidden(messages: Messages, tools: Tools, controls: ControlTokens, base: int) -> tuple[Messages, Tools]:
    """Hide control tokens in a conversation and its tools, except for tags in answers."""

    def hide(text: str, keep: Collection[str] = ()) -> str:
        spans = [(begin, end) for begin, end in controls.find(text) if text[begin:end] not in keep]
        return controls.hide(text, spans, base)

    hidden = _mapped(messages, hide)
    for message, original in zip(hidden, messages, strict=True):
        if message["role"] == "assistant":
            message["content"] = hide(original["content"], controls.tags)
    return hidden, _mapped(tools, hide)


def _mapped(value: Any, function: Callable[[str], Any]) -> Any:
    """Apply a function to every string in a JSON value."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    return [_mapped(item, function) for item in value] if isinstance(value, list | tuple) else value


def _render_calls(
    messages: Messages, tools: Tools, tokenizer: Any, prompt: bool, supervised: list[bool]
) -> tuple[str, list[Span]]:
    """Call `_render`, with the arguments of tool calls as objects, or as JSON text for templates that expect text.

    Such templates reject objects, or write them in Python's notation.
    """
    render = partial(_render, tools=tools, tokenizer=tokenizer, prompt=prompt, supervised=supervised)
    with_text = arguments_as_text(messages)
    if with_text == messages:  # no calls, or only arguments that are text already
        return render(messages)
    try:
        text, spans = render(messages)
    except UnusableRow:
        return render(with_text)
    functions = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    in_python = [str(function["arguments"]) for function in functions if function.get("arguments")]
    if any(notation in text for notation in in_python):
        json_text, json_spans = render(with_text)
        # Otherwise, the notation is not from the template, but from another turn that mentions it.
        if any(json_text.count(notation) < text.count(notation) for notation in in_python):
            return json_text, json_spans
    return text, spans


def _render(
    messages: Messages, tools: Tools, tokenizer: Any, prompt: bool, supervised: list[bool]
) -> tuple[str, list[Span]]:
    """Return the text of a conversation and the spans of its supervised answers."""
    apply = partial(apply_template, tokenizer=tokenizer, tools=tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    marked: list[Span] = []
    if not prompt and GENERATION.search(template_of(tokenizer, tools)):
        text, marked = apply_marked(messages, tokenizer, tools)
    else:
        text = apply(messages, add_generation_prompt=prompt)
    spans: dict[int, Span | None] = {}
    if marked and len(marked) == len(answers):
        spans = {i: _trimmed(text, span, tokenizer) for i, span in zip(answers, marked, strict=True)}
    elif not prompt:
        needed = [i for i in answers if supervised[i] or messages[i].get("tool_calls")]  # calls for `_check_tools`
        spans = {i: _locate_answer(text, messages, i, tokenizer, apply) for i in needed}
    _check_tools(text, messages, spans, tokenizer, tools)
    return text, [span for i, span in spans.items() if span and supervised[i]]


def _locate_answer(text: str, messages: Messages, i: int, tokenizer: Any, apply: Callable[..., str]) -> Span | None:
    """Locate the answer of turn i: its content, reasoning and tool calls, and the token that ends it.

    The conversation is rendered again with the turn replaced by a sentinel. Text that both renderings share before and
    after the sentinel is not part of the answer; the rest is, whatever the template strips, adds or drops elsewhere. If
    the turn has tool calls, their results are omitted from both, since templates may reject them after the sentinel.

    Returns:
        The span of the answer in `text`; None if the template drops the turn.
    """
    sentinels = ("\ue3a7" + n * "\uf1c2" + "\ue3a7" for n in count(1))
    sentinel = next(candidate for candidate in sentinels if candidate not in text)
    with_sentinel = [*messages[:i], {"role": "assistant", "content": sentinel}]
    later = messages[i + 1 :]
    earliest = 0
    if messages[i].get("tool_calls"):
        original = _without_results(messages[: i + 1], later, apply)
        replaced = _without_results(with_sentinel, later, apply)
        with suppress(UnusableRow):
            earliest = _common_prefix(text, apply(messages[:i], add_generation_prompt=True))
    else:
        original, replaced = text, apply(with_sentinel + later)
    if sentinel not in replaced:
        return None
    before, after = replaced.partition(sentinel)[0], replaced.rpartition(sentinel)[2]
    start = _common_prefix(text, before)
    _, header = _headers(tokenizer)
    if start < len(before) and header in text[:start]:  # reasoning or a call follows the header
        start = max(earliest, _after_header(text, text.rindex(header, 0, start), tokenizer))
    after = after[_end_of_turn(after, 0, tokenizer) :]
    end = len(original) - _common_prefix(original[::-1], after[::-1])
    return start, max(start, min(end, _common_prefix(text, original)))


def _without_results(beginning: Messages, later: Messages, apply: Callable[..., str]) -> str:
    """Render the beginning of a conversation and the later turns, without the results of its last tool calls."""
    later = list(dropwhile(lambda message: message["role"] == "tool", later))
    try:
        return apply(beginning + later)
    except UnusableRow:  # an answer follows another one
        return apply(beginning + list(dropwhile(lambda message: message["role"] in ("tool", "assistant"), later)))


def _trimmed(text: str, span: Span, tokenizer: Any) -> Span:
    """Trim a span that a template marks for training: remove the header and white space after the end token."""
    begin, end = span
    start = _after_header(text, begin, tokenizer)
    controls = control_tokens(tokenizer).find(text[start:end])
    if controls:
        end_of_last = start + controls[-1][1]
        if not text[end_of_last:end].strip():
            return start, end_of_last
    return start, _end_of_turn(text, end, tokenizer)


def _check_tools(text: str, messages: Messages, spans: dict[int, Span | None], tokenizer: Any, tools: Tools) -> None:
    """Raise an UnusableRow if the template leaves out tools, tool calls or their results."""
    missing = "tools" if tools and "tools" not in template_of(tokenizer, tools) else ""
    for i, message in enumerate(messages):
        if message.get("tool_calls"):
            start, end = spans.get(i) or (0, 0)
            written = text[start:end].replace(message["content"].strip(), "", 1)
            if not all(call["function"]["name"] in written for call in message["tool_calls"]):
                missing = "tool calls"
        elif message["role"] == "tool":
            content = message["content"].strip()
            quoted = json.dumps(content, ensure_ascii=False)[1:-1]
            if content not in text and quoted not in text:
                missing = "results of tools"
    if missing:
        name, hint = f"chat template of {tokenizer.name_or_path}", "use a model whose chat template supports tools"
        raise UnusableRow(name, None, f"does not support {missing}", hint, kind=kind_without_tools("chat"))


@lru_cache(maxsize=8)
def _headers(tokenizer: Any) -> tuple[str, str]:
    """Return the generation prompt, and the part of it that precedes every answer.

    The generation prompt may contain a tag such as <think>, which opens reasoning.
    """
    question, answer = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
    try:
        prompt = apply_template([question], tokenizer, None)
        opened = apply_template([question], tokenizer, None, add_generation_prompt=True)
        text = apply_template([question, answer], tokenizer, None)
    except UnusableRow:
        return "", ""
    begin = _common_prefix(prompt, opened)
    return opened[begin:], opened[begin : _common_prefix(text, opened)]


def _after_header(text: str, begin: int, tokenizer: Any) -> int:
    """Return where the header of the answer at `begin` ends; `begin` if there is no header."""
    for header in _headers(tokenizer):
        if text.startswith(header, begin):
            return begin + len(header)
    return begin


def _common_prefix(text: str, other: str) -> int:
    if text.startswith(other):  # much faster than comparing characters
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))


def _end_of_turn(text: str, end: int, tokenizer: Any) -> int:
    """Return the end of the control token that follows `end`, possibly after white space; `end` if there is none."""
    begin = end + len(text[end:]) - len(text[end:].lstrip())
    return control_tokens(tokenizer).end(text, begin) or end
