"""Files of verdicts: judgements.parquet, other tables, and lists as AlpacaEval writes them."""

# N prompts, O orders in which the two answers were shown

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError
from lpsel.evaluation.preferences import CODES, as_preferences, combined
from lpsel.judging.judge import LOSS, TIE, WIN
from lpsel.storage import finite, utf8, write_atomically

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements.parquet"
VERDICTS = {1: "win", 0: "tie", -1: "loss"}
WORDS = {"win": WIN, "model": WIN, "tie": TIE, "loss": LOSS, "baseline": LOSS}
TEXTS = {  # field: columns of a file, ours and AlpacaEval's
    "id": ("id", "instruction"),
    "order": ("order",),
    "model": ("model", "generator_2"),
    "baseline": ("baseline", "generator_1"),
    "judge": ("judge", "annotator"),
    "category": ("category", "dataset"),
    "prompt_set": ("prompt_set",),
}
ANSWERS = {"model_chars": "output_2", "baseline_chars": "output_1"}
FLOATS = ("preference", *ANSWERS)  # columns of judgements.parquet; all others are strings
INTEGERS = ("prompt_tokens", "completion_tokens", "attempts")

Row = dict[str, Any]  # a verdict: the fields TEXTS and ANSWERS, and `preference`


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of one judge on one model; names are "" if unknown."""

    model: str
    judge: str
    baseline: str
    ids: list[str]  # of the prompts
    preference_NO: NDArray[np.float64]  # see `lpsel.evaluation.preferences`
    model_chars_N: NDArray[np.float64]  # lengths of the answers, NaN if unknown
    baseline_chars_N: NDArray[np.float64]
    category_N: list[str | None]
    prompt_set_N: list[str | None]
    rows: list[Row]


def read_judgements(files: str | Path | Sequence[str | Path]) -> list[Verdicts]:
    """Read verdicts and group them by model and judge, in order of first occurrence.

    A verdict that is not a preference counts as not judged, with a warning that contains the first. If no row of a file
    has an id or instruction, every row is a prompt of its own. A model, judge or baseline that some rows leave out is
    the one of the other rows.

    Args:
        files: .json or .jsonl with objects like those of AlpacaEval's annotations.json; or a table (.parquet, .csv)
            with `id`, `preference` or `verdict` (win, tie, loss), and optionally `order`, `model`, `baseline`, `judge`,
            `category`, `prompt_set`, `model_chars`, `baseline_chars`. May be compressed like datasets.

    Raises:
        UserError: a file does not exist or has no valid verdict; two verdicts of a judge on the same answers; two
            baselines.
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
    return group(rows, where)


def group(rows: Iterable[Row], where: str = "") -> list[Verdicts]:
    """The verdicts of each judge on each model, read from the files `where`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["judge"]), []).append(row)
    return [_collect(own, where) for own in groups.values()]


def aligned(several: Sequence[Verdicts]) -> dict[str, NDArray[np.float64]]:
    """By judge, a preference for every prompt that any of them judged on the same model; NaN without a verdict."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for one in several for prompt in one.ids))}
    by_judge = {}
    for one in several:
        by_judge[one.judge] = np.full(len(index), np.nan)
        by_judge[one.judge][[index[prompt] for prompt in one.ids]] = combined(one.preference_NO)
    return by_judge


