"""Column forms: how the columns of a row become a conversation.

`FORMS` is the only table of them: it drives reading, content ids (by row and by column), subset statistics and prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lpsel.data.column_guess import SYSTEMS, unknown_form
from lpsel.data.example import Example as Example
from lpsel.data.example import Turn as Turn
from lpsel.data.turns import check_no_media, media_columns, tools_of, turns_of
from lpsel.data.values import is_empty, mark_of, text_of
from lpsel.errors import UnusableRow, UserError


class Field(NamedTuple):
    """A field of a form.

    Attributes:
        name: in `dataset.columns`.
        column: the column that holds it, unless `dataset.columns` names another one.
        role: of the turn that its text becomes; "input" for Alpaca's extra input; empty for a list of turns.
        turns: whether the column may hold a list of turns.
        optional: the column may be missing; null and empty text contribute nothing either.
        instead: the column that holds it where `column` is missing, since people mix the names of Alpaca and Dolly.
    """

    name: str
    column: str
    role: str
    turns: bool = False
    optional: bool = False
    instead: str | None = None


class Form(NamedTuple):
    """The fields of a row in the order of their turns.

    Attributes:
        strict: optional columns must exist as well.
        tools: columns of the row, for a conversation that may have tools.
        media: columns of the row that must be empty: images, audio, video.
        others: columns of the row that may say that it is more than its fields or not to train on (`_is_excluded`).
    """

    fields: tuple[Field, ...]
    strict: bool = False
    tools: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


SYSTEM = Field("system", "system", "system", optional=True)
FORMS = (
    Form((SYSTEM, Field("messages", "messages", "", turns=True))),
    Form((SYSTEM, Field("conversations", "conversations", "", turns=True))),
    Form(
        (
            SYSTEM,
            Field("prompt", "prompt", "user", turns=True),
            Field("completion", "completion", "assistant", turns=True),
        )
    ),
    Form(
        (
            SYSTEM,
            Field("instruction", "instruction", "user"),
            Field("input", "input", "input", optional=True, instead="context"),
            Field("output", "output", "assistant"),
        )
    ),
    Form(  # Dolly
        (
            SYSTEM,
            Field("instruction", "instruction", "user"),
            Field("input", "context", "input", optional=True, instead="input"),
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
    spelled = {name.strip().lower(): name for name in reversed(columns)} | {name: name for name in columns}
    if system := next((name for name in SYSTEMS if name in spelled), None):
        spelled.setdefault("system", spelled[system])
    media = media_columns(columns)
    possible = []
    for form in FORMS if forms is None else forms:
        wanted = [(field.column, field.column.lower(), field.instead) for field in form.fields]
        names = [next((spelled[name] for name in each if name in spelled), None) for each in wanted]
        pairs = list(zip(form.fields, names, strict=True))
        if all(name is not None or (field.optional and not form.strict) for field, name in pairs):
            fields = tuple(field._replace(column=name) for field, name in pairs if name is not None)
            with_turns = any(field.turns for field in fields)
            names_of_tools = ("tools", "functions") if with_turns else ("tools",)
            tools = tuple(spelled[name] for name in names_of_tools if name in spelled)
            may_be_unwanted = any(field.name == "completion" for field in fields)
            telling = ("history", "weight", "train", *(["label"] if may_be_unwanted else []))
            others = tuple(spelled[name] for name in telling if name in spelled)
            possible.append(Form(fields, form.strict, tools, media, others))
    return tuple(possible)


def choose_form(
    forms: Sequence[Form], raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None, option: str = "dataset"
) -> Form:
    """The first of the possible forms of a row in which no required column is empty, or else the first.

    Args:
        mapping: `dataset.columns`, for the error.
        option: the option whose rows these are, for the error.

    Raises:
        UnusableRow: there are none.
    """
    if not forms:
        raise unknown_form(raw, mapping, option)
    if len(forms) > 1:
        for form in forms:
            values = [raw[field.column] for field in form.fields if not field.optional]
            if not any(map(is_empty, values)):
                return form
    return forms[0]


def mapped_form(columns: Mapping[str, str]) -> Form:
    """The form for `dataset.columns`, our field -> the source's column, whose name may look like a number.

    Raises:
        UserError: no form has these fields.
    """
    hint = "set it as in dataset.columns={instruction: question, output: answer}"
    if isinstance(columns, Mapping) and None not in columns.values():
        for form in FORMS:
            if {f.name for f in form.fields if not f.optional} <= columns.keys() <= {f.name for f in form.fields}:
                chosen = [f for f in form.fields if f.name in columns]
                return Form(tuple(f._replace(column=str(columns[f.name]), instead=None) for f in chosen), strict=True)
    problem = "must map instruction and output (and input), prompt and completion, messages, or conversations"
    raise UserError("dataset.columns", columns, problem, hint)


def is_conversation(raw: Mapping[str, Any], form: Form) -> bool:
    """Whether a row is a list of turns, rather than an instruction and its answer."""
    return any(field.turns and (not field.role or isinstance(raw[field.column], list)) for field in form.fields)


def to_example(raw: Mapping[str, Any], form: Form) -> Example:
    """A row as an example.

    Args:
        form: of this row, from `choose_form`.

    Raises:
        UnusableRow: a column holds something other than text or turns.
    """
    fields, _, tool_columns, media, others = form
    turns: list[Turn] = []  # list[Turn]() takes longer than a turn
    extra, asked = "", 0
    for _, column, role, may_be_turns, optional, _ in fields:
        value = raw[column]
        if role == "assistant":
            asked = len(turns)
        if may_be_turns and (not role or isinstance(value, list)):
            found = turns_of(value, column)
            turns = _joined(turns, found) if turns else found
            continue
        text = value if type(value) is str and value.isascii() else text_of(value, column)  # a call takes longer
        if role == "input":
            extra = text
        elif text or not optional:
            turns.append(Turn(role, text))
    if media:
        check_no_media(raw, media)
    if asked > 1:
        turns = _context(turns[:asked]) + turns[asked:]  # answers in a prompt
    if others and _is_excluded(raw, others):
        turns = _context(turns)
    tools = tuple(tool for column in tool_columns for tool in tools_of(raw[column], column)) if tool_columns else ()
    return Example(tuple(turns), extra, tools)


def _joined(turns: list[Turn], found: list[Turn]) -> list[Turn]:
    """The turns of two columns, of which the second may begin with the question and what precedes it, or a part."""
    lengths = range(min(len(turns), len(found)), 0, -1)
    repeated = (n for n in lengths if turns[-n:] == found[:n] and found[n - 1].role != "assistant")
    return turns + found[next(repeated, 0) :]


def _context(turns: list[Turn]) -> list[Turn]:
    """The turns, none of them to train on."""
    return [turn._replace(supervised=turn.role != "assistant") for turn in turns]


def _is_excluded(raw: Mapping[str, Any], columns: Iterable[str]) -> bool:
    """Whether `weight: 0` or `train: false` excludes a row from training.

    Raises:
        UnusableRow: earlier turns (LLaMA-Factory), or an answer labeled as undesirable (KTO).
    """
    values = {column.strip().lower(): mark_of(raw[column]) for column in columns}
    if not is_empty(values.get("history")):
        problem, hint = "has earlier turns", "write the conversation as messages"
        raise UnusableRow("column history", None, problem, hint, kind="earlier turns in a column")
    if values.get("label") is False:
        problem, hint = "false marks an answer that is not wanted", "remove the row or the column"
        raise UnusableRow("column label", None, problem, hint, kind="an answer that is not wanted")
    return values.get("weight") == 0 or values.get("train") == 0
