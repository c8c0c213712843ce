"""`rows`: the hardest and easiest rows of a table of scores, with their losses and texts.

N rows, M rows with a value to rank by
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from lpsel.commands.arguments import OneLineParser, scores_of_run
from lpsel.commands.result_summary import Pairs
from lpsel.console import lines, show
from lpsel.data.dataset import DatasetSpec, Row, Source
from lpsel.errors import UserError
from lpsel.redact import printable, redact
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.read import MANIFEST, SCORES_FILE, read_scores
from lpsel.scoring.table import CONTENT_ID, ScoreTable
from lpsel.storage import read_json

ROWS = 20  # by default
LONGEST = 240  # characters of a text on a terminal

Floats = NDArray[np.float64]


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel rows ARGUMENTS`.

    Raises:
        UserError: no scores, an unknown value to rank by, or a dataset with other rows.
    """
    parser = OneLineParser(prog="lpsel rows", description="Show the hardest and easiest rows of a table of scores.")
    parser.add_argument(
        "scores", metavar="SCORES", help="a scores folder, a Parquet, CSV or .npz file, or a run folder"
    )
    parser.add_argument("--hardest", type=_count, metavar="N", help=f"number of the hardest rows ({ROWS})")
    parser.add_argument("--easiest", type=_count, metavar="N", help="number of the easiest rows")
    parser.add_argument("--by", metavar="NAME", help="lp, lp_app, lp_nll, lp_app_nll, nll_0, ... (lp_app, else nll_0)")
    parser.add_argument("--dataset", metavar="FILE", help="the dataset, if the scores do not name it")
    parser.add_argument("--key", metavar="NAME", help="the array of an .npz with several")
    given = parser.parse_args(arguments)
    file = Path(given.scores).expanduser()
    if file.is_dir() and not (file / SCORES_FILE).is_file():
        file = Path(scores_of_run(file)["scores"])
    try:
        table = read_scores(file, given.key)
    except UserError as error:
        raise error.renamed("--key") if error.name == "scores_key" else error from None
    by = given.by or ("lp_app" if table.epochs else "nll_0")
    value_N, hardest_M = _ranked(table, by)
    hardest = ROWS if given.hardest is None and given.easiest is None else given.hardest or 0
    ends = {"hardest": hardest_M[:hardest], "easiest": hardest_M[::-1][: given.easiest or 0]}
    texts, note = {}, ""
    try:
        texts = _texts(file, table, given.dataset, np.concatenate([*ends.values()]).tolist())
    except UserError as error:
        if given.dataset is not None:
            raise
        note = f"No texts: {error}"
    for name, rows in ends.items():
        if len(rows):
            pairs = [pair for row in rows.tolist() for pair in _described(table, row, by, value_N, texts)]
            show(lines(pairs, title=f"The {len(rows)} {name} of {len(hardest_M):,} rows by {by}"))
    if note:
        print(printable(redact(note)))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: must be a number of rows")
    return int(text)


def _ranked(table: ScoreTable, by: str) -> tuple[Floats, NDArray[np.int64]]:
    """The values to rank by, (N,), and the positions of rows with one, hardest first, ties by row number.

    A high loss is hard, and a low learning percentage.
    """
    losses = [f"nll_{epoch}" for epoch in range(len(table.nll))]
    choices = [name for name, metric in METRICS.items() if table.epochs >= metric.epochs] + losses
    if by not in choices:
        problem = f"these scores have {', '.join(choices) or 'no recorded loss'}"
        raise UserError("--by", by, problem, "choose one of them" if choices else "give other scores")
    value_N = learning_percentage(table, by) if by in METRICS else table.nll[losses.index(by)]
    key_N = value_N if by in METRICS else -value_N
    rows_M = np.flatnonzero(np.isfinite(value_N) & (table.response_tokens > 0))
    return value_N, rows_M[np.lexsort((table.index[rows_M], key_N[rows_M]))]


def _described(table: ScoreTable, row: int, by: str, value_N: Floats, texts: Mapping[int, Row]) -> Pairs:
    """A line of numbers, and one for each turn of the conversation, shortened on a terminal."""
    losses = " → ".join(f"{nll:.3f}" for nll in table.nll[:, row])
    tokens = f"  {table.response_tokens[row]:,} tokens" if table.tokens_known else ""
    content = f"  id {table.id[row].as_py()}" if table.id is not None and row not in texts else ""
    pairs = [(f"row {table.index[row]}", f"{by} {value_N[row]:.4g}  NLL {losses}{tokens}{content}")]
    if row not in texts:
        return pairs
    example, unusable = texts[row].example, texts[row].unusable
    turns = [(turn.role, turn.content) for turn in example.turns] if unusable is None else [("unusable", unusable)]
    if example.input:
        turns.insert(1, ("input", example.input))
    short = Console().is_terminal
    return pairs + [(f"  {role}", f"{t[:LONGEST]}…" if short and len(t) > LONGEST else t) for role, t in turns]


def _texts(file: Path, table: ScoreTable, dataset: str | None, rows: Sequence[int]) -> dict[int, Row]:
    """The rows of the source at positions in the table, from the given dataset or that of the scores folder.

    Raises:
        UserError: the dataset is unknown, cannot be read, or differs from the one that was scored.
    """
    spec = DatasetSpec(Path(dataset).name, dataset) if dataset is not None else _dataset_of(file)
    source = Source(replace(spec, bad_rows="skip"))  # also rows that need not be shown
    position = {int(table.index[row]): row for row in rows}
    try:
        first = islice(source, max(position, default=-1) + 1)
        texts = {position[row.index]: row for row in first if row.index in position}
    except UserError as error:
        raise error.renamed("--dataset") if dataset is not None and error.name == "dataset.path" else error from None
    for number, row in sorted(position.items()):
        scored = "" if table.id is None else table.id[row].as_py() or ""
        is_content = CONTENT_ID.fullmatch(scored) is not None  # other ids are the user's own
        if row not in texts or (is_content and scored != texts[row].example.content_id()):
            name = "--dataset" if dataset is not None else "dataset"
            problem = f"row {number} is not the row that was scored"
            hint = "give the dataset of these scores with --dataset FILE"
            raise UserError(name, source.spec.path or source.spec.name, problem, hint)
    return texts


def _dataset_of(file: Path) -> DatasetSpec:
    """The dataset in the manifest of a scores folder."""
    try:
        return DatasetSpec(**read_json((file if file.is_dir() else file.parent) / MANIFEST)["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(file, None, "does not name its dataset", "add --dataset FILE") from None