def write_judgements(path: Path, verdicts: Sequence[Verdicts]) -> None:
    """Write a Parquet table that `read_judgements` reads, with `verdict` (win, tie or loss) of every row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for each in verdicts for row in each.rows]
    sign_N = np.sign(as_preferences([row["preference"] for row in rows]) - TIE)
    words = [{**row, "verdict": VERDICTS.get(sign)} for row, sign in zip(rows, sign_N, strict=True)]
    types = dict.fromkeys(FLOATS, pa.float64()) | dict.fromkeys(INTEGERS, pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in words[0]])
    table = pa.Table.from_pylist(finite(words), schema=schema)
    write_atomically(path, lambda file: pq.write_table(table, file))


def _read(path: Path) -> list[Row]:
    reader = reader_of(str(path))
    if reader is None:
        raise UserError("judgements", path, "unknown file extension", f"use {ENDINGS}")
    if not path.is_file():
        raise UserError("judgements", path, "no such file", "check the name and the current folder")
    numbered = list(reader.read(path, "judgements"))
    anonymous = not any(_text(row, *TEXTS["id"]) or row.get("order") for _, row in numbered)
    rows: list[Row] = []
    invalid: list[str] = []
    for i, (number, row) in enumerate(numbered, start=1):
        location = f"{path}, {reader.unit} {number}"
        column = next((name for name in ("preference", "verdict") if name in row), None)
        if column is None:
            columns = ", ".join(row)[:60] or "nothing"
            raise UserError(location, None, f"no column preference or verdict, only {columns}", CODES)
        verdict: Row = {field: _text(row, *columns) for field, columns in TEXTS.items()}
        verdict |= {field: verdict[field] or None for field in ("category", "prompt_set")}
        if anonymous:
            verdict["id"] = str(i)
        if not verdict["id"]:
            raise UserError(location, None, "no id and no instruction", "add one of them to every row")
        try:
            verdict["preference"] = _preference(row[column])
        except (ValueError, TypeError, OverflowError):  # also of a list, a date or an integer of hundreds of digits
            verdict["preference"] = None
            invalid.append(f"{column} {row[column]!r:.60} in row {i}")
        rows.append(verdict | {field: _chars(row, field, output, location) for field, output in ANSWERS.items()})
    if invalid and len(invalid) == len(rows):
        raise UserError("judgements", path, f"no valid verdict, starting with {invalid[0]}", CODES)
    if all(row["preference"] is None for row in rows):
        raise UserError("judgements", path, f"{len(rows)} rows, none with a verdict", "use a file with verdicts")
    if invalid:
        log.warning("%s: %d invalid verdicts count as failed, starting with %s", path, len(invalid), invalid[0])
    return rows


def _text(row: Row, *columns: str) -> str:
    """The first of the columns that is not empty."""
    return next((utf8(str(row[name])) for name in columns if row.get(name) not in (None, "")), "")


def _preference(value: Any) -> float | None:
    """A preference from a number, its text, or win, tie or loss; None for null, NaN and ""."""
    if value is None or value == "":
        return None
    number = float(WORDS.get(str(value).strip().lower(), value))
    if isinstance(value, bool) or not (math.isnan(number) or number == 0 or LOSS <= number <= WIN):
        raise ValueError(value)
    return None if math.isnan(number) else number


def _chars(row: Row, column: str, output: str, location: str) -> float | None:
    """Length of an answer: of its text, or from the column."""
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
    """Add the only name of a field to rows that leave it out."""
    known = list(dict.fromkeys(row[field] for row in rows if row[field]))
    unnamed = [row for row in rows if not row[field]]
    if unnamed and len(known) > 1:
        problem = f"rows without a {field} next to rows of {known[0]} and {known[1]}"
        raise UserError("judgements", where, problem, f"add the {field} to every row")
    for row in unnamed if known else ():
        row[field] = known[0]


def _collect(rows: list[Row], where: str) -> Verdicts:
    """The verdicts of one judge on one model as arrays."""
    model, judge, baseline = (rows[0][field] for field in ("model", "judge", "baseline"))
    orders = list(dict.fromkeys(row["order"] for row in rows))
    if len(orders) > 2:
        problem = f"{len(orders)} values in column order ({', '.join(orders)})"
        raise UserError("judgements", where, problem, "use one value for each of the two orders")
    first: dict[str, Row] = {}
    preference: dict[tuple[str, str], float | None] = {}
    for row in rows:
        first.setdefault(row["id"], row)
        question = row["id"], row["order"]
        if question in preference:
            both = f"two verdicts by {judge or 'the judge'} on {model or 'the model'}"
            problem = f"{both} for the same prompt, {row['id'][:60]!r}"
            raise UserError("judgements", where, problem, "remove one, or add a column order")
        preference[question] = row["preference"]
    column = {field: [row[field] for row in first.values()] for field in rows[0]}
    return Verdicts(
        model=model,
        judge=judge,
        baseline=baseline,
        ids=list(first),
        preference_NO=np.array([[preference.get((i, order)) for order in orders] for i in first], dtype=np.float64),
        model_chars_N=np.array(column["model_chars"], dtype=np.float64),
        baseline_chars_N=np.array(column["baseline_chars"], dtype=np.float64),
        category_N=column["category"],
        prompt_set_N=column["prompt_set"],
        rows=rows,
    )
