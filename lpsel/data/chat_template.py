"""The tokenizer's chat template: a conversation as text, and where its answers are."""

import json
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from itertools import count
from typing import Any, cast

from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import ControlTokens, Rendered, Span, control_tokens
from lpsel.errors import UnusableRow, UserError, first_line

BETWEEN = "\n\n"  # a turn and Alpaca's input
# Some chat templates (Llama 3.2, SmolLM3) write today's date: a fixed date, so that scores do not depend on it.
# transformers passes no custom function to a template, but a template can define its own macro.
DATE_CODES = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
SAME_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in DATE_CODES.items())
    + " }}{%- endmacro -%}"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks answers in a template, for transformers
REMOVE = "remove the row or set template=alpaca"
LONGEST = 60.0  # seconds of this process's CPU time for one conversation, which takes about a millisecond
Messages = list[dict[str, Any]]
Tools = list[Any] | None


def chat_messages(example: Example) -> Messages:
    """The turns as messages for a chat template or an endpoint."""
    return [{"role": turn.role, "content": turn.content, **turn.fields} for turn in with_input(example)]


def with_input(example: Example) -> list[Turn]:
    """The turns, with Alpaca's input appended to the first user turn after an empty line."""
    turns = list(example.turns)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if example.input and first is not None:
        turns[first] = turns[first]._replace(content=turns[first].content + BETWEEN + example.input)
    return turns


def render_chat(example: Example, tokenizer: Any, prompt: bool = False) -> Rendered:
    """The text of a conversation with its answers supervised, or a prompt that ends where an answer begins.

    Raises:
        UserError: the tokenizer has no chat template.
        UnusableRow: the template rejects the conversation, or has no place for its tools.
    """
    controls = control_tokens(tokenizer)
    messages, tools = chat_messages(example), list(example.tools) or None
    base = None
    texts = [message["content"] for message in messages]
    texts += _strings([[message for message in messages if len(message) > 2], tools])
    if any(map(controls.find, texts)):
        base = controls.base("".join(texts))
        messages, tools = _hidden(messages, tools, controls, base)
    with time_limit(tokenizer):
        text, spans = _render(messages, tools, tokenizer, prompt, [turn.supervised for turn in example.turns])
    if base is None:
        return Rendered(text, spans, append_eos=False, add_special_tokens=False)
    written, shown = controls.find(text), controls.show(text, base)
    differ = written != controls.find(shown)
    return Rendered(shown, spans, append_eos=False, add_special_tokens=False, controls=written if differ else None)


def _hidden(messages: Messages, tools: Tools, controls: ControlTokens, base: int) -> tuple[Messages, Tools]:
    """The conversation without control tokens, but for the tags in answers."""

    def hide(text: str, keep: Collection[str] = ()) -> str:
        spans = [(begin, end) for begin, end in controls.find(text) if text[begin:end] not in keep]
        return controls.hide(text, spans, base)

    hidden = _mapped(messages, hide)
    for message, original in zip(hidden, messages, strict=True):
        if message["role"] == "assistant":
            message["content"] = hide(original["content"], controls.tags)
    return hidden, _mapped(tools, hide)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    return [_mapped(item, function) for item in value] if isinstance(value, list | tuple) else value


