"""The error for a row with unknown columns, which suggests a setting for `dataset.columns`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lpsel.data.turns import PLAIN_ROLES
from lpsel.errors import UnusableRow
from lpsel.redact import printable

SYSTEMS = ("system", "system_prompt", "system_message")
PROMPTS = (
    "prompt", "instruction", "question", "query", "problem", "request", "user", "human", "task", "input", "inputs",
)  # fmt: skip
ANSWERS = (
    "completion", "output", "answer", "response", "chosen", "reply", "solution", "target", "targets",
    "assistant", "gpt",
)  # fmt: skip
CONTEXTS = ("input", "context", "passage", "document")


def unknown_form(
    raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None, option: str = "dataset"
) -> UnusableRow:
    """Return the error for a row whose columns match no form, or that lacks a column named in `dataset.columns`."""
    if mapping:
        missing = next((column for column in map(str, mapping.values()) if column not in raw), "")
        problem = f"missing in this row, which has {_names(raw)}"
        return UnusableRow(f"column {missing}", None, problem, f"see {option}.columns", kind="a missing column")
    problem = "not a known form"
    hint = f"map your columns, as in '{option}.columns={{instruction: COLUMN, output: COLUMN}}'"
    guess = _guess(raw)
    if guess:
        pairs = ", ".join(f"{field}: {_quoted(column)}" for field, column in guess.items())
        hint = f"if that is their meaning, set '{option}.columns={{{pairs}}}'"
    elif nested := [name for name, value in raw.items() if isinstance(value, dict)]:
        hint = f"write the prompt and the answer as columns, not in an object such as {printable(nested[0])}"
    elif len(raw) == 1 and _named(PROMPTS, list(raw)) is None:
        problem = "the prompt and the answer must be separate"
        hint = "write them as two columns, such as prompt and completion, or as messages"
    return UnusableRow(f"columns {_names(raw)}", None, problem, hint, kind="an unknown form")


def _names(raw: Mapping[str, Any]) -> str:
    return printable(", ".join(raw)) or "none"


def _guess(raw: Mapping[str, Any]) -> dict[str, str]:
    """Guess a mapping from our fields to columns; empty if there is no good guess."""
    columns = [name for name, value in raw.items() if "reject" not in name.lower() and not isinstance(value, dict)]
    for column in columns:
        if _is_conversation(raw[column]):
            return {"messages": column}
    prompt = _named(PROMPTS, columns)
    answer = _named(ANSWERS, [column for column in columns if column != prompt])
    if prompt is None or answer is None:
        return {}
    context = _named(CONTEXTS, [column for column in columns if column not in (prompt, answer)])
    system = [column for column in columns if column.lower() in SYSTEMS]
    guess = {"system": system[0]} if system else {}
    if context is None:
        return {**guess, "prompt": prompt, "completion": answer}
    return {**guess, "instruction": prompt, "input": context, "output": answer}


def _named(names: Iterable[str], columns: Sequence[str]) -> str | None:
    """Return the first column with one of the names, or else with one as part of its name, such as `best_answer`."""
    exact = [column for name in names for column in columns if column.lower() == name]
    partial = [column for name in names for column in columns if name in re.split(r"[^a-z]+", column.lower())]
    return next(iter(exact + partial), None)


def _is_conversation(value: Any) -> bool:
    """Return whether a value is a list of turns between a user and an assistant."""
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    return {"user", "assistant"} <= {PLAIN_ROLES.get(str(turn.get("role") or turn.get("from"))) for turn in turns}


def _quoted(column: str) -> str:
    return column if re.fullmatch(r"[A-Za-z_][\w.-]*", column) else f'"{column}"'
