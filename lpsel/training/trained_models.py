"""Reuse trained models: a sweep does not train a model again if an earlier run trained it with the same settings."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.cache import Entry
from lpsel.data.content_ids import fingerprint
from lpsel.distributed import agree, is_main_process
from lpsel.integrity import Damaged, check_files
from lpsel.model.adapter import ADAPTER
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.spec import ModelSpec
from lpsel.storage import folder_atomically, read_json, sha256_of, write_json
from lpsel.tracking.artifacts import model_artifact
from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)

MODEL = "model"
TRAINING = "training.json"  # in an entry: the run folder, the SHA-256 of its model files, the part of result.json


def training_entry(
    setup: TrainingSetup,
    target: ModelSpec,
    path: str,
    adapter_settings: Any,
    ids: pa.LargeStringArray,
    selected_N: NDArray[np.bool_],
) -> Entry:
    """Return the cache entry of a training run; its key is the model, the selected rows in order, and all settings."""
    key = {
        "model": model_fingerprint(path, target.revision, setup.cache_dir),
        "rows": fingerprint(ids.filter(pa.array(selected_N))),
        "index": np.flatnonzero(selected_N).tolist(),
        "template": target.template,
        "max_length": target.max_length,
        "recipe": asdict(target.recipe),
        "optimizer": setup.optimizer,
        "adapter": adapter_settings,
        "precision": setup.precision(target, path),
    }
    return Entry.of(setup.cache_dir, "trained", key)


def checkpoints_of(entry: Entry) -> Path:
    """Return the folder for a training run's checkpoints, which exist until its result is on disk."""
    return entry.folder / "checkpoints"


def trained_once(
    setup: TrainingSetup, entry: Entry, train: Callable[[], dict[str, Any]], *, from_any_run: bool
) -> dict[str, Any]:
    """Reuse the training of an earlier run or call `train`; return the resulting part of result.json.

    The files of an earlier run's model are linked into this run's folder, so that either folder can be deleted. If
    several runs start at the same time, one of them trains and the others wait. Without `from_any_run`, which sweeps
    set, only an earlier run in the same folder is reused.
    """
    with ExitStack() as stack:

        def lock_and_find() -> dict[str, Any] | None:
            if is_main_process():
                stack.enter_context(entry.locked())
            return _find(entry, None if from_any_run else setup.run_dir)

        earlier = agree(lock_and_find)
        if earlier is not None:
            return _reuse(setup, earlier) if is_main_process() else {}
        result = train()
        if not is_main_process():
            return {}
        _record(setup.run_dir, entry, result)
        return result | {"reused_from": None}


def _record(run_dir: Path, entry: Entry, result: Mapping[str, Any]) -> None:
    """Record a finished training with the hashes of its model files."""
    folders = [folder for folder in (run_dir / MODEL, run_dir / ADAPTER) if folder.is_dir()]
    files = {folder.name: {file.name: sha256_of(file) for file in sorted(_files(folder))} for folder in folders}
    write_json(entry.folder / TRAINING, {"run": str(run_dir), "files": files, "result": result})
    entry.commit([TRAINING])


def _reuse(setup: TrainingSetup, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Link the model of an earlier run into this run's folder, and return that run's result with the new paths."""
    run, result = Path(earlier["run"]), earlier["result"]
    same_run = run == setup.run_dir
    if not same_run:
        for name in earlier["files"]:
            _link(run / name, setup.run_dir / name)
    log.info("Target: reused from %s, which was trained in the same way", run)
    result["reused_from"] = None if same_run else str(run)
    if result["model"]:
        result["model"] = str(setup.run_dir / MODEL)
    if result["adapter"]:
        result["adapter"]["folder"] = str(setup.run_dir / ADAPTER)
    folder = next(run / name for name in earlier["files"])
    model = model_artifact(result["artifact"], folder, result["training"])
    if same_run:
        setup.tracker.log_artifact(model)
    else:
        setup.tracker.use_artifact(model)
    return result


def _find(entry: Entry, run_dir: Path | None) -> dict[str, Any] | None:
    """Find the earlier training, in any folder or only in `run_dir`, if its model files are unchanged."""
    if entry.find() is None:
        return None
    earlier: dict[str, Any] = read_json(entry.folder / TRAINING)
    run, files = Path(earlier["run"]), earlier["files"]
    is_right_run = run_dir is None or run_dir == run
    exists = bool(files) and all((run / name).is_dir() for name in files)
    if not (is_right_run and exists):
        return None
    try:
        for name, hashes in files.items():
            check_files(run / name, hashes)
            if added := {file.name for file in _files(run / name)} - hashes.keys():
                raise Damaged(run / name / min(added), problem="was added after training")
    except Damaged as damage:
        log.warning("Target: %s Training it again.", damage)
        return None
    return earlier


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]


def _link(source: Path, target: Path) -> None:
    """Hard-link a folder's files into another folder, or copy them if the file system does not support links."""

    def link(file: str, new: str) -> None:
        try:
            os.link(file, new)
        except OSError:
            shutil.copy2(file, new)

    with folder_atomically(target) as folder:
        shutil.copytree(source, folder, copy_function=link, dirs_exist_ok=True)
