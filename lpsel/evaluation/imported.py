"""Import verdicts from files: judgements.parquet, other tables, and the annotation lists of AlpacaEval."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.data.formats import ENDINGS, reader_of, valid_rows
from lpsel.errors import UserError
from lpsel.evaluation.judgements import CODES, Row, Verdicts, combined, group
from lpsel.judging.judge import LOSS, TIE, WIN
from lpsel.storage import utf8

log = logging.getLogger(__name__)

WORDS = {"win": WIN, "model": WIN, "tie": TIE, "loss": LOSS, "baseline": LOSS}
TEXTS = {  # field -> our and AlpacaEval's names of the column
    "id": ("id", "instruction"),
    "order": ("order",),
    "model": ("model", "generator_2"),
    "baseline": ("baseline", "generator_1"),
    "judge": ("judge", "annotator"),
    "category": ("category", "dataset"),
    "prompt_set": ("prompt_set",),
    "text": ("text",),  # a digest of the prompt's text
    "failure": ("failure",),
}
OPTIONAL = ("category", "prompt_set", "text", "failure")  # None where empty
ANSWERS = {"model_chars": "output_2", "baseline_chars": "output_1"}


def read_judgements(files: str | Path | Sequence[str | Path]) -> list[Verdicts]:
    """Read verdicts and group them by model and judge, in order of first occurrence.

    Invalid verdicts count as failed; a warning shows the first of them. If no row of a file has an id or instruction,
    each row is a separate prompt. Rows without a model, judge or baseline get the one of the other rows. If hardly any
    prompt was judged in both orders, each verdict counts by itself. Votes that were replaced by a later one (`counted`
    is false) are ignored.

    Args:
        files: .json or .jsonl with objects as in AlpacaEval's annotations.json; or a table (.parquet, .csv) with `id`,
            `preference` or `verdict` (win, tie, loss), and optionally `order`, `model`, `baseline`, `judge`,
            `category`, `prompt_set`, `model_chars`, `baseline_chars`. Files may be compressed, like datasets.

    Raises:
        UserError: a file does not exist or has no valid verdict; a judge has two verdicts on the same answers; no
            prompt of a model has a verdict in every order; or there are two baselines.
    """
    paths = [Path(str(file)).expanduser() for file in (files if isinstance(files, list | tuple) else [files])]
    if not paths:
        raise UserError("judgements", "[]", "contains no file", "set judgements=FILE or judgements=[FILE,FILE]")
    where = ",".join(map(str, paths))
    rows = [row for path in paths for row in _read(path)]
    for field in ("model", "judge", "baseline"):
        _fill_in(field, rows, where)
    baselines = list(dict.fromkeys(row["baseline"] for row in rows))
    if len(baselines) > 1:
        problem = f"contains two baselines, {baselines[0]} and {baselines[1]}"
        raise UserError("judgements", where, problem, "use one file per baseline")
    verdicts = group(rows, where)
    for of_model in verdicts:
        if np.isnan(combined(of_model.preference_NO)).all():
            model = of_model.model or "the model"
            problem = f"none of {len(of_model.ids):,} prompts has a verdict on {model} in both orders"
            raise UserError("judgements", where, problem, "use a file with complete verdicts")
    return verdicts


def _read(path: Path) -> list[Row]:
    reader = reader_of(str(path))
    if reader is None:
        raise UserError("judgements", path, "unknown file extension", f"use {ENDINGS}")
    if not path.is_file():
        raise UserError("judgements", path, "no such file", "check the name and the current folder")
    numbered = [
        (number, row)
        for number, row in valid_rows(reader.read(path, "judgements"))
        if _boolean(row, "counted") is not False
    ]
    anonymous = not any(_text(row, *TEXTS["id"]) or row.get("order") for _, row in numbered)
    rows: list[Row] = []
    values: list[tuple[str, Any]] = []  # column and value of each verdict
    for i, (number, row) in enumerate(numbered, start=1):
        location = f"{path}, {reader.unit} {number}"
        column = next((name for name in ("preference", "verdict") if name in row), None)
        if column is None:
            columns = ", ".join(row)[:60] or "nothing"
            raise UserError(location, None, f"no column preference or verdict, only {columns}", CODES)
        values.append((column, row[column]))
        rows.append(_without_preference(row, str(i) if anonymous else "", location))
    for row, preference in zip(rows, _preferences(values, path), strict=True):
        row["preference"] = preference
    if all(row["preference"] is None for row in rows):
        raise UserError("judgements", path, f"{len(rows)} rows, none with a verdict", "use a file with verdicts")
    return rows


def _without_preference(row: Row, new_id: str, location: str) -> Row:
    """Convert a row of the file to a verdict without its preference; `new_id`, if not empty, replaces the row's id."""
    verdict: Row = {field: _text(row, *columns) for field, columns in TEXTS.items()}
    verdict |= {field: verdict[field] or None for field in OPTIONAL}
    verdict["id"] = new_id or verdict["id"]
    if not verdict["id"]:
        raise UserError(location, None, "no id and no instruction", "add one of them to every row")
    verdict |= {field: _chars(row, field, output, location) for field, output in ANSWERS.items()}
    model_answer, baseline_answer = (row.get(output) for output in ANSWERS.values())
    if isinstance(model_answer, str) and isinstance(baseline_answer, str):
        verdict["equal"] = model_answer == baseline_answer
    else:
        verdict["equal"] = bool(_boolean(row, "equal"))
    return verdict


