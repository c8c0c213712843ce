"""Column forms: how the columns of a row become a conversation.

`FORMS` is the only table of them: it drives reading, content ids (by row and by column), subset statistics and prompts.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from types import MappingProxyType
from typing import Any, NamedTuple

from lpsel.errors import UnusableRow, UserError

ID_BYTES = 16  # of a SHA-256: an id has 32 hexadecimal digits
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


class Turn(NamedTuple):
    """A turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: its text; empty where an assistant turn only calls tools.
        supervised: whether an assistant turn is trained on.
        fields: what else a chat template can use, as in the row: tool_calls, tool_call_id, name, reasoning_content.
    """

    role: str
    content: str
    supervised: bool = True
    fields: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Example:
    """A row in any form.

    Attributes:
        input: Alpaca's extra input, which belongs to the first user turn.
        tools: the tools that the assistant can call, as in the row, for the chat template.
    """

    turns: tuple[Turn, ...]
    input: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()

    def content_id(self) -> str:
        """32 hexadecimal digits of the SHA-256 of the content, the same on every machine and in every form."""
        return self.content_digest().hex()

    def content_digest(self) -> bytes:
        """The 16 bytes of `content_id`: of the JSON, without spaces, {"input":...,"turns":[[role,content],...]}.

        A turn with fields, or that is not trained on, has a third item, and tools are a third key, "tools".
        """
        turns = ",".join(
            [
                f"[{quoted(role)},{quoted(content)}]"
                if supervised and not fields
                else f"[{quoted(role)},{quoted(content)},{_json({**fields, 'supervised': supervised})}]"
                for role, content, supervised, fields in self.turns
            ]
        )
        tools = f',"tools":{_json(self.tools)}' if self.tools else ""
        text = f'{{"input":{quoted(self.input)},"turns":[{turns}]{tools}}}'
        return hashlib.sha256(text.encode()).digest()[:ID_BYTES]

    def instruction(self) -> str:
        """The content of the first user turn."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")

    def has_empty_answer(self) -> bool:
        """Whether the answers to train on are all empty or white space, and call no tool; False if there are none."""
        found = False
        for role, content, supervised, fields in self.turns:
            if role == "assistant" and supervised:
                if (content and not content.isspace()) or fields.get("tool_calls"):
                    return False
                found = True
        return found

    def characters(self) -> tuple[int, int]:
        """Number of characters of the prompt (everything but the assistant turns) and of the response."""
        prompt, response = len(self.input), 0
        for turn in self.turns:
            if turn.role == "assistant":
                response += len(turn.content)
            else:
                prompt += len(turn.content)
        return prompt, response

    def embedding_text(self) -> str:
        """The text to embed for clustering: `Instruction: {instruction} {input} Response: {output}`, fields stripped.

        As in the code released with the paper; the turns of one role in a longer conversation are joined by a space.
        """
        instruction, output = (
            " ".join(turn.content.strip() for turn in self.turns if turn.role == role) for role in ("user", "assistant")
        )
        return f"Instruction: {instruction} {self.input.strip()} Response: {output}"


class Field(NamedTuple):
    """A field of a form.

    Attributes:
        name: in `dataset.columns`.
        column: the column that holds it, unless `dataset.columns` names another one.
        role: of the turn that its text becomes; "input" for Alpaca's extra input; None for a list of turns.
        turn_keys: role and content in a list of turns, for a column that may hold one.
        optional: the column may be missing; null and empty text contribute nothing either.
    """

    name: str
    column: str
    role: str | None
    turn_keys: tuple[str, str] | None = None
    optional: bool = False


class Form(NamedTuple):
    """The fields of a row in the order of their turns; `strict` if optional columns must exist as well."""

    fields: tuple[Field, ...]
    strict: bool = False


