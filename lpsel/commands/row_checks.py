"""What a selection reads from rows without a model: numeric columns, prompts that rows share, checks for dry runs."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lpsel.clustering.clusters import Auto, Clusters, Column, NoClusters, brings_clusters
from lpsel.data.dataset import Row, Source
from lpsel.data.values import is_empty
from lpsel.errors import UserError
from lpsel.scoring.table import ScoreTable
from lpsel.selection.exclusions import Exclusions, exclude_texts
from lpsel.selection.spec import SelectionSpec

log = logging.getLogger(__name__)


def check_rows(spec: SelectionSpec, clusters: Clusters, source: Source, scores: ScoreTable | None) -> None:
    """Raise the UserError of a run whose rows lack a column or are all without an answer; models are not needed."""
    if spec.group is not None:
        prompt_numbers(source, spec.group)
    by_column = isinstance(clusters, Column) or (isinstance(clusters, Auto) and source.spec.cluster_column is not None)
    given_clusters = scores is not None and brings_clusters(scores, clusters)
    if isinstance(clusters, NoClusters):
        spec.check_without_clusters()
    elif by_column and spec.uses_clusters and not given_clusters:
        clusters.check(source.spec)
    numeric_columns(source, spec, scores)
    n = len(source)
    texts = ScoreTable(
        np.arange(n),
        source.ids,
        prompt_tokens=np.zeros(n, np.int32),
        response_tokens=np.where(source.no_answer, 0, 1),
        truncated=np.zeros(n, np.bool_),
        nll=np.empty((0, n)),
        unusable=source.unusable,
        empty_answer=source.empty_answer,
    )
    exclusions = Exclusions(n)
    exclude_texts(texts, replace(spec, min_response_tokens=None), exclusions)
    exclusions.check(spec.name)


def check_own_ids(scores: ScoreTable, source: Source) -> None:
    """Raise a UserError if the scores have the ids of the dataset's column `id`, but in a different order."""
    if scores.id is None or scores.has_content_ids:
        return
    raws = source.raw_rows()
    own_ids = pa.array([str(raw["id"]) if isinstance(raw, dict) and "id" in raw else None for raw in raws], pa.string())
    ids = scores.id.cast(pa.string())
    if own_ids.equals(ids) or not _sorted(own_ids).equals(_sorted(ids)):
        return
    row = pc.index(pc.not_equal(own_ids, ids), True).as_py()
    problem = f"row {row} has id {ids[row]}, but row {row} of dataset {source.spec.name} has {own_ids[row]}"
    raise UserError("scores", None, problem, "sort the scores like the dataset, or add the row numbers as column index")


def _sorted(ids: pa.Array) -> pa.Array:
    return ids.take(pc.sort_indices(ids))


def numeric_columns(source: Source, spec: SelectionSpec, scores: ScoreTable | None) -> dict[str, NDArray[np.float64]]:
    """Read the columns that a rule ranks by and the scores lack, (N,) each; raises a UserError for a missing number."""
    known = spec.records if scores is None else scores.columns
    names = [name for name in spec.columns if name is not None and name not in known]
    if not names:
        return {}
    numbers = np.fromiter((_number(row, name, spec) for row in source for name in names), np.float64)
    return dict(zip(names, numbers.reshape(-1, len(names)).T, strict=True))


def _number(row: Row, name: str, spec: SelectionSpec) -> float:
    if row.unusable is not None:
        return float("nan")
    problem = f"neither in scores= nor in row {row.index} of the dataset, which has {', '.join(map(str, row.raw))}"
    if name in row.raw:
        value = row.raw[name]
        try:
            return float("nan") if value is None or value == "" else float(value)
        except (TypeError, ValueError, OverflowError):
            problem = f"row {row.index} has {str(value)[:40]!r}"
    option = spec.option_of(name)
    hint = "name a numeric column" + (" or a rule" if option == "selection.combine" else "")
    raise UserError(option, name, problem, hint)


def prompt_numbers(source: Source, group: str) -> NDArray[np.float64]:
    """Prompt number of every row, (N,); unique for a row that is unusable or has no value in the column.

    Args:
        group: `prompt` for the text of the prompt, all turns before the last answer, or a column of the source.
    """
    numbers: dict[object, int] = {}
    number_N = np.fromiter((numbers.setdefault(_prompt(row, group), len(numbers)) for row in source), np.float64)
    if len(numbers) == len(number_N):
        hint = "set selection.group=COLUMN, or use another rule"
        raise UserError("selection.group", group, f"no two of {len(number_N):,} rows have the same prompt", hint)
    several = int((np.bincount(number_N.astype(np.int64)) > 1).sum())
    log.info("Prompts: %s different ones, %s with several answers", f"{len(numbers):,}", f"{several:,}")
    return number_N


def _prompt(row: Row, group: str) -> object:
    if row.unusable is not None:
        return ("row", row.index)
    if group == "prompt":
        return row.example.prompt().content_digest()
    if group not in row.raw:
        problem = f"row {row.index} has only {', '.join(map(str, row.raw))}"
        raise UserError("selection.group", group, problem, "name a column of every row, or prompt")
    value = row.raw[group]
    return ("row", row.index) if is_empty(value) else str(value)
