"""The tables that `agreement` compares: found from what the user names, and sure to be of the same rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.errors import UserError, printable_line
from lpsel.integrity import Damaged, check_files
from lpsel.run_config import RESULT, read_result
from lpsel.scoring.npz import names_in_npz, read_array, split_npz
from lpsel.scoring.read import INT32_MAX, SCORES_FILE, cluster_codes, read_scores
from lpsel.scoring.table import CONTENT_ID, ScoreTable
from lpsel.storage import read_json

MANIFEST = "manifest.json"
SELECTION = "selection.parquet"


@dataclass(frozen=True)
class Scored:
    """A table of scores and where it is from.

    Attributes:
        name: what to call its scorer.
        given: how the user named it.
        place: the folder or file that tells it from another of the same name.
        source: the file it was read from.
        table: the scores.
        fingerprint: of the data set, where a manifest says it.
    """

    name: str
    given: str
    place: str
    source: str
    table: ScoreTable
    fingerprint: str | None = None


def read_all(given: Sequence[str]) -> list[Scored]:
    """The tables that the user names, two or more, with names that tell them apart.

    Raises:
        UserError: fewer than two tables, one that cannot be read, or tables of different rows.
    """
    found = [table for name in given for table in _read(name)]
    if len(found) < 2:
        raise UserError(f"{' '.join(given)}: is one table; name two or more to compare.")
    for other in found[1:]:
        _check_same_rows(found[0], other)
    return _told_apart(found)


def _read(given: str) -> list[Scored]:
    named = None if Path(given).expanduser().is_dir() else split_npz(given)
    if named:
        file, scorer = named
        scorers = names_in_npz(file) if scorer is None else [scorer]
        return [
            Scored(name, f"{file}:{name}", file.stem, f"{file}:{name}", read_scores(file, key=name)) for name in scorers
        ]
    path = Path(given).expanduser()
    if not path.is_dir():
        return [_read_table(given, path)]
    if (path / SCORES_FILE).is_file():
        return [_read_table(given, path / SCORES_FILE)]
    return [_read_run(given, path)]


def _read_table(given: str, file: Path) -> Scored:
    table = read_scores(file)
    folder = file.resolve().parent
    if file.name != SCORES_FILE:
        return Scored(file.stem, given, folder.name, str(file.resolve()), table)
    manifest = _json(folder / MANIFEST)
    return Scored(
        name=str(manifest.get("scorer", folder.name)),
        given=given,
        place=folder.name,
        source=str(file.resolve()),
        table=table,
        fingerprint=manifest.get("dataset_fingerprint"),
    )


def _read_run(given: str, folder: Path) -> Scored:
    result = read_result(folder) or {}
    if "scores" not in result:
        raise UserError(
            f"{given}: neither a scores folder ({SCORES_FILE}) nor a finished run of select or train ({RESULT} with "
            "scores); give one of these, a .parquet or .csv table, or FILE.npz:SCORER."
        )
    scores = result["scores"]
    if not isinstance(scores, str):
        raise UserError(
            f"{given}: this run chose without scores (selection={result.get('rule')}); give one that has some."
        )
    named = split_npz(scores)
    if not (named[0] if named else Path(scores)).exists():
        raise UserError(f"{given}: its scores, {scores}, are no longer there; give a run whose scores are.")
    scored = _read(scores)[0]
    scorer = result.get("scorer") or {}
    return replace(scored, name=str(scorer.get("name", scored.name)), given=given, place=folder.resolve().name)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_same_rows(one: Scored, other: Scored) -> None:
    a, b = one.table, other.table
    remedy = "give scores of the same rows."
    if len(a) != len(b):
        raise UserError(f"{other.given}: has {len(b):,} rows, {one.given} has {len(a):,}; {remedy}")
    if not np.array_equal(a.index, b.index):
        row = int(np.flatnonzero(a.index != b.index)[0])
        raise UserError(f"{other.given}: has index {b.index[row]} where {one.given} has index {a.index[row]}; {remedy}")
    if a.id is not None and b.id is not None and _content(a) == _content(b):
        differs = np.flatnonzero(a.id.to_numpy(zero_copy_only=False) != b.id.to_numpy(zero_copy_only=False))
        if len(differs):
            row = int(differs[0])
            raise UserError(
                f"{other.given}: row {a.index[row]} has id {b.id[row]}, in {one.given} it is {a.id[row]}; {remedy}"
            )
    prints = one.fingerprint, other.fingerprint
    if None not in prints and prints[0] != prints[1]:
        short = [str(p)[:12] for p in prints]
        raise UserError(
            f"{other.given}: is of the data set with fingerprint {short[1]}, {one.given} of {short[0]}; {remedy}"
        )


def _content(table: ScoreTable) -> bool:
    """Whether ids are hashes of contents; ids of the user's own are compared among themselves only."""
    return CONTENT_ID.fullmatch(table.id[0].as_py()) is not None


