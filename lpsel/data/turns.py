"""Parse the turns of a conversation from a list of messages in any of the common formats."""

import json
import re
from collections.abc import Mapping
from typing import Any

from lpsel.data.example import Turn
from lpsel.data.values import check_unicode, described, is_empty, is_null, mark_of, parsed, text_of, without_nulls
from lpsel.errors import UnusableRow

NAMES_OF_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot", "chatbot"),
    "tool": ("tool", "function", "observation", "tool_response", "tool_result"),
}
PLAIN_ROLES = {name: role for role, names in NAMES_OF_ROLES.items() for name in names}
CALLING_ROLES = ("function_call", "tool_call", "tool_calls")  # roles of assistant turns whose text is a tool call
ROLES = {**PLAIN_ROLES, **dict.fromkeys(CALLING_ROLES, "assistant")}
FIELDS = ("name", "reasoning_content", "thinking", "tool_call_id")  # fields that are passed to chat templates unchanged
TEXT_PARTS = {"text", "input_text", "output_text"}
LIST_OF_OBJECTS = r"^[ \t\r\n]*\[[ \t\r\n]*\{"  # how a list of turns begins in text
BEGINS_LIST = re.compile(LIST_OF_OBJECTS).match
PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'\s*:.*\}\s*\]\s*", re.DOTALL)
KEYS_OF_TURNS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
MEDIA = re.compile(r"(image|audio|video)s?(_(url|path|file|name|base64|bytes|data)s?)?")
MEDIA_KINDS = {"image": "images", "audio": "audio", "video": "video"}


def turns_of(value: Any, column: str) -> list[Turn]:
    """Parse the turns in a column: a list of messages, where the list or its messages may be JSON text.

    A message has a role (or `from`) and a content (or `value`): text, null, or a list of text parts.

    Raises:
        UnusableRow: the value is anything else, or a message contains something other than text.
    """
    while isinstance(value, str) and value.lstrip().startswith(("[", '"')):  # may be JSON inside JSON
        value = parsed(value, column)
    if not isinstance(value, list) or not value:
        problem = f"must be a list of turns, found {described(value)}"
        hint = "remove the row or map another column"
        raise UnusableRow(f"column {column}", None, problem, hint, kind="no turns")
    return [_turn(message, column) for message in value]


def written_turns(value: Any, column: str) -> Any:
    """Return the turns in a prompt or completion that is a JSON list of turns as text, as in CSV, or else the value.

    Raises:
        UnusableRow: the text is a list of turns in Python's notation, which pandas writes to CSV.
    """
    if type(value) is not str or not BEGINS_LIST(value):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        if PYTHON_LIST.fullmatch(value):
            problem, hint = "has turns in Python's notation", "write them as JSON, with json.dumps"
            raise UnusableRow(f"column {column}", None, problem, hint, kind="turns in Python's notation") from None
        return value
    for turn in turns:
        if not isinstance(turn, dict) or not any(keys <= turn.keys() for keys in KEYS_OF_TURNS):
            return value
        if str(turn.get("role") or turn.get("from")).strip().lower() not in ROLES:
            return value
    return turns


