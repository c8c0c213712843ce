"""Verdicts that were made elsewhere: our own table, or a list as AlpacaEval writes it."""

# N prompts, O orders in which the two answers were shown

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lpsel.data.formats import ENDINGS, reader_of
from lpsel.errors import UserError
from lpsel.evaluation.preferences import combined
from lpsel.storage import utf8

log = logging.getLogger(__name__)

ONE_ORDER = ""
K = TypeVar("K", bound=Hashable)
PREFERENCE_IS = (
    "A preference is 1 (the baseline's answer is better), 2 (the model's), a number between, 0 or 1.5 (a tie), or null."
)
WORDS = {"win": 2.0, "model": 2.0, "tie": 1.5, "loss": 1.0, "baseline": 1.0}


class Verdict(NamedTuple):
    """A judge's verdict on one prompt, answers shown in one order.

    Attributes:
        id: of the prompt.
        preference: as in `winrate`; None where there is none, or none that can be read.
        order: in which the answers were shown, "" where the file does not say.
        model, baseline, judge: names, "" where the file does not say.
        category, prompt_set: of the prompt.
        model_chars, baseline_chars: lengths of the answers in characters.
    """

    id: str
    preference: float | None
    order: str = ONE_ORDER
    model: str = ""
    baseline: str = ""
    judge: str = ""
    category: str | None = None
    prompt_set: str | None = None
    model_chars: float | None = None
    baseline_chars: float | None = None


@dataclass(frozen=True)
class Judged:
    """The verdicts of one judge on one model, as `head_to_head.figures` takes them."""

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


def read_judgements(files: str | Path | Sequence[str | Path]) -> list[Judged]:
    """Read verdicts and put them together by model and judge, in the order in which they come.

    A verdict that is there and cannot be read (a word, a number outside 1 to 2) counts as not judged, with a warning
    that names the first. Where no row of a file says which prompt it is of, every row is of a prompt of its own. A name
    that some rows leave out is that of the others, where they have but one.

    Args:
        files: one or several, each .json or .jsonl of objects with `preference`, as AlpacaEval's annotations.json; or a
            table (.parquet, .csv) with `id`, `preference` or `verdict` (win, tie, loss), and, if they are there,
            `order`, `model`, `baseline`, `judge`, `category`, `prompt_set`, `model_chars`, `baseline_chars`.
            Compressed as data sets may be.

    Raises:
        UserError: no such file, no verdicts in it, none that can be read, two verdicts on the same answers by the same
            judge, two baselines.
    """
    several = files if isinstance(files, list | tuple) else [files]
    paths = [Path(str(file)).expanduser() for file in several]
    if not paths:
        raise UserError("judgements=[]: no file; give judgements=FILE, or [FILE,FILE].")
    where = ", ".join(map(str, paths))
    return _put_together(_with_names([verdict for path in paths for verdict in _verdicts(path)], where), where)


def _verdicts(path: Path) -> list[Verdict]:
    reader = reader_of(str(path))
    if reader is None:
        raise UserError(f"judgements={path}: no known ending; give {ENDINGS}.")
    if not path.is_file():
        raise UserError(f"judgements={path}: no such file. Check the name and the folder you start from.")
    rows = list(reader.read(path, "judgements"))  # the file is closed before a row is refused
    if not rows:
        raise UserError(f"judgements={path}: no verdicts in it; give a file that has some.")
    one_a_row = not any(_prompt_of(row) or row.get("order") for _, row in rows)
    verdicts: list[Verdict] = []
    unreadable: list[str] = []
    for place, (number, row) in enumerate(rows, start=1):
        at = f"{path}, {reader.unit} {number}"
        column = next((name for name in ("preference", "verdict") if name in row), None)
        if column is None:
            found = ", ".join(row)[:60] or "nothing"
            raise UserError(f"{at}: neither preference nor verdict, found {found}; rename a column. {PREFERENCE_IS}")
        prompt = str(place) if one_a_row else _prompt_of(row)
        if prompt is None:
            raise UserError(f"{at}: no id and no instruction; a row needs one of them, to tell the prompts apart.")
        try:
            preference = read_preference(row[column])
        except ValueError:
            unreadable.append(f"{column} {row[column]!r:.60} in row {place}")
            preference = None
        verdicts.append(_verdict(row, prompt, preference, at))
    if len(unreadable) == len(verdicts):
        raise UserError(f"judgements={path}: no verdict can be read, {unreadable[0]} first. {PREFERENCE_IS}")
    if all(verdict.preference is None for verdict in verdicts):
        raise UserError(f"judgements={path}: none of {len(verdicts)} rows was judged; give a file with verdicts.")
    if unreadable:
        told = "%s: verdicts that cannot be read count as failed, %d in all, %s first."
        log.warning(told, path, len(unreadable), unreadable[0])
    return verdicts