def _preferences(values: Sequence[tuple[str, Any]], path: Path) -> list[float | None]:
    """Return the preference of every row, None if missing; raise a UserError if there are several and none is valid.

    Fractions below 1 imply that the file uses a scale from 0 (the baseline) to 1 (the model).
    """
    numbers = [_number(value) for _, value in values]
    finite = {number for number in numbers if math.isfinite(number)}
    if any(0 < number < 1 for number in finite) and max(finite) <= 1:
        log.info("%s: preferences from 0 (the baseline) to 1 (the model)", path)
        numbers = [number + 1 for number in numbers]
    elif finite == {0, 1}:
        log.warning("%s: contains only 0 (read as tie) and 1 (read as baseline win). %s", path, CODES.capitalize())
    invalid = [i for i, number in enumerate(numbers) if not math.isnan(number) and not _is_preference(number)]
    if invalid:
        column, value = values[invalid[0]]
        first = f"starting with {column} {value!r:.60} in row {invalid[0] + 1}"
        if len(invalid) == len(values):
            raise UserError("judgements", path, f"no valid verdict, {first}", CODES)
        log.warning("%s: %d invalid verdicts count as failed, %s", path, len(invalid), first)
    return [number if _is_preference(number) else None for number in numbers]


def _is_preference(number: float) -> bool:
    """Whether a number codes a preference, see `CODES`; NaN does not."""
    return number == 0 or LOSS <= number <= WIN


def _number(value: Any) -> float:
    """Parse a number, or win, tie or loss; NaN for null and "", infinity for anything else."""
    if value is None or value == "":
        return math.nan
    try:
        return math.inf if isinstance(value, bool) else float(WORDS.get(str(value).strip().lower(), value))
    except (ValueError, TypeError, OverflowError):  # also of a list, a date or an integer of hundreds of digits
        return math.inf


def _boolean(row: Row, column: str) -> bool | None:
    """Parse true or false, which may be text; None for anything else."""
    return {"true": True, "false": False}.get(str(row.get(column)).lower())


def _text(row: Row, *columns: str) -> str:
    """Return the value of the first column that is not empty."""
    return next((utf8(str(row[name])) for name in columns if row.get(name) not in (None, "")), "")


def _chars(row: Row, column: str, output: str, location: str) -> float | None:
    """Return the length of an answer in characters, from its text or the column."""
    if isinstance(row.get(output), str):
        return float(len(row[output]))
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        length = -1.0
    if length < 0 or math.isinf(length):
        raise UserError(column, value, "must be a number of characters", "leave it empty if unknown", location)
    return length


def _fill_in(field: str, rows: list[Row], where: str) -> None:
    """Fill in a field in rows that leave it out, if all other rows have the same value."""
    values = list(dict.fromkeys(row[field] for row in rows if row[field]))
    rows_without = [row for row in rows if not row[field]]
    if rows_without and len(values) > 1:
        problem = f"some rows have no {field}, and others have {values[0]} or {values[1]}"
        raise UserError("judgements", where, problem, f"add the {field} to every row")
    if values:
        for row in rows_without:
            row[field] = values[0]
