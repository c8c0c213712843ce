"""Weights & Biases tracker: one W&B run per command, with its artifacts and their lineage (`tracker=wandb`)."""

import logging
import netrc
import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np

from lpsel.errors import UserError, first_line
from lpsel.redact import redacted
from lpsel.storage import finite, read_dict, write_json
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.tracker import Distribution, Logged, Rows, Tracker

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
RUN_FILE = Path("wandb") / "lpsel.json"  # in the run folder: the id of its W&B run
BINS = 64
CLIPPED = 1  # percent of the values at each end that are clipped into the outermost bins
UPLOAD_SECONDS = 1800.0  # timeout for uploads at the end of a run; the rest stays in the run folder
CONNECT_SECONDS = 15  # timeout for the server's first response; wandb itself retries for 90 seconds
STEPS = {"scorer/*": "trainer/global_step", "target/*": "trainer/global_step", "records/*": "records/epoch"}


class WandbTracker(Tracker):
    """Track a run with Weights & Biases; offline without an account or a server, and never prompts for input.

    Artifacts are linked by content: an input is declared with the same name and files as the output that created it,
    so the server recognizes it as the same version, and lineage is preserved when offline runs are synced later.

    The id of the W&B run is stored in the run folder, and an unfinished command resumes that run.

    Args:
        project, entity, group, tags: as for wandb.init.
        mode: online, offline, or None for online if an account and a server are available.

    Raises:
        UserError: the mode is unknown, or is online without an account.
    """

    enabled = True

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        requested = mode or os.environ.get("WANDB_MODE")
        if requested not in (None, *MODES):
            hint = "set tracker=none to turn tracking off"
            raise UserError("tracker.mode", requested, "must be online or offline", hint)
        if requested == "online" and not has_account():
            hint = "run wandb login, set WANDB_API_KEY or leave the mode out"
            raise UserError("tracker.mode", requested, "there is no W&B account", hint)
        self.must_be_online = requested == "online"
        self.mode: Any = requested or ("online" if has_account() else "offline")
        self.project, self.entity, self.group, self.tags = project, entity, group, list(tags)
        self.run: Any = None
        self.parents: list[str] = []

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        excepthook = sys.excepthook
        settings = wandb.Settings(silent=True, console="off", finish_timeout=UPLOAD_SECONDS)
        settings.save_code = False
        settings.disable_git = True
        settings.disable_code = True
        earlier = tracked_run(run_dir)
        resumed = earlier if earlier and not earlier.get("finished") else None
        arguments: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "group": self.group or group,
            "tags": [job, *self.tags],
            "job_type": job,
            "id": resumed["id"] if resumed else secrets.token_hex(8),
            "resume": "allow",
            "name": run_dir.name,
            "config": redacted(config),
            "dir": run_dir,
            "settings": settings,
        }
        self.run = self._init(arguments)
        sys.excepthook = excepthook  # wandb's hook prints tracebacks unredacted, which can contain a key
        self.directory, self.run_file = Path(self.run.dir).parent, run_dir / RUN_FILE
        for names, step in STEPS.items():
            self.run.define_metric(step, hidden=True)
            self.run.define_metric(names, step_metric=step)
        self._write_run_file(finished=False)

    def _init(self, arguments: dict[str, Any]) -> Any:
        """Start a W&B run; offline if the server cannot be reached, unless the user set mode=online."""
        import wandb

        try:
            if self.mode == "online":
                _check_server()
            return wandb.init(**arguments, mode=self.mode)
        except (wandb.errors.Error, ConnectionError) as error:
            message = first_line(error)
            reason = type(error).__name__ if message == "<no message>" else message
            if self.mode != "online" or self.must_be_online:
                hint = "set tracker.mode=offline or tracker=none"
                raise UserError("tracker", "wandb", f"cannot start a run ({reason})", hint) from error
            log.warning("Tracking: W&B cannot be reached (%s); this run is tracked offline", reason)
            self.mode = "offline"
            wandb.teardown()  # otherwise its service reports that the run's id is in use
            return wandb.init(**arguments, mode=self.mode)

    def _write_run_file(self, finished: bool) -> None:
        entity = self.run.entity or self.entity
        write_json(self.run_file, {"id": self.run.id, "project": self.project, "entity": entity, "finished": finished})

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        converted = {name: _to_wandb(value) for name, value in values.items()}
        logged = {name: value for name, value in converted.items() if value is not None}
        if step is not None:
            logged["trainer/global_step"] = step
        self.run.log(logged)

    def use_artifact(self, artifact: Artifact) -> None:
        self.parents.append(f"{artifact.kind}: {artifact.name}")
        self.run.config.update({"parents": self.parents}, allow_val_change=True)
        # run.use_artifact fails offline and blocks on the server online; this writes the same record.
        self.run._log_artifact(_wandb_artifact(artifact), is_user_created=True, use_after_commit=True)

    def log_artifact(self, artifact: Artifact) -> None:
        self.run.log_artifact(_wandb_artifact(artifact))

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self.run is None:
            return None
        if result is not None:
            self.run.summary.update({"result": finite(dict(result))})
        self._write_run_file(finished=result is not None)
        self.run.finish(exit_code=0 if result is not None else 1)
        if self.mode == "offline":
            folders = sorted(self.directory.parent.glob(f"offline-run-*-{self.run.id}"))  # one for each process
            return f"Tracked offline; to upload: wandb sync {shlex.join(map(str, folders))}"
        return f"Tracked at {self.run.url}" if self.run.url else None


def tracked_run(run_dir: Path) -> dict[str, Any] | None:
    """Return id, project, entity and `finished` of the W&B run of a run folder; None without one."""
    stored = read_dict(run_dir / RUN_FILE)
    return stored if isinstance(stored.get("id"), str) else None


def has_account() -> bool:
    """Whether the environment or the user's netrc file has an API key or token for the W&B server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(_server()).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _check_server() -> None:
    """Raise a ConnectionError unless the server responds, with any status."""
    try:
        urlopen(_server(), timeout=CONNECT_SECONDS).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, SSLError):  # a server responded; wandb brings its own certificates
            raise ConnectionError(f"{_server()} does not respond: {reason}") from error


def _to_wandb(value: Logged) -> Any:
    """Convert a value for wandb; None for a distribution without a finite value."""
    import wandb

    if isinstance(value, Rows):
        return wandb.Table(columns=list(value.columns), data=[list(row) for row in value.rows], allow_mixed_types=True)
    if isinstance(value, Path):
        return wandb.Image(str(value)) if value.suffix == ".png" else wandb.Html(str(value), inject=False)
    if isinstance(value, Distribution):
        numbers = np.asarray(value.values, dtype=np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return None
        clipped = np.clip(numbers, *np.percentile(numbers, [CLIPPED, 100 - CLIPPED]))  # outliers would stretch the bins
        return wandb.Histogram(np_histogram=np.histogram(clipped, bins=BINS))
    return value


def _wandb_artifact(artifact: Artifact) -> Any:
    import wandb

    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", artifact.name)[-128:]  # what wandb allows
    converted = wandb.Artifact(name, type=artifact.kind, metadata=finite(artifact.metadata))
    if artifact.by_reference:
        converted.add_reference(artifact.path.resolve().as_uri(), max_objects=1000)
    elif artifact.path.is_dir():
        converted.add_dir(str(artifact.path), policy="immutable")  # read in place instead of copied to the home folder
    else:
        converted.add_file(str(artifact.path), policy="immutable")
    return converted
