"""Apply a tokenizer's chat template to a conversation, with a fixed date and a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lpsel.data.control_tokens import Span
from lpsel.errors import UnusableRow, UserError, first_line

# Some chat templates (Llama 3.2, SmolLM3) insert today's date. A fixed date keeps scores reproducible. A macro sets it,
# because transformers does not pass custom functions to a template.
DATE_CODES = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
SAME_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in DATE_CODES.items())
    + " }}{%- endmacro -%}"
)
REMOVE = "remove the row or set template=alpaca"
MERGE = "set dataset.system=merge if it rejects system turns, or template=alpaca, or remove the row"
LONGEST = 60.0  # seconds of this process's CPU time for one conversation, which takes about a millisecond
Messages = list[dict[str, Any]]
Tools = list[Any] | None


def kind_without_tools(template: str) -> str:
    """Return the kind of rows that are unusable because a template does not support tools."""
    return "the chat template has no tools" if template == "chat" else f"tools with template={template}"


def template_of(tokenizer: Any, tools: Tools) -> str:
    """Return the chat template with a fixed date."""
    if not getattr(tokenizer, "chat_template", None):
        problem = f"the tokenizer of {tokenizer.name_or_path} has no chat template"
        hint = "set model.template=alpaca (scorer.template=alpaca for the scorer)"
        raise UserError("template", "chat", problem, hint)
    template = str(tokenizer.get_chat_template(tools=tools))
    return SAME_DATE + template if "strftime_now" in template else template


def apply_template(messages: Messages, tokenizer: Any, tools: Tools, add_generation_prompt: bool = False) -> str:
    """Return the text of a conversation; raise an UnusableRow if the template rejects it."""
    template = template_of(tokenizer, tools)
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


def apply_marked(messages: Messages, tokenizer: Any, tools: Tools) -> tuple[str, list[Span]]:
    """Return the text of a conversation and the spans that the template marks with {% generation %}."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with _rejection(messages, tokenizer):
        texts, spans = cast(Any, render_jinja_template)(  # its annotated return type, str, is wrong here
            [messages],
            tools=tools,
            chat_template=template_of(tokenizer, tools),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    return texts[0], spans[0]


@contextmanager
def _rejection(messages: Messages, tokenizer: Any) -> Iterator[None]:
    """Convert exceptions raised by a template to an UnusableRow."""
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        roles = [message["role"] for message in messages]
        problem = f"rejects a conversation of {', '.join(roles)}: {first_line(error)}"
        name, hint = f"chat template of {tokenizer.name_or_path}", MERGE if "system" in roles else REMOVE
        raise UnusableRow(name, None, problem, hint, kind="the chat template rejects it") from None


@contextmanager
def time_limit(tokenizer: Any) -> Iterator[None]:
    """Stop a chat template that runs longer than LONGEST, such as an endless loop; only works in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
        yield
    except TimeoutError:
        name, problem = f"chat template of {tokenizer.name_or_path}", f"ran for more than {LONGEST:g} seconds"
        raise UserError(name, problem=problem, hint="set template=alpaca, or use another model") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