def _render(
    messages: Messages, tools: Tools, tokenizer: Any, prompt: bool, supervised: list[bool]
) -> tuple[str, list[Span]]:
    """The text of a conversation, and the spans of its supervised answers."""
    apply = partial(_apply, tokenizer=tokenizer, tools=tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    marked: list[Span] = []
    if not prompt and GENERATION.search(_template(tokenizer, tools)):
        text, marked = _apply_marked(messages, tokenizer, tools)
    else:
        text = apply(messages, add_generation_prompt=prompt)
    spans: dict[int, Span | None] = {}
    if marked and len(marked) == len(answers):
        spans = {i: _trimmed(text, span, tokenizer) for i, span in zip(answers, marked, strict=True)}
    elif not prompt:
        wanted = [i for i in answers if supervised[i] or messages[i].get("tool_calls")]
        spans = {i: _answer(text, messages, i, tokenizer, apply) for i in wanted}
    _check_tools(text, messages, spans, tokenizer, tools)
    return text, [span for i, span in spans.items() if span and supervised[i]]


def _answer(text: str, messages: Messages, i: int, tokenizer: Any, apply: Callable[[Messages], str]) -> Span | None:
    """Where a template writes the answer of turn i: its content, reasoning and calls, and the token that ends it.

    The turn is replaced by a bare sentinel. The text that both renderings share before and after the sentinel is not
    the answer, so the rest is, whatever the template strips, adds or drops elsewhere.
    """
    sentinel = next(sentinel for n in count(1) if (sentinel := "\ue3a7" + n * "\uf1c2" + "\ue3a7") not in text)
    following = messages[i + 1 :]
    has_calls = bool(messages[i].get("tool_calls"))
    if has_calls:  # the results of calls that are no longer there could be rejected
        users = (k for k, message in enumerate(following) if message["role"] == "user")
        following = following[next(users, len(following)) :]
    replaced = apply([*messages[:i], {"role": "assistant", "content": sentinel}, *following])
    before, found, rest = replaced.partition(sentinel)
    if not found:  # the template drops this turn
        return None
    header, end_of_turn = _markup(tokenizer)
    start = _common_prefix(text, before)
    if start < len(before) and header and header in text[:start]:  # reasoning or a call follows the header
        start = text.rindex(header, 0, start) + len(header)
    if has_calls and end_of_turn in text[start:]:
        return start, text.index(end_of_turn, start) + len(end_of_turn)
    after = rest.rpartition(sentinel)[2]
    end = max(start, len(text) - _common_prefix(text[::-1], after[::-1]))
    return start, _end_of_turn(text, end, tokenizer)


def _trimmed(text: str, span: Span, tokenizer: Any) -> Span:
    """A part that a template marks for training, without the header of the turn and white space after its end token."""
    start, end = span
    header, _ = _markup(tokenizer)
    if header and text.startswith(header, start):
        start += len(header)
    written = control_tokens(tokenizer).find(text[start:end])
    if written and not text[start + written[-1][1] : end].strip():
        return start, start + written[-1][1]
    return start, _end_of_turn(text, end, tokenizer)


def _check_tools(text: str, messages: Messages, spans: dict[int, Span | None], tokenizer: Any, tools: Tools) -> None:
    """Raise an UnusableRow if the template leaves out tools, calls or their results."""
    missing = "tools" if tools and "tools" not in _template(tokenizer, tools) else ""
    for i, message in enumerate(messages):
        if message.get("tool_calls"):
            start, end = spans.get(i) or (0, 0)
            written = text[start:end].replace(message["content"].strip(), "", 1)
            names = [_name(call) for call in message["tool_calls"]]
            missing = missing if all(name in written for name in names) else "tool calls"
        elif message["role"] == "tool":
            content = message["content"].strip()
            missing = missing if content in text or _quoted(content) in text else "results of tools"
    if missing:
        name, hint = f"chat template of {tokenizer.name_or_path}", "use a model whose chat template has tools"
        raise UnusableRow(name, None, f"has no place for {missing}", hint, kind="the chat template has no tools")


def _name(call: Any) -> str:
    """The name of the function in a call; also one without `function` around it."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _template(tokenizer: Any, tools: Tools) -> str:
    """The chat template, which always writes the same date."""
    if not getattr(tokenizer, "chat_template", None):
        problem = f"the tokenizer of {tokenizer.name_or_path} has no chat template"
        hint = "set model.template=alpaca (scorer.template=alpaca for the scorer)"
        raise UserError("template", "chat", problem, hint)
    template = str(tokenizer.get_chat_template(tools=tools))
    return SAME_DATE + template if "strftime_now" in template else template


def _apply(messages: Messages, tokenizer: Any, tools: Tools, add_generation_prompt: bool = False) -> str:
    template = _template(tokenizer, tools)
    with _rejection(messages, tokenizer):
        return str(
            tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )


def _apply_marked(messages: Messages, tokenizer: Any, tools: Tools) -> tuple[str, list[Span]]:
    """The text of a conversation, and the parts that the template marks with {% generation %}."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _rejection(messages, tokenizer):
        texts, spans = cast(Any, render_jinja_template)(  # annotated as a string
            [messages],
            tools=tools,
            chat_template=_template(tokenizer, tools),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    return texts[0], spans[0]


@contextmanager
def _rejection(messages: Messages, tokenizer: Any) -> Iterator[None]:
    """Turn what a template raises into an UnusableRow."""
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        roles = ", ".join(message["role"] for message in messages)
        problem = f"rejects a conversation of {roles}: {first_line(error)}"
        name = f"chat template of {tokenizer.name_or_path}"
        raise UnusableRow(name, None, problem, REMOVE, kind="the chat template rejects it") from None


@contextmanager
def time_limit(tokenizer: Any) -> Iterator[None]:
    """Raise a UserError in a chat template that takes more than LONGEST, which is a loop; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop_at_timer()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
        yield
    except TimeoutError:
        name, problem = f"chat template of {tokenizer.name_or_path}", f"does not end: stopped after {LONGEST:g} seconds"
        raise UserError(name, problem=problem, hint="set template=alpaca, or use another model") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@cache
def _stop_at_timer() -> None:
    """From now on, the timer of `time_limit` raises a TimeoutError."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, stop)


@lru_cache(maxsize=8)
def _markup(tokenizer: Any) -> tuple[str, str]:
    """What a template writes before an answer that is to be generated, and the token that ends an answer."""
    question, answer = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
    try:
        asked = _apply([question], tokenizer, None)
        opened = _apply([question], tokenizer, None, add_generation_prompt=True)
        text = _apply([question, answer], tokenizer, None)
    except UnusableRow:
        return "", ""
    end = text.rfind("ANSWER") + len("ANSWER")
    return opened[_common_prefix(asked, opened) :], text[end : _end_of_turn(text, end, tokenizer)].strip()


def _common_prefix(text: str, other: str) -> int:
    """Length of the common prefix."""
    if text.startswith(other):
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(text))


def _end_of_turn(text: str, end: int, tokenizer: Any) -> int:
    """The end of the control token that follows `end`, possibly after white space; else `end`."""
    begin = end + len(text[end:]) - len(text[end:].lstrip())
    return control_tokens(tokenizer).end(text, begin) or end
