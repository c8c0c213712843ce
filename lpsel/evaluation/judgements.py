"""Files of verdicts: judgements.parquet, other tables, and lists as AlpacaEval writes them."""

# N prompts, O orders in which the two answers were shown

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError
from lpsel.evaluation.preferences import CODES, combined
from lpsel.judging.judge import LOSS, TIE, WIN, Judgement
from lpsel.storage import finite, utf8, write_atomically

log = logging.getLogger(__name__)

JUDGEMENTS = "judgements.parquet"
VERDICTS = {1: "win", 0: "tie", -1: "loss"}
COLUMN_TYPES = {
    "preference": "float64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "attempts": "int64",
    "model_chars": "float64",
    "baseline_chars": "float64",
}  # all others are strings
WORDS = {"win": WIN, "model": WIN, "tie": TIE, "loss": LOSS, "baseline": LOSS}


class Verdict(NamedTuple):
    """A judge's verdict on one prompt; names and the order are "" where the file does not contain them."""

    id: str
    preference: float | None
    order: str
    model: str
    baseline: str
    judge: str
    category: str | None
    prompt_set: str | None
    model_chars: float | None
    baseline_chars: float | None


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of one judge on one model.

    Attributes:
        model, judge, baseline: names, "" if unknown.
        ids: of the prompts.
        orders: in which the answers were shown; [""] if unknown.
        preference_NO: see `lpsel.evaluation.preferences`.
        model_chars_N, baseline_chars_N: lengths of the answers, NaN if unknown.
        category_N, prompt_set_N: of the prompts.
    """

    model: str
    judge: str
    baseline: str
    ids: list[str]
    orders: list[str]
    preference_NO: NDArray[np.float64]
    model_chars_N: NDArray[np.float64]
    baseline_chars_N: NDArray[np.float64]
    category_N: list[str | None]
    prompt_set_N: list[str | None]


def read_judgements(files: str | Path | Sequence[str | Path]) -> list[Verdicts]:
    """Read verdicts and group them by model and judge, in order of first occurrence.

    A verdict that is not a preference (a word, a number outside 1 to 2) counts as not judged, with a warning that
    contains the first. If no row of a file has an id or instruction, every row is a prompt of its own. A model, judge
    or baseline that some rows leave out is the one of the other rows.

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
    verdicts = [verdict for path in paths for verdict in _read(path)]
    for field in ("model", "judge", "baseline"):
        verdicts = _fill_in(field, verdicts, where)
    baselines = list(dict.fromkeys(verdict.baseline for verdict in verdicts))
    if len(baselines) > 1:
        problem = f"contains two baselines, {baselines[0]} and {baselines[1]}"
        raise UserError("judgements", where, problem, "use one file per baseline")
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.model, verdict.judge), []).append(verdict)
    return [_collect(own, where) for own in groups.values()]


def aligned(several: Sequence[Verdicts]) -> dict[str, NDArray[np.float64]]:
    """Preferences of several judges on the same model, for `judges_agreement`.

    Returns:
        By judge, a preference for every prompt that any of them judged; NaN where it has no verdict.
    """
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompt for one in several for prompt in one.ids))}
    by_judge = {}
    for one in several:
        preference_N = np.full(len(index), np.nan)
        preference_N[[index[prompt] for prompt in one.ids]] = combined(one.preference_NO)
        by_judge[one.judge] = preference_N
    return by_judge


def judgement_rows(verdicts: Verdicts, judgements: Sequence[Judgement] = ()) -> Iterator[dict[str, Any]]:
    """Rows of judgements.parquet, which `read_judgements` reads; with the replies of the judge if there are any."""
    for i, prompt in enumerate(verdicts.ids):
        for j, order in enumerate(verdicts.orders):
            preference = verdicts.preference_NO[i, j]
            row = {
                "id": prompt,
                "prompt_set": verdicts.prompt_set_N[i],
                "category": verdicts.category_N[i],
                "model": verdicts.model,
                "baseline": verdicts.baseline,
                "judge": verdicts.judge,
                "order": order,
                "verdict": None if math.isnan(preference) else VERDICTS[np.sign(preference - TIE)],
                "preference": preference,
            }
            if judgements:
                judgement = judgements[i * len(verdicts.orders) + j]
                for column in ("raw", "failure", "prompt_tokens", "completion_tokens", "attempts"):
                    row[column] = getattr(judgement, column)
            yield row | {"model_chars": verdicts.model_chars_N[i], "baseline_chars": verdicts.baseline_chars_N[i]}


def write_judgements(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table that `read_judgements` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, COLUMN_TYPES.get(name, "string")) for name in rows[0]])
    table = pa.Table.from_pylist(finite(list(rows)), schema=schema)
    write_atomically(path, lambda file: pq.write_table(table, file))


