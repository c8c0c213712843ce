"""`rows`: the hardest and the easiest rows of a table of scores, with how their loss went and their texts.

N rows, E recorded columns (0 = before training, then one after each epoch)
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from lpsel.commands.arguments import OneLineParser
from lpsel.console import lines, show
from lpsel.data.column_forms import Example
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError
from lpsel.run_config import RESULT, RUN_CONFIG, read_result
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.read import SCORES_FILE, read_scores
from lpsel.scoring.table import CONTENT_ID, ScoreTable

MANIFEST = "manifest.json"
ROWS = 20  # where no number is given
LONGEST = 240  # characters of a text on a terminal

Floats = NDArray[np.float64]


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel rows ARGUMENTS`.

    Raises:
        UserError: no scores there, nothing to rank by, another data set's rows.
    """
    parser = OneLineParser(prog="lpsel rows", description="Show the hardest and easiest rows of a table of scores.")
    parser.add_argument(
        "scores", metavar="SCORES", help="a scores folder, a Parquet, CSV or .npz file, or a run folder"
    )
    parser.add_argument("--hardest", type=_count, metavar="N", help=f"so many of the hardest rows ({ROWS})")
    parser.add_argument("--easiest", type=_count, metavar="N", help="so many of the easiest rows")
    parser.add_argument("--by", metavar="NAME", help="lp, lp_app, lp_nll, nll_0, nll_1, ... (lp_app, else nll_0)")
    parser.add_argument("--dataset", metavar="FILE", help="the data set, where the scores do not say which")
    parser.add_argument("--key", metavar="NAME", help="the array of an .npz that has several")
    given = parser.parse_args(arguments)
    file = _scores_of(Path(given.scores).expanduser())
    try:
        table = read_scores(file, given.key)
    except UserError as error:
        raise UserError(str(error).removeprefix("scores=").replace("scores_key=", "--key ")) from error
    by = given.by or ("lp_app" if table.epochs else "nll_0")
    value_N, hardest_first = _ranked(table, by)
    hardest = ROWS if given.hardest is None and given.easiest is None else given.hardest or 0
    wanted = {"hardest": hardest_first[:hardest], "easiest": hardest_first[::-1][: given.easiest or 0]}
    numbers = {int(table.index[row]) for rows in wanted.values() for row in rows}
    texts, why = _texts(file, table, given.dataset, numbers)
    for name, rows in wanted.items():
        if len(rows):
            told = [pair for row in rows for pair in _told(table, int(row), by, value_N, texts)]
            show(lines(told, title=f"The {len(rows)} {name} of {len(hardest_first):,} rows by {by}"))
    if why:
        print(why)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: must be a number of rows")
    return int(text)


def _scores_of(path: Path) -> Path:
    """The scores that were named; of a run folder those that it used."""
    if not (path / RESULT).is_file():
        if (path / RUN_CONFIG).is_file():
            raise UserError(f"{path}: this run is not finished; give its command again, or name a scores folder.")
        if path.is_dir() and not (path / SCORES_FILE).is_file():
            raise UserError(f"{path}: no scores in it; name a scores folder or file, or the folder of a finished run.")
        return path
    scores = (read_result(path) or {}).get("scores")
    if not scores:
        raise UserError(f"{path}: this run used no scores; name a scores folder or file.")
    return Path(scores)


def _ranked(table: ScoreTable, by: str) -> tuple[Floats, NDArray[np.int64]]:
    """What rows are ranked by, (N,), and the places of those that have it, the hardest first, ties by row number.

    A high loss is hard, and a low learning percentage.
    """
    recorded = [f"nll_{e}" for e in range(len(table.nll))]
    known = [name for name, metric in METRICS.items() if table.epochs >= metric.epochs] + recorded
    if by not in known:
        raise UserError(f"--by {by}: these scores have {', '.join(known) or 'no recorded loss'}; name one of them.")
    value_N = learning_percentage(table, by) if by in METRICS else table.nll[recorded.index(by)]
    sign = 1 if by in METRICS else -1
    kept = np.flatnonzero(np.isfinite(value_N) & (table.response_tokens > 0))
    return value_N, kept[np.lexsort((table.index[kept], sign * value_N[kept]))]


def _told(table: ScoreTable, row: int, by: str, value_N: Floats, texts: dict[int, Example]) -> list[tuple[str, str]]:
    """Two or three lines: numbers, what was asked and what was answered."""
    number = int(table.index[row])
    losses = " → ".join(f"{nll:.3f}" for nll in table.nll[:, row])
    tokens = f"  {table.response_tokens[row]:,} tokens" if table.tokens_known else ""
    content = f"  id {table.id[row].as_py()}" if table.id is not None and number not in texts else ""
    told = [(f"row {number}", f"{by} {value_N[row]:.4g}  NLL {losses}{tokens}{content}")]
    if number in texts:
        example = texts[number]
        turns = [(turn.role, turn.content) for turn in example.turns]
        if example.input:
            turns.insert(1, ("input", example.input))
        told += [(f"  {role}", _short(text)) for role, text in turns]
    return told


def _short(text: str) -> str:
    """The beginning of a long text on a terminal, all of it elsewhere."""
    cut = Console().is_terminal and len(text) > LONGEST
    return f"{text[:LONGEST]}…" if cut else text


def _texts(file: Path, table: ScoreTable, named: str | None, numbers: set[int]) -> tuple[dict[int, Example], str]:
    """The rows of those numbers, or none and why.

    Raises:
        UserError: the data set that was named is not the one that was scored.
    """
    if named is not None:
        source = Source(DatasetSpec(Path(named).name, named))
    else:
        found = _dataset_of(file)
        if found is None:
            return {}, "Texts: these scores do not say which data set they are of; name it with --dataset FILE."
        source = Source(found)
    try:
        first = islice(source, max(numbers, default=-1) + 1)
        texts = {row.index: row.example for row in first if row.index in numbers}
    except UserError as error:
        if named is not None:
            raise UserError(str(error).replace("dataset.path=", "--dataset ")) from error
        return {}, f"Texts: {error}"
    missing = (numbers - texts.keys()) | {n for n, example in texts.items() if not _is(example, n, table)}
    if missing:
        what = f"row {min(missing)} is not the one that was scored"
        if named is not None:
            raise UserError(f"--dataset {named}: {what}; name the data set of these scores.")
        return (
            {},
            f"Texts: {source.spec.path or source.spec.name} has changed, {what}; name a copy with --dataset FILE.",
        )
    return texts, ""


def _is(example: Example, number: int, table: ScoreTable) -> bool:
    """Whether a row can be the one that was scored: ids of one's own say nothing."""
    if table.id is None:
        return True
    scored = table.id[int(np.searchsorted(table.index, number))].as_py()
    return CONTENT_ID.fullmatch(scored or "") is None or scored == example.content_id()


def _dataset_of(file: Path) -> DatasetSpec | None:
    """What the manifest beside the scores says of their data set."""
    try:
        manifest = json.loads(((file if file.is_dir() else file.parent) / MANIFEST).read_text())
        return DatasetSpec(**manifest["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