def aligned(judged: Sequence[Judged]) -> dict[str, NDArray[np.float64]]:
    """What several judges said of the same model, for `judges_agreement`: by judge, a preference for each prompt.

    The prompts are all that any of them was shown; NaN where a judge was not, or has no verdict.
    """
    places = {identity: i for i, identity in enumerate(dict.fromkeys(i for one in judged for i in one.ids))}
    by_judge = {}
    for one in judged:
        preference_N = np.full(len(places), np.nan)
        preference_N[[places[identity] for identity in one.ids]] = combined(one.preference_NO)
        by_judge[one.judge] = preference_N
    return by_judge


def read_preference(value: Any) -> float | None:
    """A preference of a file: a number or its text, or win, tie, loss; None for null, NaN and "".

    Raises:
        ValueError: anything else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{value!r} is no preference")
    try:
        number = float(value)
    except (TypeError, OverflowError):  # a date of a Parquet file, a whole number of hundreds of digits
        raise ValueError(f"{value!r} is no preference") from None
    if math.isnan(number):
        return None
    if not (number == 0 or 1 <= number <= 2):
        raise ValueError(f"{value!r} is no preference")
    return number


def _prompt_of(row: dict[str, Any]) -> str | None:
    return _text(row.get("id")) or _text(row.get("instruction"))


def _verdict(row: dict[str, Any], prompt: str, preference: float | None, place: str) -> Verdict:
    return Verdict(
        id=prompt,
        preference=preference,
        order=_text(row.get("order")) or ONE_ORDER,
        model=_text(row.get("model")) or _text(row.get("generator_2")) or "",
        baseline=_text(row.get("baseline")) or _text(row.get("generator_1")) or "",
        judge=_text(row.get("judge")) or _text(row.get("annotator")) or "",
        category=_text(row.get("category")) or _text(row.get("dataset")),  # AlpacaEval's name for its five parts
        prompt_set=_text(row.get("prompt_set")),
        model_chars=_length(row, "model_chars", "output_2", place),
        baseline_chars=_length(row, "baseline_chars", "output_1", place),
    )


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else utf8(str(value))


def _length(row: dict[str, Any], column: str, output: str, place: str) -> float | None:
    if isinstance(row.get(output), str):
        return float(len(row[output]))
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        length = float(value)
        if length < 0 or math.isinf(length):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{place}: {column} {value!r} is no number of characters; give one, or leave it empty."
        ) from None
    return length


def _with_names(verdicts: list[Verdict], path: str) -> list[Verdict]:
    for field in ("model", "judge", "baseline"):
        names = list(dict.fromkeys(getattr(v, field) for v in verdicts))
        named = [name for name in names if name]
        if len(named) == 1 < len(names):
            verdicts = [v._replace(**{field: named[0]}) for v in verdicts]
        elif len(named) < len(names) and len(named) > 1:
            raise UserError(
                f"judgements={path}: rows without a {field} beside those of {named[0]} and {named[1]}; name it in all."
            )
    return verdicts


def _put_together(verdicts: list[Verdict], path: str) -> list[Judged]:
    baselines = list(dict.fromkeys(v.baseline for v in verdicts))
    if len(baselines) > 1:
        raise UserError(f"judgements={path}: two baselines, {baselines[0]} and {baselines[1]}; give a file for each.")
    together = []
    for (model, judge), own in _grouped(verdicts, lambda v: (v.model, v.judge)).items():
        prompts = _grouped(own, lambda v: v.id)
        orders = list(dict.fromkeys(v.order for v in own))
        if len(orders) > 2:
            raise UserError(
                f"judgements={path}: {len(orders)} orders, {', '.join(orders)}; two answers have two: give each "
                "row one of two."
            )
        preference_NO = np.full((len(prompts), len(orders)), np.nan)
        for i, (identity, on_prompt) in enumerate(prompts.items()):
            for order, again in _grouped(on_prompt, lambda v: v.order).items():
                if len(again) > 1:
                    by = f" by {judge}" if judge else ""
                    raise UserError(
                        f"judgements={path}: {len(again)} verdicts{by} on {model or 'the model'} for the same prompt, "
                        f"{identity[:60]!r}; leave one, or say which order each is of in a column order."
                    )
                value = again[0].preference
                preference_NO[i, orders.index(order)] = math.nan if value is None else value
        first = [on_prompt[0] for on_prompt in prompts.values()]
        together.append(
            Judged(
                model=model,
                judge=judge,
                baseline=baselines[0],
                ids=[v.id for v in first],
                orders=orders,
                preference_NO=preference_NO,
                model_chars_N=np.array([v.model_chars for v in first], dtype=np.float64),
                baseline_chars_N=np.array([v.baseline_chars for v in first], dtype=np.float64),
                category_N=[v.category for v in first],
                prompt_set_N=[v.prompt_set for v in first],
            )
        )
    return together


def _grouped(verdicts: Iterable[Verdict], key: Callable[[Verdict], K]) -> dict[K, list[Verdict]]:
    groups: dict[K, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict), []).append(verdict)
    return groups
