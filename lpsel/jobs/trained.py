"""Models that were trained before: a sweep finds the one that its job would train again."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from omegaconf import OmegaConf

from lpsel.config import Job
from lpsel.distributed import agree, is_main_process
from lpsel.files import digest, folder_atomically, write_json
from lpsel.model.adapter import ADAPTER
from lpsel.model.load import identity
from lpsel.model.spec import ModelSpec
from lpsel.tracking.base import Artifact

log = logging.getLogger(__name__)

FORMAT = 1  # of trained models: raised when the same training would give other weights
MODEL = "model"


def training_key(
    job: Job, target: ModelSpec, path: str, precision: str, ids: Sequence[str], selected_N: NDArray[np.bool_]
) -> str:
    """A digest of all that a target's weights depend on: the model, the chosen rows in order, and how it is trained."""
    return digest(
        {
            "format": FORMAT,
            "model": identity(path, target.revision),
            "rows": [row_id for row_id, chosen in zip(ids, selected_N, strict=True) if chosen],
            "index": np.flatnonzero(selected_N).tolist(),
            "template": target.template,
            "max_length": target.max_length,
            "recipe": asdict(target.recipe),
            "optimizer": OmegaConf.to_container(job.config.optimizer, resolve=True),
            "adapter": OmegaConf.to_container(job.config.adapter, resolve=True),
            "precision": precision,
        }
    )[:32]


def trained_once(job: Job, key: str, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `train` returns, a part of result.json; or, in a sweep, what it returned in an earlier run.

    An earlier run's model is linked into this run's folder, so that either folder may go. Of runs that start together
    one trains, with checkpoints of its own, and the others wait for it.
    """
    kept = job.cache_dir / "trained" / f"{key}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(kept.with_suffix(".lock"))

    def look() -> dict[str, Any] | None:
        if is_main_process():
            lock.acquire()
        return _find(kept) if job.in_sweep else None

    try:
        found = agree(look)
        if found is None:
            made = train()
            if is_main_process():
                folders = [name for name in (MODEL, ADAPTER) if (job.run_dir / name).is_dir()]
                files = {name: _state(job.run_dir / name) for name in folders}
                write_json(kept, {"run": str(job.run_dir), "files": files, "made": made})
            return made | {"reused_from": None} if made else {}
        if not is_main_process():
            return {}
        run = Path(found["run"])
        for name in found["files"]:
            _link(run / name, job.run_dir / name)
        log.info("Target: trained before in the same way; reused from %s", run)
        made = found["made"] | {"reused_from": str(run)}
        if made["model"]:
            made["model"] = str(job.run_dir / MODEL)
        if made["adapter"]:
            made["adapter"]["folder"] = str(job.run_dir / ADAPTER)
        first = next(run / name for name in found["files"])
        job.tracker.used(Artifact("model", made["artifact"], first, by_reference=True, metadata=made["training"]))
        return made
    finally:
        if is_main_process() and lock.is_locked:
            lock.release()


def _find(kept: Path) -> dict[str, Any] | None:
    """What is known of an earlier training whose files are all as it left them."""
    try:
        known = json.loads(kept.read_text())
        whole = all(_state(Path(known["run"]) / name) == files for name, files in known["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return known if whole and known["files"] else None


def _state(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of every file: what tells one that was written again."""
    about = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in about.items()}


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