MESSAGES = ("role", "content")
FORMS = (
    Form((Field("messages", "messages", None, MESSAGES),)),
    Form((Field("conversations", "conversations", None, ("from", "value")),)),
    Form((Field("prompt", "prompt", "user", MESSAGES), Field("completion", "completion", "assistant", MESSAGES))),
    Form(
        (
            Field("instruction", "instruction", "user"),
            Field("input", "input", "input", optional=True),
            Field("output", "output", "assistant"),
        )
    ),
    Form(  # Dolly
        (
            Field("instruction", "instruction", "user"),
            Field("input", "context", "input", optional=True),
            Field("output", "response", "assistant"),
        )
    ),
)
# The same forms without their answers, for prompts.
PROMPT_FORMS = tuple(Form(tuple(f for f in form.fields if f.role != "assistant")) for form in FORMS)


def find_form(columns: Collection[str], further: Sequence[Form] = ()) -> Form | None:
    """The first form of FORMS, then of `further`, whose required columns are all among `columns`."""
    return next(
        (form for form in (*FORMS, *further) if all(f.optional or f.column in columns for f in form.fields)), None
    )


def recognize(raw: Mapping[str, Any]) -> Form:
    """The form of a row.

    Raises:
        UserError: no form has these columns.
    """
    form = find_form(raw)
    if form is None:
        hint = "map your columns, as in 'dataset.columns={instruction: COLUMN, output: COLUMN}'"
        raise UserError(f"columns {', '.join(map(str, raw)) or 'none'}", None, "not a known form", hint)
    return form


def mapped_form(columns: Mapping[str, str]) -> Form:
    """The form for `dataset.columns`, our field -> the source's column.

    Raises:
        UserError: no form has these fields.
    """
    hint = "set it as in dataset.columns={instruction: question, output: answer}"
    if isinstance(columns, Mapping):
        for form in FORMS:
            if {f.name for f in form.fields if not f.optional} <= columns.keys() <= {f.name for f in form.fields}:
                mapped = (f._replace(column=columns[f.name]) for f in form.fields if f.name in columns)
                return Form(tuple(mapped), strict=True)
    problem = "must map instruction and output (and input), prompt and completion, messages, or conversations"
    raise UserError("dataset.columns", columns, problem, hint)


def to_example(raw: Mapping[str, Any], form: Form) -> Example:
    """A row as an example.

    Raises:
        UserError: a column is missing or holds something other than text or turns.
    """
    turns, extra = list[Turn](), ""
    for field in form.fields:
        if field.column not in raw:
            if field.optional and not form.strict:
                continue
            problem = f"missing in this row, which has {', '.join(map(str, raw)) or 'none'}"
            raise UserError(f"column {field.column}", None, problem, "see dataset.columns")
        value = raw[field.column]
        if field.turn_keys and (field.role is None or isinstance(value, list)):
            turns += _turns(value, field.column, *field.turn_keys)
        elif field.role == "input":
            extra = _text(value, field.column)
        elif (text := _text(value, field.column)) or not field.optional:
            turns.append(Turn(str(field.role), text))
    return Example(tuple(turns), extra)


def _turns(value: Any, column: str, role_key: str, content_key: str) -> list[Turn]:
    if not isinstance(value, list) or not value:
        problem = f"must be a list of turns, found {_described(value)}"
        raise UserError(f"column {column}", None, problem, "remove the row or map another column")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
            problem = f"every turn must have {role_key} and {content_key}"
            raise UserError(f"column {column}", None, problem, "fix or remove the row")
        role = turn[role_key]
        if not isinstance(role, str) or role.lower() not in ROLES:
            problem = f"{role_key} {str(role)[:40]!r} must be one of {', '.join(ROLES)}"
            raise UserError(f"column {column}", None, problem, "remove the row")
        turns.append(Turn(ROLES[role.lower()], _text(turn[content_key], f"{column}.{content_key}")))
    return turns


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def _text(value: Any, column: str) -> str:
    """The text of a field; null is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        problem = f"must be text, found {_described(value)}"
        kind = f"a {type(value).__name__} as text"
        raise UnusableRow(f"column {column}", None, problem, "convert it to a string", kind=kind)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            problem = "contains half of a surrogate pair, which is not valid Unicode"
            kind = "half a surrogate pair"
            raise UnusableRow(f"column {column}", None, problem, "fix the text", kind=kind) from None
    return value


def _described(value: Any) -> str:
    return "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:40]!r}"
