"""Column forms: how the columns of a row are converted to a conversation.

All forms are listed in `FORMS`, which reading, content ids (by row and by column), subset statistics and prompts use.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lpsel.data.column_guess import SYSTEMS, unknown_form
from lpsel.data.example import Example as Example
from lpsel.data.example import Turn as Turn
from lpsel.data.turns import check_no_media, media_columns, tools_of, turns_of, written_turns
from lpsel.data.values import is_empty, mark_of, text_of
from lpsel.errors import UnusableRow, UserError


class Field(NamedTuple):
    """A field of a form.

    Attributes:
        name: name of the field in `dataset.columns`.
        column: default column of the field, which `dataset.columns` can override.
        role: role of the turn that the text becomes; "input" for Alpaca's extra input; empty for a list of turns.
        turns: whether the column may contain a list of turns.
        optional: whether the column may be missing, null or empty.
        fallback: column to use if `column` is missing, since data sets mix the column names of Alpaca and Dolly.
    """

    name: str
    column: str
    role: str
    turns: bool = False
    optional: bool = False
    fallback: str | None = None


class Form(NamedTuple):
    """The fields of a row in the order of their turns.

    Attributes:
        strict: whether optional columns must exist as well.
        tools: columns with the tools of a conversation.
        media: columns that must be empty: images, audio, video.
        exclusions: columns that may exclude the row from training or make it unusable (`_is_excluded`).
    """

    fields: tuple[Field, ...]
    strict: bool = False
    tools: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    exclusions: tuple[str, ...] = ()


SYSTEM = Field("system", "system", "system", optional=True)
MESSAGES = Field("messages", "messages", "", turns=True)
CONVERSATIONS = Field("conversations", "conversations", "", turns=True)
PROMPT = Field("prompt", "prompt", "user", turns=True)
COMPLETION = Field("completion", "completion", "assistant", turns=True)
INSTRUCTION = Field("instruction", "instruction", "user")
INPUT = Field("input", "input", "input", optional=True, fallback="context")
OUTPUT = Field("output", "output", "assistant")
CONTEXT = INPUT._replace(column="context", fallback="input")  # in Dolly
RESPONSE = OUTPUT._replace(column="response")
FORMS = (
    Form((SYSTEM, MESSAGES)),
    Form((SYSTEM, CONVERSATIONS)),
    Form((SYSTEM, PROMPT, COMPLETION)),
    Form((SYSTEM, INSTRUCTION, INPUT, OUTPUT)),
    Form((SYSTEM, INSTRUCTION, CONTEXT, RESPONSE)),
)
# The same forms without their answers, for prompts.
PROMPT_FORMS = tuple(Form(tuple(field for field in form.fields if field.role != "assistant")) for form in FORMS)


def forms_of(columns: Sequence[str], forms: Iterable[Form] | None = None) -> tuple[Form, ...]:
    """Return the forms (of FORMS by default) that match these columns, with column names as spelled in the row.

    Missing optional columns are removed from a form unless it is `strict`.
    """
    # Exact names take precedence, then the first column with the name in other letters.
    spelled = {name.strip().lower(): name for name in reversed(columns)} | {name: name for name in columns}
    system = next((name for name in SYSTEMS if name in spelled), None)
    if system is not None:
        spelled.setdefault("system", spelled[system])
    media = media_columns(columns)
    matches = (_match(form, spelled, media) for form in (FORMS if forms is None else forms))
    return tuple(form for form in matches if form is not None)


def _match(form: Form, spelled: dict[str, str], media: tuple[str, ...]) -> Form | None:
    """Return the form with the columns of a row, `spelled` by name; None if a column is missing."""
    fields = []
    for field in form.fields:
        names = (field.column, field.column.lower(), field.fallback)
        column = next((spelled[name] for name in names if name in spelled), None)
        if column is not None:
            fields.append(field._replace(column=column))
        elif form.strict or not field.optional:
            return None
    tools = ["tools", "functions"] if any(field.turns for field in fields) else ["tools"]
    exclusions = ["history", "weight", "train", "kto_tag"]
    if any(field.name in ("messages", "conversations", "completion") for field in fields):
        exclusions += ["label", "chosen"]
    return Form(
        tuple(fields),
        form.strict,
        tools=tuple(spelled[name] for name in tools if name in spelled),
        media=media,
        exclusions=tuple(spelled[name] for name in exclusions if name in spelled),
    )


def choose_form(
    forms: Sequence[Form], raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None, option: str = "dataset"
) -> Form:
    """Return the first form of a row without an empty required column, or the first form if there is none.

    Args:
        mapping: `dataset.columns`, for the error message.
        option: the option that the rows come from, for the error message.

    Raises:
        UnusableRow: `forms` is empty.
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
    """Return the form for `dataset.columns`, a mapping from our fields to columns, whose names may look like numbers.

    Raises:
        UserError: no form has these fields.
    """
    hint = "set it as in dataset.columns={instruction: question, output: answer}"
    if isinstance(columns, Mapping) and None not in columns.values():
        for form in FORMS:
            required = {field.name for field in form.fields if not field.optional}
            if required <= columns.keys() <= {field.name for field in form.fields}:
                fields = [
                    field._replace(column=str(columns[field.name]), fallback=None)
                    for field in form.fields
                    if field.name in columns
                ]
                return Form(tuple(fields), strict=True)
    problem = "must map instruction and output (and input), prompt and completion, messages, or conversations"
    raise UserError("dataset.columns", columns, problem, hint)


