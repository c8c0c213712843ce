"""Weights & Biases: a run per command, artifacts with their parents (`tracker=wandb`)."""

import netrc
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
from numpy.typing import ArrayLike

from lpsel.errors import UserError, first_line
from lpsel.files import finite
from lpsel.tracking.base import Artifact, Tracker

MODES = ("online", "offline", "disabled")
HISTOGRAM_BINS = 64
REMEDY = "say tracker.mode=offline or tracker=none"
SECONDS = 15  # to wait for the server's first answer; wandb itself tries for a minute and a half


class WandbTracker(Tracker):
    """Tracks a run with Weights & Biases, offline where there is no account, and never asks.

    Parents are linked by content: an artifact that a run used is declared with the name and the files its maker gave
    it, which the server recognises as the same version. So lineage also survives offline runs that are synced later.
    The names stand in the run's configuration too, under `parents`.

    Args:
        project, entity, group, tags: as wandb.init takes them.
        mode: online, offline, or None for online where there is an account.
    """

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")
        if mode not in MODES:
            raise UserError(f"tracker.mode={mode}: must be online or offline; to switch tracking off say tracker=none.")
        self.project, self.entity, self.group, self.tags = project, entity, group, list(tags)
        self.run: Any = None
        self.parents: list[str] = []
        self.mode: Any = mode

    def start(self, job: str, config: dict[str, Any], run_dir: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        if self.mode == "online":
            _check_server()
        import wandb

        ours = sys.excepthook
        try:
            self.run = wandb.init(**self._arguments(job, config, run_dir))
        except wandb.errors.Error as error:
            said = first_line(error)
            reason = type(error).__name__ if said == "<no message>" else said
            raise UserError(f"tracker=wandb: no run can be started ({reason}); {REMEDY}.") from error
        sys.excepthook = ours  # wandb's prints tracebacks as they are, with a key that a server sent back
        self.directory = Path(self.run.dir).parent

    def _arguments(self, job: str, config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
        import wandb

        return dict(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=[job, *self.tags],
            job_type=job,
            name=run_dir.name,
            config=config,
            dir=run_dir,
            mode=self.mode,
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, disable_code=True),
        )

    def logger(self) -> Any:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(experiment=self.run)

    def log(self, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics))

    def histogram(self, name: str, values: ArrayLike) -> None:
        import wandb

        numbers = np.asarray(values, dtype=np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            self.run.log({name: wandb.Histogram(np_histogram=np.histogram(numbers, bins=HISTOGRAM_BINS))})

    def used(self, artifact: Artifact) -> None:
        self.parents.append(f"{artifact.kind}: {artifact.name}")
        self.run.config.update({"parents": self.parents}, allow_val_change=True)
        if self.mode == "offline":
            # use_artifact refuses to work offline; this is the record it writes online, and `wandb sync` sends it.
            self.run._log_artifact(_wandb_artifact(artifact), is_user_created=True, use_after_commit=True)
        else:
            self.run.use_artifact(_wandb_artifact(artifact))

    def made(self, artifact: Artifact) -> None:
        self.run.log_artifact(_wandb_artifact(artifact))

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self.run is None:
            return None
        if result is not None:
            self.run.summary.update({"result": finite(dict(result))})
        self.run.finish(exit_code=0 if result is not None else 1)
        if self.mode == "offline":
            return f"Tracked offline; to upload: wandb sync {self.directory}"
        return f"Tracked at {self.run.url}" if self.run.url else None


def has_account() -> bool:
    """Whether an API key for the W&B server is in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(_server()).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _check_server() -> None:
    """See that something answers there, whatever it says."""
    try:
        urlopen(_server(), timeout=SECONDS).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, SSLError):  # there it is; wandb has certificates of its own
            return
        raise UserError(f"tracker=wandb: {_server()} does not answer ({reason}); {REMEDY}.") from error


def _safe(name: str) -> str:
    """A name W&B takes: letters, digits, dots, dashes and underscores, at most 128; a longer one keeps its end."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[-128:]


def _wandb_artifact(artifact: Artifact) -> Any:
    import wandb

    made = wandb.Artifact(_safe(artifact.name), type=artifact.kind, metadata=finite(artifact.metadata))
    if artifact.by_reference:
        made.add_reference(artifact.path.resolve().as_uri(), max_objects=1000)
    elif artifact.path.is_dir():
        made.add_dir(str(artifact.path))
    else:
        made.add_file(str(artifact.path))
    return made
