"""Render conversations with the tokenizer's chat template, and locate the answers in the text."""

import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache, partial
from itertools import count
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
    texts = [message["content"] for message in messages]
    _mapped([[message for message in messages if len(message) > 2], tools], texts.append)
    if any(map(controls.find, texts)):
        base = controls.base("".join(texts))
        messages, tools = _hidden(messages, tools, controls, base)
    supervised = [turn.supervised for turn in example.turns]
    with time_limit(tokenizer):
        text, spans = _render_calls(messages, tools, tokenizer, prompt, supervised)
    if base is None:
        return Rendered(text, spans, append_eos=False, add_special_tokens=False)
    written, shown = controls.find(text), controls.show(text, base)
    differ = written != controls.find(shown)
    return Rendered(shown, spans, append_eos=False, add_special_tokens=False, controls=written if differ else None)


def arguments_as_text(messages: Messages, ensure_ascii: bool = False) -> Messages:
    """Convert the arguments of tool calls to JSON text, for templates that concatenate them, such as DeepSeek V3's."""

    def as_text(call: Any) -> Any:
        function = call["function"]
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=ensure_ascii)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


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
    with_text = arguments_as_text(messages)
    try:
        rendered = _render(messages, tools, tokenizer, prompt, supervised)
    except UnusableRow:
        if with_text == messages:
            raise
        return _render(with_text, tools, tokenizer, prompt, supervised)
    calls = (call for message in messages for call in message.get("tool_calls", ()))
    python = [str(arguments) for call in calls if (arguments := call["function"].get("arguments"))]
    if any(notation in rendered[0] for notation in python) and with_text != messages:
        again = _render(with_text, tools, tokenizer, prompt, supervised)
        if any(again[0].count(notation) < rendered[0].count(notation) for notation in python):
            return again
    return rendered


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
        located = [i for i in answers if supervised[i] or messages[i].get("tool_calls")]
        spans = {i: _answer(text, messages, i, tokenizer, apply) for i in located}
    _check_tools(text, messages, spans, tokenizer, tools)
    return text, [span for i, span in spans.items() if span and supervised[i]]


def _answer(text: str, messages: Messages, i: int, tokenizer: Any, apply: Callable[..., str]) -> Span | None:
    """Locate the answer of turn i: its content, reasoning and tool calls, and the token that ends it.

    The conversation is rendered again with the turn replaced by a sentinel. Text that both renderings share before and
    after the sentinel is not part of the answer; the rest is, whatever the template strips, adds or drops elsewhere. If
    the turn has tool calls, their results are omitted from both, since templates may reject them after the sentinel.
    """
    sentinel = next(sentinel for n in count(1) if (sentinel := "\ue3a7" + n * "\uf1c2" + "\ue3a7") not in text)
    bare = [*messages[:i], {"role": "assistant", "content": sentinel}]
    written, begin = text, 0
    if messages[i].get("tool_calls"):
        written, replaced = (_without_results(turns, messages, apply) for turns in (messages[: i + 1], bare))
        with suppress(UnusableRow):
            begin = _common_prefix(text, apply(messages[:i], add_generation_prompt=True))
    else:
        replaced = apply(bare + messages[i + 1 :])
    before, found, rest = replaced.partition(sentinel)
    if not found:  # the template drops this turn
        return None
    start, header = _common_prefix(text, before), _headers(tokenizer)[-1]
    if start < len(before) and header in text[:start]:  # reasoning or a call follows the header
        start = max(begin, _after_header(text, text.rindex(header, 0, start), tokenizer))
    rest = rest.rpartition(sentinel)[2]
    after = rest[_end_of_turn(rest, 0, tokenizer) :]
    end = len(written) - _common_prefix(written[::-1], after[::-1])
    return start, max(start, min(end, _common_prefix(text, written)))


def _without_results(beginning: Messages, messages: Messages, apply: Callable[..., str]) -> str:
    """Render the beginning of a conversation and the turns after it, without the results of its last tool calls."""
    following = messages[len(beginning) :]
    answer, question = (
        next((k for k, message in enumerate(following) if message["role"] not in skipped), len(following))
        for skipped in (("tool",), ("tool", "assistant"))
    )
    try:
        return apply(beginning + following[answer:])
    except UnusableRow:  # an answer follows another one
        return apply(beginning + following[question:])


def _trimmed(text: str, span: Span, tokenizer: Any) -> Span:
    """Trim a span that a template marks for training: remove the header and white space after the end token."""
    start, end = _after_header(text, span[0], tokenizer), span[1]
    written = control_tokens(tokenizer).find(text[start:end])
    if written and not text[start + written[-1][1] : end].strip():
        return start, start + written[-1][1]
    return start, _end_of_turn(text, end, tokenizer)


def _check_tools(text: str, messages: Messages, spans: dict[int, Span | None], tokenizer: Any, tools: Tools) -> None:
    """Raise an UnusableRow if the template leaves out tools, tool calls or their results."""
    missing = "tools" if tools and "tools" not in template_of(tokenizer, tools) else ""
    for i, message in enumerate(messages):
        if message.get("tool_calls"):
            start, end = spans.get(i) or (0, 0)
            written = text[start:end].replace(message["content"].strip(), "", 1)
            names = [call["function"]["name"] for call in message["tool_calls"]]
            missing = missing if all(name in written for name in names) else "tool calls"
        elif message["role"] == "tool":
            content = message["content"].strip()
            quoted = json.dumps(content, ensure_ascii=False)[1:-1]
            missing = missing if content in text or quoted in text else "results of tools"
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
    return begin + next((len(header) for header in _headers(tokenizer) if text.startswith(header, begin)), 0)


def _common_prefix(text: str, other: str) -> int:
    """Return the length of the common prefix."""
    if text.startswith(other):
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))


def _end_of_turn(text: str, end: int, tokenizer: Any) -> int:
    """Return the end of the control token that follows `end`, possibly after white space; `end` if there is none."""
    begin = end + len(text[end:]) - len(text[end:].lstrip())
    return control_tokens(tokenizer).end(text, begin) or end
