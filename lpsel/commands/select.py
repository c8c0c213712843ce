"""`lpsel select`: load or compute scores and clusters, select rows, and write the selection folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lpsel.clustering.near_duplicates import near_duplicates, sample
from lpsel.commands import result_summary
from lpsel.commands.arguments import SELECTION
from lpsel.commands.job import Job
from lpsel.commands.selection_inputs import Inputs, load_table, prepare_inputs
from lpsel.commands.tracked_values import log_diagnosis, log_rows, log_scores
from lpsel.config import build
from lpsel.console import as_text, lines
from lpsel.data.paths import absolute
from lpsel.data.subset import write_subset
from lpsel.distributed import is_main_process
from lpsel.model.spec import ModelSpec
from lpsel.scoring.store import Scores
from lpsel.selection.diagnosis import diagnosis
from lpsel.selection.select import Selection, select
from lpsel.selection.summary import ends, examples, summary
from lpsel.storage import sha256_of, write_atomically
from lpsel.tracking.artifacts import Artifact, scores_artifact, subset_artifact
from lpsel.tracking.tracker import Tracker

log = logging.getLogger(__name__)

# Ids and scores do not compress, and trying takes longer than writing them.
PARQUET_OPTIONS: dict[str, Any] = {
    "use_dictionary": ["bucket", "reason", "response_tokens"],  # columns with few different values
    "column_encoding": {"index": "DELTA_BINARY_PACKED"},
    "compression": dict.fromkeys(["cluster", "bucket", "selected", "reason", "rank", "response_tokens"], "snappy"),
}


def run(job: Job) -> dict[str, Any]:
    inputs = prepare_inputs(job.config, job.cache_dir, job.training_setup, tokens_of=build(job.config.scorer))
    job.start_tracking()
    table, scores = load_table(inputs)
    selection = select(table, inputs.spec, inputs.pct, inputs.seed)
    if not is_main_process():
        return {}
    written = write_selection(inputs, selection, scores, job.run_dir, job.tracker, job.tracker.log_artifact)
    result = {"command": "select"} | written
    log.info(as_text(lines(result_summary.run(result))))
    return result


def write_selection(
    inputs: Inputs,
    selection: Selection,
    scores: Scores | None,
    run_dir: Path,
    tracker: Tracker,
    track_subset: Callable[[Artifact], None],
) -> dict[str, Any]:
    """Write and track a selection folder; returns its part of result.json.

    Args:
        track_subset: the tracker's log_artifact, or use_artifact if the run then trains on the subset.
    """
    source, table_path = inputs.source, run_dir / SELECTION
    write_atomically(table_path, lambda file: pq.write_table(selection.to_arrow(), file, **PARQUET_OPTIONS))
    positions = ends(selection, inputs.seed)
    shown = selection.table.index[np.concatenate([*positions.values()])].tolist()
    compared = selection.table.index[sample(np.flatnonzero(selection.selected))].tolist()
    subset_path, seen = write_subset(source, selection.selected, run_dir, shown, compared)
    statistics = summary(selection, seen.mean_characters(selection.selected, selection.table.usable))
    diagnosed = diagnosis(selection, seen.characters, near_duplicates([*seen.texts.values()]))
    hashes = {path.name: sha256_of(path) for path in (subset_path, table_path)}

    parents = [scores_artifact(scores.folder, scores.manifest())] if scores else []
    for parent in parents:
        tracker.use_artifact(parent)
    log_scores(tracker, selection.table)
    log_rows(tracker, selection, positions, seen.rows)
    log_diagnosis(tracker, diagnosed)
    metadata = {**statistics, "made from": [parent.name for parent in parents]}
    track_subset(subset_artifact(subset_path, hashes[subset_path.name], metadata))
    spec = source.spec
    dataset = {"name": spec.name, "path": absolute(spec.path), "license": spec.license}
    return {
        **statistics,
        "diagnosis": diagnosed,
        "examples": examples(selection, {row: example.instruction() for row, example in seen.rows.items()}, positions),
        "bucket": inputs.spec.bucket,
        "subset": subset_path,
        "selection": table_path,
        "sha256": hashes,
        **_origin_of(scores, inputs),
        "dataset": dataset | {"commit": source.commit, "fingerprint": source.fingerprint},
        "query": _query(inputs),
        "seed": inputs.seed,
    }


def _query(inputs: Inputs) -> dict[str, Any] | None:
    """Describe the examples of the user's task, and how many of them the dataset contains."""
    if inputs.query is None:
        return None
    query, overlap = inputs.query, inputs.query_in_data
    return {"path": query.spec.path, "rows": len(query), "fingerprint": query.fingerprint, "rows_in_data": overlap}


def _origin_of(scores: Scores | None, inputs: Inputs) -> dict[str, Any]:
    """Describe the origin of the scores, and the cost of computing them, in this run or an earlier one."""
    if scores is None:
        return {"scores": inputs.scores_file, "scorer": None, "scores_reused": None, "scoring": None}
    manifest = scores.manifest()
    cost = ("tokens", "flops", "seconds", "device_seconds", "peak_memory_bytes")
    return {
        "scores": scores.table,
        "scorer": describe_model(inputs.scorer) | {"template": manifest["template"]},
        "scores_reused": scores.reused,
        "scoring": {name: manifest[name] for name in cost},
    }


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """Describe a model so that a later command can use it in the same way."""
    names = ("name", "path", "revision", "template", "max_length", "trust_remote_code", "bin_weights")
    return {name: getattr(spec, name) for name in names}