def _told_apart(found: list[Scored]) -> list[Scored]:
    for distinction in (lambda scored, _: scored.place, lambda _, number: f"#{number}"):
        count = Counter(scored.name for scored in found)
        seen: Counter[str] = Counter()
        for i, scored in enumerate(found):
            seen[scored.name] += 1
            if count[scored.name] > 1:
                found[i] = replace(scored, name=f"{scored.name} ({distinction(scored, seen[scored.name])})")
    return found


def read_clusters(given: str, index: NDArray[np.int64]) -> NDArray[np.int32]:
    """Clusters from a file: one for every row, below 0 for none.

    Args:
        given: a Parquet or CSV table with a column `cluster` (and `index`, where rows are in another order), the run
            folder of a selection, or a NumPy archive with an array `cluster` (or FILE.npz:NAME).
        index: row numbers of the tables of scores.

    Raises:
        UserError: no such file or column, or clusters of other rows.
    """
    named = split_npz(given)
    place: NDArray[np.int64] | None = None
    if named:
        cluster = pa.array(np.atleast_1d(read_array(named[0], named[1] or "cluster")))
    else:
        columns = _cluster_columns(given)
        cluster = columns["cluster"].combine_chunks()
        if "index" in columns.column_names and not columns["index"].null_count:
            place = columns["index"].to_numpy()
    if cluster.null_count:
        raise UserError(f"--clusters {given}: {cluster.null_count:,} rows have no cluster; say -1 for rows in none.")
    whole = pa.types.is_integer(cluster.type) and len(cluster) and abs(cluster.to_numpy()).max() <= INT32_MAX
    code_N = cluster.to_numpy().astype(np.int32) if whole else cluster_codes(cluster)
    if place is not None:
        order = np.argsort(place, kind="stable")
        place, code_N = place[order], code_N[order]
    if len(code_N) != len(index) or (place is not None and not np.array_equal(place, index)):
        raise UserError(
            f"--clusters {given}: has clusters of {len(code_N):,} rows, the tables have {len(index):,}; give a cluster "
            "for each of their rows."
        )
    return code_N


def _cluster_columns(given: str) -> pa.Table:
    file = Path(given).expanduser()
    if file.is_dir():
        sealed = (read_result(file) or {}).get("sha256")
        file = file / SELECTION
        if isinstance(sealed, dict) and SELECTION in sealed:
            try:
                check_files(file.parent, {SELECTION: sealed[SELECTION]})
            except Damaged as damage:
                raise damage.with_hint("select again") from None
    if not file.is_file():
        raise UserError(f"--clusters {given}: no such file. Give a .parquet or .csv table, or FILE.npz.")
    try:
        if file.suffix == ".csv":
            from pyarrow import csv

            table = csv.read_csv(file)
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"--clusters {given}: cannot be read ({printable_line(error)}). Give a whole table.") from error
    if "cluster" not in table.column_names:
        raise UserError(f"--clusters {given}: has no column cluster; give a table that has one.")
    return table