def tools_of(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    """Parse the tools in a column: null or a list of objects, which may be JSON text.

    Raises:
        UnusableRow: the value is anything else.
    """
    if isinstance(value, str) and value:
        value = parsed(value, column)
    if is_empty(value):
        return ()
    tools = [parsed(tool, column) if isinstance(tool, str) else tool for tool in _list(value)]
    if not all(isinstance(tool, dict) for tool in tools):
        raise _unusable(column, f"must be a list of tools, found {described(value)}", "tools that are not objects")
    check_unicode(tools, column)
    return tuple(without_nulls(tools))


def check_no_media(row: Mapping[str, Any], columns: tuple[str, ...], location: str = "") -> None:
    """Raise an UnusableRow if one of these columns or fields is not empty."""
    for column in columns:
        value = row[column]
        if value and not is_empty(value):
            kind = MEDIA_KINDS[re.split("s?_|s$", column.lower())[0]]
            problem = f"{kind} {'are' if kind == 'images' else 'is'} not supported"
            raise _unusable(f"{location}{column}", problem, kind)


def media_columns(columns: Any) -> tuple[str, ...]:
    """Return the columns that contain images, audio or video according to their names."""
    return tuple(column for column in columns if MEDIA.fullmatch(column.lower()))


def _turn(message: Any, column: str) -> Turn:
    if type(message) is dict and len(message) == 2:
        role, content = message.get("role"), message.get("content")
        if type(role) is str and type(content) is str and (plain := PLAIN_ROLES.get(role)):
            # A fast path for nearly all turns, without function calls for ASCII text.
            return Turn(plain, content if content.isascii() else text_of(content, column))
    if isinstance(message, str) and message.lstrip().startswith("{"):
        message = parsed(message, column)
    if not isinstance(message, dict):
        raise _unusable(column, f"every turn must have role and content, found {described(message)}", "no turns")
    return _turn_with_fields(message, column)


def _turn_with_fields(message: Mapping[str, Any], column: str) -> Turn:
    fields = _fields(message, column)
    role_key = _key(message, "role", "from")
    content_key = _key(message, "content", "value")
    if role_key is None or (content_key is None and "tool_calls" not in fields):
        problem = "every turn must have role and content, or from and value"
        raise _unusable(column, problem, "a turn without role or content")
    content = _content(message[content_key], f"{column}.{content_key}") if content_key else ""
    name = str(message[role_key]).strip().lower()
    role = ROLES.get(name)
    if role is None:
        problem = f"{role_key} {str(message[role_key])[:40]!r} must be system, user, assistant or tool"
        raise _unusable(column, problem, "an unknown role")
    if name in CALLING_ROLES and (calls := _calls_in(content, column)):
        content, fields = "", {**fields, "tool_calls": calls}
    supervised = _is_supervised(message, column) or role != "assistant"  # marks of other turns have no effect
    if not fields:
        return Turn(role, content, supervised)
    check_unicode(fields, column)
    return Turn(role, content, supervised, fields)


def _key(message: Mapping[str, Any], *keys: str) -> str | None:
    """Return the first key with a value, otherwise the first key in the message."""
    present = [key for key in keys if key in message]
    with_value = [key for key in present if not is_null(message[key])]
    return next(iter(with_value + present), None)


def _content(value: Any, column: str) -> str:
    """Return the text of a turn; a list of parts is joined."""
    return "".join(_part(part, column) for part in value) if isinstance(value, list) else text_of(value, column)


def _part(part: Any, column: str) -> str:
    if not isinstance(part, dict):
        raise _unusable(column, f"must be text or a list of parts, found {described(part)}", "a list as text")
    check_no_media(part, media_columns(part), f"{column}.")
    kind = part.get("type")
    if "text" in part and (kind is None or kind in TEXT_PARTS):
        return text_of(part.get("text"), column)
    media = next((name for word, name in MEDIA_KINDS.items() if word in str(kind)), None)
    problem = f"a part of type {str(kind)[:40]!r} is not text" if kind not in TEXT_PARTS else "a part has no text"
    raise _unusable(column, problem, media or "content parts that are not text")


def _is_supervised(message: Mapping[str, Any], column: str) -> bool:
    """Return whether a turn is trained on, which `weight`, `train` or `loss` can prevent."""
    marks = {key: mark_of(message[key]) for key in ("weight", "train") if not is_null(message.get(key))}
    for key, mark in marks.items():
        if mark not in (0, 1):  # true for false and true as well
            problem = f"must be 0 or 1, false or true, found {described(mark)}"
            raise _unusable(f"{column}.{key}", problem, "a weight other than 0 and 1")
    return all(marks.values()) and mark_of(message.get("loss")) is not False  # `loss` may also be a number


def _fields(message: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the fields other than role and content that chat templates use; null values are ignored."""
    check_no_media(message, media_columns(message), f"{column}.")
    if message.get("refusal") and is_null(message.get("content")):
        raise _unusable(f"{column}.refusal", "a refusal without content is not an answer", "a refusal without content")
    if message.get("train_detail"):
        raise _unusable(f"{column}.train_detail", "parts of a turn cannot be excluded", "a turn to train on in part")
    texts = {key: text_of(message.get(key), f"{column}.{key}") for key in FIELDS}
    fields: dict[str, Any] = {key: text for key, text in texts.items() if text}
    reasoning = message.get("reasoning")
    if isinstance(reasoning, str) and reasoning:  # as in vLLM and OpenRouter
        fields = {"reasoning_content": reasoning, **fields}
    calls = _tool_calls(message, column)
    return {**fields, "tool_calls": calls} if calls else fields


def _tool_calls(message: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Parse the calls in `tool_calls` and in `function_call`, its older form; either may be JSON text."""
    calls, function_call = message.get("tool_calls"), message.get("function_call")
    if isinstance(calls, str) and calls:
        calls = parsed(calls, f"{column}.tool_calls")
    calls = [] if is_empty(calls) else _list(calls)
    if not is_empty(function_call):
        if isinstance(function_call, str):
            function_call = parsed(function_call, f"{column}.function_call")
        calls = [*calls, function_call]
    return [_call(call, f"{column}.tool_calls") for call in calls]


def _calls_in(text: str, column: str) -> list[dict[str, Any]]:
    """Parse the tool calls in the text of a `function_call` turn; empty if it is not JSON calls."""
    try:
        calls = _list(json.loads(text))
    except (ValueError, RecursionError):
        return []
    named = all(isinstance(call, dict) and call.get("name") for call in calls)
    return [_call(call, column) for call in calls] if named else []


def _call(call: Any, column: str) -> dict[str, Any]:
    """Convert a function call to the format that chat templates expect, with arguments as an object."""
    nested = isinstance(call, dict) and isinstance(call.get("function"), dict)
    function = call["function"] if nested else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _unusable(column, f"a call must have a name, found {described(call)}", "a tool call without a name")
    about = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    called = {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
    return {"type": "function", **without_nulls(about), "function": called}


def _arguments(arguments: Any) -> Any:
    """Parse the arguments of a call as an object; other text is returned unchanged."""
    if not isinstance(arguments, str):
        return without_nulls(arguments) or {}
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unusable(column: str, problem: str, kind: str) -> UnusableRow:
    return UnusableRow(f"column {column}", None, problem, "fix or remove the row", kind=kind)
