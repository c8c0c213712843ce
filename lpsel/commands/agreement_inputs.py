"""Inputs of `lpsel agreement` and `validate`: tables of scores of the same rows, with their clusters and texts."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.clustering.near_duplicates import NearDuplicates, near_duplicates_in, sample
from lpsel.commands.arguments import dataset_error, result_of_run, scores_of_run, selection_of_run
from lpsel.commands.row_checks import check_own_ids
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.subset import Seen
from lpsel.errors import UserError
from lpsel.scoring.external import is_external
from lpsel.scoring.metrics import METRICS, learning_percentage
from lpsel.scoring.npz import names_in_npz, read_array, split_npz
from lpsel.scoring.read import MANIFEST, SCORES_FILE, cluster_codes, read_scores, read_table
from lpsel.scoring.table import ScoreTable
from lpsel.storage import read_dict

MOST_ROWS = 20_000  # rows whose texts are compared, which takes a few seconds


@dataclass(frozen=True)
class Scored:
    """A table of scores with its origin."""

    name: str  # name of the scorer
    argument: str  # as given on the command line
    origin: str  # folder or file that distinguishes tables with the same name
    source: str  # the file
    table: ScoreTable


def read_all(arguments: Sequence[str], least: int = 2, columns: Collection[str] = ()) -> list[Scored]:
    """Read at least `least` tables of the same rows and give them distinct names."""
    tables = [table for argument in arguments for table in _read(argument, columns)]
    if not tables:
        raise UserError("SCORES", None, "no scores given", "name a scores folder or file")
    if len(tables) < least:
        raise UserError(" ".join(arguments), None, "only one table", "pass two or more to compare")
    for other in tables[1:]:
        _check_same_rows(tables[0], other)
    return _distinct(tables)


def _read(argument: str, columns: Collection[str]) -> list[Scored]:
    path = Path(argument).expanduser()
    if path.is_dir() and (path / SCORES_FILE).is_file():
        return [_read_table(argument, path / SCORES_FILE, columns)]
    if path.is_dir() and not is_external(path):
        run = result_of_run(path)
        scored = _read_table(argument, scores_of_run(path, run), columns)
        name = (run.get("scorer") or {}).get("name", scored.name)
        return [replace(scored, name=name, origin=path.resolve().name)]
    if archive := split_npz(argument):
        file, name = archive
        names = names_in_npz(file) if name is None else [name]
        return [Scored(n, f"{file}:{n}", file.stem, f"{file}:{n}", read_scores(file, key=n)) for n in names]
    return [_read_table(argument, path, columns)]


def _read_table(argument: str, file: Path, columns: Collection[str]) -> Scored:
    table = read_scores(file, columns=columns)
    file, name = file.resolve(), file.stem
    if file.name == SCORES_FILE:
        name = read_dict(file.with_name(MANIFEST)).get("scorer", file.parent.name)
    return Scored(name, argument, file.parent.name, str(file), table)


def score_of(scored: Scored, metric: str) -> NDArray[np.float64]:
    """Score of every row by one metric, (N,), NaN where undefined."""
    table = scored.table
    if metric not in METRICS:
        if metric in table.columns:
            return table.columns[metric]
        hint = f"use one of {', '.join(METRICS)}, or a column of the scores"
        raise UserError("--metric", metric, f"{scored.argument} has no such column", hint)
    if table.epochs < METRICS[metric].epochs:
        problem = f"needs {METRICS[metric].epochs} recorded epochs, {scored.argument} has {table.epochs}"
        raise UserError("--metric", metric, problem, "use another metric or other scores")
    return np.where(table.response_tokens > 0, learning_percentage(table, metric), np.nan)


def _check_same_rows(one: Scored, other: Scored) -> None:
    a, b = one.table, other.table
    problem = None
    if len(a) != len(b):
        problem = f"has {len(b):,} rows, and {one.argument} has {len(a):,}"
    elif not np.array_equal(a.index, b.index):
        row = int(np.flatnonzero(a.index != b.index)[0])
        problem = f"has index {b.index[row]}, and {one.argument} has index {a.index[row]}"
    elif a.id is not None and b.id is not None and a.has_content_ids == b.has_content_ids and not a.id.equals(b.id):
        row = pc.index(pc.not_equal(a.id, b.id), True).as_py()
        problem = f"row {a.index[row]} has id {b.id[row]}, and in {one.argument} {a.id[row]}"
    if problem is not None:
        raise UserError(other.argument, None, problem, "pass scores of the same rows")


def _distinct(tables: list[Scored]) -> list[Scored]:
    """Make names unique by adding the origin and, if that is not enough, a number."""
    count = Counter(table.name for table in tables)
    tables = [replace(t, name=f"{t.name} ({t.origin})") if count[t.name] > 1 else t for t in tables]
    count = Counter(table.name for table in tables)
    distinct, numbers = [], Counter[str]()
    for table in tables:
        numbers[table.name] += 1
        name = f"{table.name} (#{numbers[table.name]})" if count[table.name] > 1 else table.name
        distinct.append(replace(table, name=name))
    return distinct


def same_scores(tables: Sequence[Scored]) -> list[str]:
    """Notes on tables that come from the same file, such as runs of two rules with the same scorer."""
    names: dict[str, list[str]] = {}
    for scored in tables:
        names.setdefault(scored.source, []).append(scored.name)
    explanation = "are the same scores: agreement compares scorers, not the rows that two rules select."
    return [f"{' and '.join(group)} {explanation}" for group in names.values() if len(group) > 1]


def read_clusters(argument: str, index: NDArray[np.int64]) -> NDArray[np.int32]:
    """Read the cluster of every row from a file; negative numbers mean no cluster.

    Args:
        argument: a Parquet or CSV table with a column `cluster` (and `index`, if rows are in a different order), the
            run folder of a selection, or a NumPy archive with an array `cluster` (or FILE.npz:NAME).
        index: row numbers in the tables of scores.
    """
    archive = split_npz(argument)
    file = Path(argument).expanduser()
    is_run = file.is_dir()
    if is_run:
        file = selection_of_run(file)
    try:
        if archive:
            columns = pa.table({"cluster": np.atleast_1d(read_array(archive[0], archive[1] or "cluster"))})
        else:
            columns = read_table(file, ("cluster",))
    except UserError as error:
        raise error.renamed("--clusters", argument) from None
    if "cluster" not in columns.column_names:
        raise UserError("--clusters", argument, "has no column cluster", "pass a table with that column")
    same_rows = len(columns) == len(index)
    if "index" in columns.column_names and not columns["index"].null_count:
        columns = columns.sort_by("index")
        same_rows = np.array_equal(columns["index"].to_numpy(), index)
    cluster = columns["cluster"].combine_chunks()
    if is_run and cluster.null_count == len(cluster):
        raise UserError("--clusters", argument, "this run used no clusters", "pass another run or a file of clusters")
    if is_run:
        cluster = cluster.fill_null(-1)  # of unusable rows
    if cluster.null_count:
        problem = f"{cluster.null_count:,} rows have an empty cluster"
        raise UserError("--clusters", argument, problem, "use -1 for rows in no cluster")
    if not same_rows:
        problem = f"has clusters of {len(cluster):,} rows, and the tables have {len(index):,}"
        raise UserError("--clusters", argument, problem, "pass a cluster for each row of the tables")
    return cluster_codes(cluster)


def with_dataset(tables: Sequence[Scored], dataset: str) -> tuple[list[Scored], Source]:
    """Add content ids and empty answers from a dataset to the tables; returns the tables and the dataset."""
    source = Source(DatasetSpec(Path(dataset).name, dataset, bad_rows="skip"))
    try:
        empty_N, ids = source.empty_answer, source.ids
    except UserError as error:
        raise dataset_error(error) from None
    completed = []
    for scored in tables:
        try:
            check_own_ids(scored.table, source)
            table = scored.table.of_dataset(ids, source.spec.name)
        except UserError as error:
            raise error.renamed(scored.argument) from None
        completed.append(replace(scored, table=replace(table, empty_answer=empty_N)))
    return completed, source


def read_texts(source: Source, low_GN: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[NearDuplicates]]:
    """Count characters of every prompt and response, (2, N), and near-duplicates in each group of rows.

    Args:
        low_GN: the rows of every group. At most MOST_ROWS of them, drawn at random, are compared.
    """
    rows = sample(np.flatnonzero(low_GN.any(axis=0)), MOST_ROWS)
    seen = Seen(np.zeros((2, len(source)), np.int32), frozenset(), frozenset(rows.tolist()))
    for row in source:
        seen.characters[:, row.index] = row.example.characters()
        seen.keep(row.index, row.example)
    # Rows with the same content have the same text; other rows get a number after the last text.
    n_texts = len(seen.texts)
    text_N = pc.index_in(source.ids, value_set=pa.array([*seen.texts], pa.large_string()))
    text_N = text_N.fill_null(n_texts).to_numpy()
    has_text_GT = np.array([np.bincount(text_N[low_N], minlength=n_texts + 1) > 0 for low_N in low_GN])[:, :n_texts]
    return seen.characters, near_duplicates_in(has_text_GT, [*seen.texts.values()])
