"""Column forms: how the columns of a row become a conversation.

`FORMS` is the only table of them: it drives reading, content ids (by row and by column), subset statistics and prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lpsel.data.column_guess import unknown_form
from lpsel.data.example import Example as Example
from lpsel.data.example import Turn as Turn
from lpsel.data.turns import check_no_media, media_columns, tools_of, turns_of
from lpsel.data.values import is_null, text_of
from lpsel.errors import UserError


class Field(NamedTuple):
    """A field of a form.

    Attributes:
        name: in `dataset.columns`.
        column: the column that holds it, unless `dataset.columns` names another one.
        role: of the turn that its text becomes; "input" for Alpaca's extra input; None for a list of turns.
        turns: whether the column may hold a list of turns.
        optional: the column may be missing; null and empty text contribute nothing either.
    """

    name: str
    column: str
    role: str | None
    turns: bool = False
    optional: bool = False


class Form(NamedTuple):
    """The fields of a row in the order of their turns.

    Attributes:
        strict: optional columns must exist as well.
        tools: columns of the row, for a conversation that may have tools.
        media: columns of the row that must be empty: images, audio, video.
    """

    fields: tuple[Field, ...]
    strict: bool = False
    tools: tuple[str, ...] = ()
    media: tuple[str, ...] = ()


FORMS = (
    Form((Field("messages", "messages", None, turns=True),)),
    Form((Field("conversations", "conversations", None, turns=True),)),
    Form((Field("prompt", "prompt", "user", turns=True), Field("completion", "completion", "assistant", turns=True))),
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


def forms_of(columns: Sequence[str], forms: Iterable[Form] | None = None) -> tuple[Form, ...]:
    """The forms, by default of FORMS, that a row with these columns can have, with its own spelling of the names.

    A form without `strict` leaves out the optional columns that the row does not have.
    """
    spelled = {name.lower(): name for name in reversed(columns)} | {name: name for name in columns}
    media = media_columns(columns)
    possible = []
    for form in FORMS if forms is None else forms:
        names = [spelled.get(field.column, spelled.get(field.column.lower())) for field in form.fields]
        pairs = list(zip(form.fields, names, strict=True))
        if all(name is not None or (field.optional and not form.strict) for field, name in pairs):
            fields = tuple(field._replace(column=name) for field, name in pairs if name is not None)
            with_turns = any(field.turns for field in fields)
            tools = tuple(spelled[name] for name in ("tools", "functions") if with_turns and name in spelled)
            possible.append(Form(fields, form.strict, tools, media))
    return tuple(possible)


def choose_form(forms: Sequence[Form], raw: Mapping[str, Any]) -> Form:
    """The first of the possible forms of a row in which no required column is empty, or else the first."""

    if len(forms) == 1:
        return forms[0]
    return next((form for form in forms if not _has_empty_column(form, raw)), forms[0])


def _has_empty_column(form: Form, raw: Mapping[str, Any]) -> bool:
    values = (raw[field.column] for field in form.fields if not field.optional)
    return any(is_null(value) or value == "" for value in values)


def recognize(raw: Mapping[str, Any]) -> Form:
    """The form of a row.

    Raises:
        UnusableRow: no form has these columns.
    """
    forms = forms_of(tuple(raw))
    if not forms:
        raise unknown_form(raw)
    return choose_form(forms, raw)


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


def is_conversation(raw: Mapping[str, Any], form: Form) -> bool:
    """Whether a row is a list of turns, rather than an instruction and its answer."""
    return any(_holds_turns(field, raw[field.column]) for field in form.fields)


def _holds_turns(field: Field, value: Any) -> bool:
    return field.turns and (field.role is None or isinstance(value, list))


def to_example(raw: Mapping[str, Any], form: Form) -> Example:
    """A row as an example.

    Args:
        form: of this row, from `recognize` or `forms_of`.

    Raises:
        UnusableRow: a column holds something other than text or turns.
    """
    turns, extra = list[Turn](), ""
    for _, column, role, may_be_turns, optional in form.fields:
        value = raw[column]
        if may_be_turns and (role is None or isinstance(value, list)):
            turns += turns_of(value, column)
        elif role == "input":
            extra = text_of(value, column)
        elif (text := text_of(value, column)) or not optional:
            turns.append(Turn(str(role), text))
    if form.media:
        check_no_media(raw, form.media)
    tools = tuple(tool for column in form.tools for tool in tools_of(raw[column], column)) if form.tools else ()
    return Example(tuple(turns), extra, tools)
