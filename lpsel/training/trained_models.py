"""Models that were trained before: a sweep finds the one that its job would train again."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from lpsel.data.content_ids import fingerprint
from lpsel.distributed import agree, is_main_process
from lpsel.integrity import Damaged, check_files, check_format
from lpsel.model.adapter import ADAPTER
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.spec import ModelSpec
from lpsel.storage import digest, folder_atomically, sha256_of, write_json
from lpsel.tracking.artifacts import model_artifact
from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)

FORMAT = 2  # of trained models: raised when the same training would give other weights
MODEL = "model"


def training_key(
    setup: TrainingSetup,
    target: ModelSpec,
    path: str,
    adapter_settings: Any,
    ids: pa.LargeStringArray,
    selected_N: NDArray[np.bool_],
) -> str:
    """A digest of all that a target's weights depend on: the model, the chosen rows in order, and how it is trained."""
    return digest(
        {
            "format": FORMAT,
            "model": model_fingerprint(path, target.revision, setup.cache_dir),
            "rows": fingerprint(ids.filter(pa.array(selected_N))),
            "index": np.flatnonzero(selected_N).tolist(),
            "template": target.template,
            "max_length": target.max_length,
            "recipe": asdict(target.recipe),
            "optimizer": setup.optimizer_settings,
            "adapter": adapter_settings,
            "precision": setup.precision,
        }
    )[:32]


def trained_once(
    setup: TrainingSetup, key: str, train: Callable[[], dict[str, Any]], *, from_any_run: bool
) -> dict[str, Any]:
    """What `train` returns, a part of result.json; or what it returned in an earlier run, of this folder or in a sweep.

    An earlier run's model is linked into this run's folder, so that either folder may go. Of runs that start together
    one trains, with checkpoints of its own, and the others wait for it.
    """
    kept = setup.cache_dir / "trained" / f"{key}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(kept.with_suffix(".lock"))

    def look() -> dict[str, Any] | None:
        if is_main_process():
            lock.acquire()
        return _find(kept, None if from_any_run else setup.run_dir)

    try:
        found = agree(look)
        if found is None:
            made = train()
            if is_main_process():
                folders = [name for name in (MODEL, ADAPTER) if (setup.run_dir / name).is_dir()]
                files = {name: _hashes(setup.run_dir / name) for name in folders}
                write_json(kept, {"format": FORMAT, "run": str(setup.run_dir), "files": files, "made": made})
            return made | {"reused_from": None} if made else {}
        if not is_main_process():
            return {}
        run, made = Path(found["run"]), found["made"]
        here = run == setup.run_dir
        for name in found["files"]:
            _link(run / name, setup.run_dir / name)
        log.info("Target: trained before in the same way; reused from %s", run)
        made |= {"reused_from": None if here else str(run)}
        if made["model"]:
            made["model"] = str(setup.run_dir / MODEL)
        if made["adapter"]:
            made["adapter"]["folder"] = str(setup.run_dir / ADAPTER)
        first = next(run / name for name in found["files"])
        model = model_artifact(made["artifact"], first, made["training"])
        (setup.tracker.log_artifact if here else setup.tracker.use_artifact)(model)
        return made
    finally:
        if is_main_process() and lock.is_locked:
            lock.release()


def _find(kept: Path, run_dir: Path | None) -> dict[str, Any] | None:
    """What is known of an earlier training, of this run folder or any, whose files are as it left them; they are read.

    One whose run folder is gone is nothing to speak of, one that has changed is.
    """
    if not kept.is_file():
        return None
    try:
        known = check_format(kept, FORMAT)
        if run_dir is not None and known["run"] != str(run_dir):
            return None
        folders = {name: (Path(known["run"]) / name, hashes) for name, hashes in known["files"].items()}
        if not folders or not all(folder.is_dir() for folder, _ in folders.values()):
            return None
        for folder, hashes in folders.values():
            check_files(folder, hashes)
            if more := {file.name for file in folder.iterdir() if file.is_file()} - hashes.keys():
                raise Damaged(folder / min(more), problem="did not exist when training ended")
    except Damaged as damage:
        log.warning("Target: %s Training again.", damage)
        return None
    return known


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.is_file()}


def _link(there: Path, here: Path) -> None:
    """The same files under another name, without a copy where the file system can do that."""
    if there == here:
        return

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with folder_atomically(here) as folder:
        shutil.copytree(there, folder, copy_function=link, dirs_exist_ok=True)
