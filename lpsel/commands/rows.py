"""`lpsel rows`: show the hardest and easiest rows of scores, or the first rows of a run without losses, with texts.

N rows, M rows with a value to rank by
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from lpsel.commands.arguments import (
    OneLineParser,
    checked_rows,
    dataset_error,
    dataset_of_run,
    result_of_run,
    scores_of_run,
    selection_table,
)
from lpsel.commands.result_summary import Pairs
from lpsel.console import lines, shortened, show
from lpsel.data.dataset import DatasetSpec, Row, Source
from lpsel.errors import UserError
from lpsel.redact import printable, redact
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.read import MANIFEST, SCORES_FILE, read_scores
from lpsel.scoring.table import ScoreTable, from_arrow
from lpsel.storage import read_json

ROWS = 20  # rows shown by default
RANK = "rank"  # order of the rows of a run without losses
COLUMNS = ("index", "id", "selected", RANK, "score", "cluster", "reason", "nll_0", "response_tokens")
LONGEST = 240  # characters of a text on a terminal

Floats = NDArray[np.float64]


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    file = Path(options.scores).expanduser()
    is_run = file.is_dir() and not (file / SCORES_FILE).is_file()
    shown = _of_run(file, options) if is_run else _of_scores(file, options)
    table, by = shown.table, options.by or shown.by
    notes = [] if shown.note is None or options.by is not None else [shown.note]
    value_N, hardest_M = _ranked(table, by)
    lists = _lists(options, table, hardest_M, shown.chosen, by)
    texts = {}
    try:
        texts = _texts(shown.dataset(), table, np.concatenate([*lists.values()]).tolist())
    except UserError as error:
        if options.dataset is not None:
            raise dataset_error(error) from None
        notes.append(f"No texts: {error}")
    longest = LONGEST if Console().is_terminal and options.row is None else None
    for title, rows in lists.items():
        pairs = []
        for row in rows.tolist():
            pairs.append(_numbers(table, row, by, value_N, with_id=row not in texts))
            if shown.chosen is not None:
                pairs.append(("", shown.chosen.mark(int(table.index[row]))))
            if row in texts:
                pairs += _turns(texts[row], longest)
        show(lines(pairs, title=title))
    for note in notes:
        print(printable(redact(note)))


@dataclass(frozen=True)
class Shown:
    """The rows that can be shown."""

    table: ScoreTable
    by: str  # default value to rank by
    dataset: Callable[[], DatasetSpec]  # finds the dataset with the texts
    chosen: "Chosen | None" = None  # selection of the run; None for scores without a run
    note: str | None = None  # line printed after the rows


def _of_run(folder: Path, options: argparse.Namespace) -> Shown:
    result = result_of_run(folder)
    ranks = selection_table(folder, COLUMNS)
    rule, chosen = result["rule"], Chosen.of(ranks, result)
    dataset = partial(dataset_of_run, folder, result, options.dataset)
    note = f"The rows are in the order in which selection={rule} selects them."
    has_losses = not np.isnan(from_arrow(ranks["nll_0"])).all()
    if not has_losses:
        return Shown(_without_losses(ranks), RANK, dataset, chosen, f"This run has no losses. {note}")
    table = _scores(scores_of_run(folder, result), options.key)
    if rule in METRICS:
        return Shown(table, rule, dataset, chosen)
    ranks = ranks.take(table.index)
    table = replace(table, columns={name: from_arrow(ranks[name]) for name in (RANK, "score")})
    return Shown(table, RANK, dataset, chosen, note)


def _of_scores(file: Path, options: argparse.Namespace) -> Shown:
    table = _scores(file, options.key)
    return Shown(table, "lp_app" if table.epochs else "nll_0", partial(_dataset_of, file, options.dataset))


def _scores(file: Path, key: str | None) -> ScoreTable:
    try:
        return read_scores(file, key)
    except UserError as error:
        raise error.renamed("--key") if error.name == "scores_key" else error from None


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="lpsel rows", description="Show the hardest and easiest rows of a table of scores.")
    parser.add_argument(
        "scores", metavar="SCORES", help="a scores folder, a Parquet, CSV or .npz file, or a run folder"
    )
    parser.add_argument("--hardest", type=_count, metavar="N", help=f"number of the hardest rows ({ROWS})")
    parser.add_argument("--easiest", type=_count, metavar="N", help="number of the easiest rows")
    parser.add_argument("--chosen", action="store_true", help="only rows that the run selected")
    parser.add_argument("--row", type=_count, nargs="+", metavar="N", help="show these rows with their full texts")
    parser.add_argument(
        "--by", metavar="NAME", help="rank by lp, lp_app, ... or a column such as nll_0 (lp_app; nll_0 without epochs)"
    )
    parser.add_argument("--dataset", metavar="FILE", help="the dataset, if the scores do not name it")
    parser.add_argument("--key", metavar="NAME", help="name of the array in an .npz file with several")
    return parser


@dataclass(frozen=True)
class Chosen:
    """The selection of a run."""

    rows: Mapping[str, Sequence[Any]]  # columns of selection.parquet by row number
    counts: Mapping[int | None, int]  # selected rows of each cluster; under None for all rows without clusters

    @classmethod
    def of(cls, ranks: pa.Table, result: Mapping[str, Any]) -> "Chosen":
        rows = ranks.select(["selected", "rank", "cluster", "reason"]).to_pydict()
        if result.get("clusters") is None:
            rows["cluster"] = [None] * len(rows["selected"])
        selected = zip(rows["cluster"], rows["selected"], strict=True)
        return cls(rows, Counter(cluster for cluster, is_selected in selected if is_selected))

    def mark(self, row: int) -> str:
        """Describe whether a row was selected, its rank, and how many rows were selected."""
        selected, rank, cluster, reason = (self.rows[name][row] for name in ("selected", "rank", "cluster", "reason"))
        if reason is not None:
            return f"not selected: {reason}"
        mark = "selected" if selected else "not selected"
        if rank is None:
            return mark
        count = self.counts.get(cluster, 0)
        rows = "1 row is" if count == 1 else f"{count:,} rows are"
        group = ""
        if cluster is not None:
            group = f" in cluster {cluster}" if cluster >= 0 else " without a cluster"
        return f"{mark}, rank {rank:,}; {rows} selected{group}"


def _lists(
    options: argparse.Namespace, table: ScoreTable, hardest_M: NDArray[np.int64], chosen: Chosen | None, by: str
) -> dict[str, NDArray[np.int64]]:
    """Positions of the rows to show, by the title of their list."""
    if options.row is not None:
        positions = {int(index): position for position, index in enumerate(table.index)}
        if unknown := [row for row in options.row if row not in positions]:
            problem = f"these scores have rows {min(positions)} to {max(positions)}"
            raise UserError("--row", unknown[0], problem, "pass one of them")
        return {"": np.array([positions[row] for row in options.row])}
    kind = "rows"
    if options.chosen:
        if chosen is None:
            raise UserError("--chosen", None, "these are scores without a selection", "pass a run folder")
        is_selected_M = np.array(chosen.rows["selected"])[table.index[hardest_M]]
        hardest_M = hardest_M[is_selected_M]
        kind = "selected rows"
    hardest, easiest = options.hardest or 0, options.easiest or 0
    if options.hardest is None and options.easiest is None:
        hardest = ROWS
    first, last = ("First", "Last") if by == RANK else ("Hardest", "Easiest")
    ends = {first: hardest_M[:hardest], last: hardest_M[::-1][:easiest]}
    ranked = f"{len(hardest_M):,} {kind} by {by}"
    return {f"{name} {len(rows)} of {ranked}": rows for name, rows in ends.items() if len(rows)}


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: must be a number of rows")
    return int(text)


def _ranked(table: ScoreTable, by: str) -> tuple[Floats, NDArray[np.int64]]:
    """Values to rank by, (N,), and the positions of rows that have one, hardest first, ties by row number.

    A row is hard if its loss is high or its learning percentage is low. With by=rank, values are the run's scores.
    """
    if by == RANK and RANK in table.columns:
        rank_N = table.columns[RANK]
        rows_M = np.flatnonzero(np.isfinite(rank_N))
        return table.columns["score"], rows_M[np.lexsort((table.index[rows_M], rank_N[rows_M]))]
    losses = [f"nll_{epoch}" for epoch in range(len(table.nll))]
    choices = [name for name, metric in METRICS.items() if table.epochs >= metric.epochs] + losses
    if by not in choices:
        problem = f"these scores have {', '.join(choices or table.columns) or 'no recorded loss'}"
        raise UserError("--by", by, problem, "choose one of them" if choices else "pass other scores")
    value_N = learning_percentage(table, by) if by in METRICS else table.nll[losses.index(by)]
    key_N = value_N if by in METRICS else -value_N
    rows_M = np.flatnonzero(np.isfinite(value_N) & (table.response_tokens > 0))
    return value_N, rows_M[np.lexsort((table.index[rows_M], key_N[rows_M]))]


def _numbers(table: ScoreTable, row: int, by: str, value_N: Floats, with_id: bool) -> tuple[str, str]:
    losses = " → ".join(f"{nll:.3f}" if np.isfinite(nll) else "none" for nll in table.nll[:, row])
    tokens = f"  {table.response_tokens[row]:,} tokens" if table.tokens_known else ""
    content = f"  id {table.id[row].as_py()}" if table.id is not None and with_id else ""
    value = f"{value_N[row]:.4g}" if np.isfinite(value_N[row]) else "undefined"
    recorded = f"  NLL {losses}" if len(table.nll) else ""
    return f"row {table.index[row]}", f"{'score' if by == RANK else by} {value}{recorded}{tokens}{content}"


def _turns(row: Row, longest: int | None) -> Pairs:
    """One line per turn of the conversation, or the reason why the row cannot be used."""
    turns = [(turn.role, turn.content) for turn in row.example.turns]
    if row.unusable is not None:
        turns = [("unusable", row.unusable)]
    if row.example.input:
        turns.insert(1, ("input", row.example.input))
    return [(f"  {role}", text if longest is None else shortened(text, longest)) for role, text in turns]


def _texts(spec: DatasetSpec, table: ScoreTable, rows: Sequence[int]) -> dict[int, Row]:
    """Read the rows of the dataset at these positions in the table."""
    source = Source(replace(spec, bad_rows="skip"))  # unusable rows, even if they are not shown
    position = {int(table.index[row]): row for row in rows}
    ids = {number: None if table.id is None else table.id[row].as_py() for number, row in position.items()}
    return {position[row.index]: row for row in checked_rows(source, ids)}


def _without_losses(rows: pa.Table) -> ScoreTable:
    """Convert columns of selection.parquet to a table of scores without losses."""
    n = len(rows)
    known, ones_N = not rows["response_tokens"].null_count, np.ones(n, np.int32)
    return ScoreTable(
        rows["index"].to_numpy(),
        None if rows["id"].null_count else rows["id"].combine_chunks(),
        prompt_tokens=ones_N,
        response_tokens=rows["response_tokens"].to_numpy() if known else ones_N,
        truncated=np.zeros(n, np.bool_),
        nll=np.empty((0, n)),
        tokens_known=known,
        columns={name: from_arrow(rows[name]) for name in (RANK, "score")},
    )


def _dataset_of(file: Path, dataset: str | None) -> DatasetSpec:
    """The given dataset, or the one in the manifest of a scores folder."""
    if dataset is not None:
        return DatasetSpec(Path(dataset).name, dataset)
    try:
        return DatasetSpec(**read_json((file if file.is_dir() else file.parent) / MANIFEST)["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(file, None, "does not name its dataset", "add --dataset FILE") from None
