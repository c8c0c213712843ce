"""Shared argument handling of the commands that take paths and flags."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from lpsel.data.content_ids import raw_digest
from lpsel.data.dataset import DatasetSpec, Row, Source
from lpsel.errors import UserError
from lpsel.integrity import Damaged, check_files
from lpsel.output_folder import check_output_folder, mark_output_folder
from lpsel.report.runs import nested
from lpsel.run_config import RUN_CONFIG, read_result
from lpsel.scoring.npz import split_npz
from lpsel.scoring.table import CONTENT_ID
from lpsel.storage import check_writable, read_dict

SELECTION = "selection.parquet"


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports errors as one-line user errors."""

    def error(self, message: str) -> NoReturn:
        name, _, problem = message.partition(": ")  # argparse: "unrecognized arguments: --wrong"
        raise UserError(name.removeprefix("argument "), problem=problem or "invalid", hint=f"see {self.prog} --help")


def run_folder(command: str, out: Path | None, inputs: Sequence[str | Path]) -> Path:
    """Create the folder named by `--out`, or one named by the current time; it must contain none of the `inputs`."""
    archives = [archive[0] for path in inputs if (archive := split_npz(str(path)))]  # of FILE.npz:NAME
    folder = out or Path("runs") / command / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = folder.expanduser().resolve()
    check_output_folder(folder, command, [*inputs, *archives], replaced=False)
    check_writable("--out", folder)
    mark_output_folder(folder, command)
    return folder


def result_of_run(folder: Path) -> dict[str, Any]:
    """Read the result of a finished run of select or train; raises a UserError for any other folder."""
    result = read_result(folder) or {}
    if "scores" not in result:
        hint = "pass a folder or file of scores, or the folder of a finished run"
        raise UserError(folder, None, "neither a scores folder nor a finished run of select or train", hint)
    return result


def scores_of_run(folder: Path, result: Mapping[str, Any]) -> Path:
    """Find the scores that a run of select or train used; raises a UserError if there are none."""
    if not isinstance(result["scores"], str):
        raise UserError(folder, None, f"this run used no scores (selection={result.get('rule')})", "pass another run")
    if not Path(result["scores"]).exists():
        raise UserError(folder, None, f"its scores {result['scores']} no longer exist", "pass another run")
    return Path(result["scores"])


def dataset_of_run(folder: Path, result: Mapping[str, Any], dataset: str | None) -> DatasetSpec:
    """Find the dataset that a run read, at the same commit; `dataset` is its new location, if it was moved."""
    try:
        config = read_dict(folder / RUN_CONFIG)["config"]["dataset"]
        spec = DatasetSpec(**{field.name: config[field.name] for field in fields(DatasetSpec) if field.name in config})
    except (KeyError, TypeError):
        raise UserError(folder / RUN_CONFIG, None, "does not name the dataset", "add --dataset FILE") from None
    path = nested(result, "dataset", "path") or spec.path
    spec = replace(spec, path=path, bad_rows="skip", revision=nested(result, "dataset", "commit"))
    return spec if dataset is None else replace(spec, path=dataset, revision=None, synthetic=None)


def checked_rows(source: Source, ids: Mapping[int, str | None]) -> Iterator[Row]:
    """Read the rows of a dataset with these numbers, in ascending order, and check their content ids.

    Args:
        ids: content ids by row number; None, or a user-defined id, for a row whose content cannot be checked.
    """
    missing = set(ids)
    for row in islice(source, max(ids, default=-1) + 1):
        if row.index in ids:
            content_id = row.example.content_id() if row.unusable is None else raw_digest(row.raw).hex()
            expected_id = ids[row.index] or ""
            if CONTENT_ID.fullmatch(expected_id) and expected_id != content_id:
                break
            missing.remove(row.index)
            yield row
    if missing:
        hint = "give the dataset of these scores with --dataset FILE"
        problem = f"row {min(missing)} is not the row that was scored"
        raise UserError("dataset", source.spec.path or source.spec.name, problem, hint)


def dataset_error(error: UserError) -> UserError:
    """Rename an error about the dataset to the option `--dataset`."""
    return error.renamed("--dataset") if error.name in ("dataset", "dataset.path") else error


def selection_of_run(folder: Path) -> Path:
    """Path of the selection.parquet in a run folder; checks that it has not changed since it was written."""
    hashes = (read_result(folder) or {}).get("sha256") or {}
    try:
        check_files(folder, {name: hashes[name] for name in [SELECTION] if name in hashes})
    except Damaged as damage:
        raise damage.with_hint("select again") from None
    return folder / SELECTION


def selection_table(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of `selection_of_run`; raises a UserError if one is missing."""
    path = selection_of_run(folder)
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, ValueError):
        problem = f"is missing or has no columns {', '.join(columns)}"
        raise UserError(path, None, problem, "select again") from None
