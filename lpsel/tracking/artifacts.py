"""Tracked artifacts: scores, subsets, models and evaluations, with names that link the runs that share them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a run created or used."""

    kind: str  # scores, subset, model or evaluation
    name: str  # identifies the content, so that a tracker can link runs through it
    path: Path  # complete, and not modified later
    by_reference: bool = False  # store only the path and checksums, for files that are too large to copy
    metadata: dict[str, Any] = field(default_factory=dict)


def scores_artifact(folder: Path, manifest: dict[str, Any]) -> Artifact:
    """A scores folder in the cache, named by the key of its content."""
    return Artifact("scores", f"scores-{folder.name}", folder, metadata=manifest)


def subset_artifact(path: Path, sha256: str, metadata: dict[str, Any]) -> Artifact:
    """A subset file, named by its SHA-256."""
    return Artifact("subset", f"subset-{sha256[:16]}", path, metadata=metadata)


def model_name(run_dir: Path) -> str:
    """Name of the model that a run trains, stored in result.json as `artifact`."""
    return f"model-{run_dir.parent.name}-{run_dir.name}"


def model_artifact(name: str, folder: Path, training: dict[str, Any] | None = None) -> Artifact:
    """A model or adapter folder, under the `model_name` of the run that trained it."""
    return Artifact("model", name, folder, by_reference=True, metadata=training or {})


def evaluation_artifact(path: Path, run_dir: Path) -> Artifact:
    """An output of an evaluation: generations or judgements."""
    return Artifact("evaluation", f"{path.stem}-{run_dir.name}", path)