def parse_preference(value: Any) -> float | None:
    """A preference from a number, its text, or win, tie or loss; None for null, NaN and "".

    Raises:
        ValueError: anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    if isinstance(value, bool):
        raise ValueError(value)
    try:
        number = float(value)
    except (TypeError, OverflowError) as error:  # a list, a date of a Parquet file, an integer of hundreds of digits
        raise ValueError(value) from error
    if not (math.isnan(number) or number == 0 or LOSS <= number <= WIN):
        raise ValueError(value)
    return None if math.isnan(number) else number


def _read(path: Path) -> list[Verdict]:
    reader = reader_of(str(path))
    if reader is None:
        raise UserError("judgements", path, "unknown file extension", f"use {ENDINGS}")
    if not path.is_file():
        raise UserError("judgements", path, "no such file", "check the name and the current folder")
    rows = list(reader.read(path, "judgements"))
    anonymous = not any(_prompt_of(row) or row.get("order") for _, row in rows)
    verdicts: list[Verdict] = []
    invalid: list[str] = []
    for i, (number, row) in enumerate(rows, start=1):
        place = f"{path}, {reader.unit} {number}"
        column = next((name for name in ("preference", "verdict") if name in row), None)
        if column is None:
            columns = ", ".join(row)[:60] or "nothing"
            raise UserError(place, None, f"no column preference or verdict, only {columns}", CODES)
        prompt = str(i) if anonymous else _prompt_of(row)
        if prompt is None:
            raise UserError(place, None, "no id and no instruction", "add one of them to every row")
        try:
            preference = parse_preference(row[column])
        except ValueError:
            invalid.append(f"{column} {row[column]!r:.60} in row {i}")
            preference = None
        verdicts.append(_verdict(row, prompt, preference, place))
    if invalid and len(invalid) == len(verdicts):
        raise UserError("judgements", path, f"no valid verdict, starting with {invalid[0]}", CODES)
    if all(verdict.preference is None for verdict in verdicts):
        raise UserError("judgements", path, f"{len(verdicts)} rows, none with a verdict", "use a file with verdicts")
    if invalid:
        log.warning("%s: %d invalid verdicts count as failed, starting with %s", path, len(invalid), invalid[0])
    return verdicts


def _prompt_of(row: dict[str, Any]) -> str | None:
    return _text(row, "id", "instruction") or None


def _verdict(row: dict[str, Any], prompt: str, preference: float | None, place: str) -> Verdict:
    return Verdict(
        id=prompt,
        preference=preference,
        order=_text(row, "order"),
        model=_text(row, "model", "generator_2"),
        baseline=_text(row, "baseline", "generator_1"),
        judge=_text(row, "judge", "annotator"),
        category=_text(row, "category", "dataset") or None,  # AlpacaEval calls its five parts datasets
        prompt_set=_text(row, "prompt_set") or None,
        model_chars=_chars(row, "model_chars", "output_2", place),
        baseline_chars=_chars(row, "baseline_chars", "output_1", place),
    )


def _text(row: dict[str, Any], *columns: str) -> str:
    """The first of the columns that is not empty."""
    return next((utf8(str(row[name])) for name in columns if row.get(name) not in (None, "")), "")


def _chars(row: dict[str, Any], column: str, output: str, place: str) -> float | None:
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
        raise UserError(column, value, "must be a number of characters", "leave it empty if unknown", place)
    return length


def _fill_in(field: str, verdicts: list[Verdict], where: str) -> list[Verdict]:
    """The verdicts, with the only name of a field in rows that leave it out."""
    names = list(dict.fromkeys(getattr(verdict, field) for verdict in verdicts))
    known = [name for name in names if name]
    if len(known) == len(names) or not known:
        return verdicts
    if len(known) > 1:
        problem = f"rows without a {field} next to rows of {known[0]} and {known[1]}"
        raise UserError("judgements", where, problem, f"add the {field} to every row")
    return [verdict._replace(**{field: known[0]}) for verdict in verdicts]


def _collect(verdicts: list[Verdict], where: str) -> Verdicts:
    """The verdicts of one judge on one model as arrays."""
    orders = list(dict.fromkeys(verdict.order for verdict in verdicts))
    if len(orders) > 2:
        problem = f"{len(orders)} values in column order ({', '.join(orders)})"
        raise UserError("judgements", where, problem, "use one value for each of the two orders")
    ids = list(dict.fromkeys(verdict.id for verdict in verdicts))
    index = {prompt: i for i, prompt in enumerate(ids)}
    first: dict[str, Verdict] = {}
    preference: dict[tuple[int, int], float | None] = {}
    for verdict in verdicts:
        first.setdefault(verdict.id, verdict)
        place = (index[verdict.id], orders.index(verdict.order))
        if place in preference:
            judge, model = verdict.judge or "the judge", verdict.model or "the model"
            problem = f"two verdicts by {judge} on {model} for the same prompt, {verdict.id[:60]!r}"
            raise UserError("judgements", where, problem, "remove one, or add a column order")
        preference[place] = verdict.preference
    preference_NO = [[preference.get((i, j)) for j in range(len(orders))] for i in range(len(ids))]
    return Verdicts(
        model=verdicts[0].model,
        judge=verdicts[0].judge,
        baseline=verdicts[0].baseline,
        ids=ids,
        orders=orders,
        preference_NO=np.array(preference_NO, dtype=np.float64),
        model_chars_N=np.array([verdict.model_chars for verdict in first.values()], dtype=np.float64),
        baseline_chars_N=np.array([verdict.baseline_chars for verdict in first.values()], dtype=np.float64),
        category_N=[verdict.category for verdict in first.values()],
        prompt_set_N=[verdict.prompt_set for verdict in first.values()],
    )