def is_conversation(raw: Mapping[str, Any], form: Form) -> bool:
    """Return whether a row is a list of turns, rather than an instruction and its answer."""
    for field in form.fields:
        if not field.role:  # messages or conversations
            return True
        value = raw[field.column] if field.turns else None
        if field.role == "user":
            value = written_turns(value, field.column)
        if isinstance(value, list):
            return True
    return False


def to_example(raw: Mapping[str, Any], form: Form) -> Example:
    """Convert a row to an example.

    Args:
        form: the form of this row, from `choose_form`.

    Raises:
        UnusableRow: a column contains something other than text or turns.
    """
    fields, _, tool_columns, media, exclusions = form
    turns: list[Turn] = []  # list[Turn]() takes longer than parsing a turn
    extra, prompt_turns, prompt_is_json = "", 0, False
    for _, column, role, may_be_turns, optional, _ in fields:
        value = raw[column]
        if role == "assistant":
            prompt_turns = len(turns)
        # A list of turns may be JSON text, as in CSV; a completion only if the prompt is, too.
        if may_be_turns and type(value) is str and (prompt_turns == 0 or prompt_is_json):
            value = written_turns(value, column)
            prompt_is_json = value is not raw[column]
        if may_be_turns and (not role or isinstance(value, list)):
            parsed = turns_of(value, column)
            turns = _join_turns(turns, parsed) if turns else parsed
            continue
        text = value if type(value) is str and value.isascii() else text_of(value, column)  # avoids a function call
        if role == "input":
            extra = text
        elif text or not optional:
            turns.append(Turn(role, text))
    if media:
        check_no_media(raw, media)
    if prompt_turns > 1:
        turns = _context(turns[:prompt_turns]) + turns[prompt_turns:]  # answers in the prompt are not supervised
    if exclusions and _is_excluded(raw, exclusions, has_completion=prompt_turns > 0):
        turns = _context(turns)
    tools = tuple(tool for column in tool_columns for tool in tools_of(raw[column], column)) if tool_columns else ()
    return Example(tuple(turns), extra, tools)


def _join_turns(turns: list[Turn], following: list[Turn]) -> list[Turn]:
    """Join the turns of two columns; the second may repeat all or the last of the turns in the first."""
    for n in range(min(len(turns), len(following)), 0, -1):
        if turns[-n:] == following[:n] and following[n - 1].role != "assistant":
            return turns + following[n:]
    return turns + following


def _context(turns: list[Turn]) -> list[Turn]:
    """Return the turns, all of them unsupervised."""
    return [turn._replace(supervised=turn.role != "assistant") for turn in turns]


def _is_excluded(raw: Mapping[str, Any], columns: Iterable[str], has_completion: bool) -> bool:
    """Return whether `weight: 0` or `train: false` excludes a row from training.

    Args:
        has_completion: whether `label: 0` is TRL's mark of an undesirable completion; next to messages, only false is.

    Raises:
        UnusableRow: the row has earlier turns or a preferred answer in columns of their own (LLaMA-Factory), or an
            answer labeled as undesirable (KTO).
    """
    values = {column.strip().lower(): mark_of(raw[column]) for column in columns}
    if not is_empty(values.get("history")):
        problem, hint = "has earlier turns", "write the conversation as messages"
        raise UnusableRow("column history", None, problem, hint, kind="earlier turns in a column")
    if isinstance(values.get("chosen"), dict):
        problem, hint = "is the last answer of the conversation", "add it to the conversation as a turn"
        raise UnusableRow("column chosen", None, problem, hint, kind="an answer outside the conversation")
    for column in ("label", "kto_tag"):
        mark = values.get(column)
        if mark is False or (mark == 0 and (has_completion or column == "kto_tag")):
            problem, hint = f"{text_of(mark, column)} marks an undesirable answer", "remove the row or the column"
            raise UnusableRow(f"column {column}", None, problem, hint, kind="an answer that is not wanted")
    return values.get("weight") == 0 or values.get("train") == 0
