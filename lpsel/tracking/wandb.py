"""Weights & Biases: a run per command, artifacts with their parents (`tracker=wandb`)."""

import json
import logging
import netrc
import os
import re
import secrets
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
from lpsel.redact import redact
from lpsel.storage import finite, write_json
from lpsel.tracking.artifacts import Artifact
from lpsel.tracking.tracker import Distribution, Logged, Picture, Rows, Tracker

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
KEPT = Path("wandb") / "lpsel.json"  # in the run folder: which W&B run it is
BINS = 64
OUTSIDE = 1  # percent of the values at either end that the outermost bins take in
LAST_UPLOAD = 1800.0  # seconds that the end of a run waits for a server; what is left stays in the run folder
STEPS = {"scorer/*": "trainer/global_step", "target/*": "trainer/global_step", "records/*": "records/epoch"}
REMEDY = "say tracker.mode=offline or tracker=none"
SECONDS = 15  # to wait for the server's first answer; wandb itself tries for a minute and a half


class WandbTracker(Tracker):
    """Tracks a run with Weights & Biases, offline where there is no account or no server, and never asks.

    Parents are linked by content: an artifact that a run used is declared with the name and the files its maker gave
    it, which the server recognises as the same version. So lineage also survives offline runs that are synced later.
    The names stand in the run's configuration too, under `parents`.

    The id of the W&B run is kept in the run folder until the command has come to its end: the same command in the same
    folder goes on with the same W&B run.

    Args:
        project, entity, group, tags: as wandb.init takes them.
        mode: online, offline, or None for online where there is an account and a server that takes it.
    """

    keeps = True

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        asked = mode or os.environ.get("WANDB_MODE")
        if asked not in (None, *MODES):
            raise UserError(
                f"tracker.mode={asked}: must be online or offline; to switch tracking off say tracker=none."
            )
        if asked == "online" and not has_account():
            raise UserError(
                "tracker.mode=online: there is no account; run wandb login, set WANDB_API_KEY or leave it out."
            )
        self.must_be_online = asked == "online"
        self.mode: Any = asked or ("online" if has_account() else "offline")
        self.project, self.entity, self.group, self.tags = project, entity, group, list(tags)
        self.run: Any = None
        self.parents: list[str] = []

    def start(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None = None) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        ours = sys.excepthook
        self.kept = run_dir / KEPT
        arguments = self._arguments(job, config, run_dir, group)
        try:
            if self.mode == "online":
                _check_server()
            self.run = wandb.init(**arguments, mode=self.mode)
        except (wandb.errors.Error, ConnectionError) as error:
            said = first_line(error)
            why = type(error).__name__ if said == "<no message>" else redact(said)
            if self.mode != "online" or self.must_be_online:
                raise UserError(f"tracker=wandb: no run can be started ({why}); {REMEDY}.") from error
            log.warning("Tracking: W&B cannot be reached (%s); this run is tracked offline", why)
            self.mode = "offline"
            wandb.teardown()  # its service would say that the run's id is in use
            self.run = wandb.init(**arguments, mode=self.mode)
        sys.excepthook = ours  # wandb's prints tracebacks as they are, with a key that a server sent back
        self.directory = Path(self.run.dir).parent
        for names, step in STEPS.items():
            self.run.define_metric(step, hidden=True)
            self.run.define_metric(names, step_metric=step)
        self._keep(finished=False)

    def _arguments(self, job: str, config: dict[str, Any], run_dir: Path, group: str | None) -> dict[str, Any]:
        import wandb

        return dict(
            project=self.project,
            entity=self.entity,
            group=self.group or group,
            tags=[job, *self.tags],
            job_type=job,
            id=unfinished(run_dir) or secrets.token_hex(8),
            resume="allow",
            name=run_dir.name,
            config=json.loads(redact(json.dumps(config))),
            dir=run_dir,
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                disable_code=True,
                finish_timeout=LAST_UPLOAD,
            ),
        )

    def _keep(self, finished: bool) -> None:
        of = {"id": self.run.id, "project": self.project, "entity": self.run.entity or self.entity}
        write_json(self.kept, of | {"finished": finished})

    def log(self, values: Mapping[str, Logged], step: int | None = None) -> None:
        made = {name: value for name, given in values.items() if (value := _as_wandb(given)) is not None}
        self.run.log(made if step is None else made | {"trainer/global_step": step})

    def used(self, artifact: Artifact) -> None:
        self.parents.append(f"{artifact.kind}: {artifact.name}")
        self.run.config.update({"parents": self.parents}, allow_val_change=True)
        # use_artifact refuses to work offline and waits for the server online; this is the record that it writes.
        self.run._log_artifact(_wandb_artifact(artifact), is_user_created=True, use_after_commit=True)

    def made(self, artifact: Artifact) -> None:
        self.run.log_artifact(_wandb_artifact(artifact))

    def finish(self, result: Mapping[str, Any] | None) -> str | None:
        if self.run is None:
            return None
        if result is not None:
            self.run.summary.update({"result": finite(dict(result))})
        self._keep(finished=result is not None)
        self.run.finish(exit_code=0 if result is not None else 1)
        if self.mode == "offline":
            return f"Tracked offline; to upload: wandb sync {self.directory}"
        return f"Tracked at {self.run.url}" if self.run.url else None


def known(run_dir: Path) -> dict[str, Any] | None:
    """Id, project and entity of the W&B run that a run folder has, None where it has none."""
    try:
        of = json.loads((run_dir / KEPT).read_text())
    except (OSError, ValueError):
        return None
    return of if isinstance(of, dict) and isinstance(of.get("id"), str) else None


def unfinished(run_dir: Path) -> str | None:
    """The id of the W&B run that a run folder's command began and did not finish."""
    of = known(run_dir)
    return str(of["id"]) if of is not None and not of.get("finished") else None


def has_account() -> bool:
    """Whether an API key or token for the W&B server is in the environment or in the user's netrc file."""
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
    """See that something answers there, whatever it says; wandb itself would try for a minute and a half."""
    try:
        urlopen(_server(), timeout=SECONDS).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, SSLError):  # there it is; wandb has certificates of its own
            return
        raise ConnectionError(f"{_server()} does not answer: {reason}") from error


def _as_wandb(value: Logged) -> Any:
    import wandb

    if isinstance(value, Rows):
        return wandb.Table(columns=list(value.columns), data=[list(row) for row in value.rows], allow_mixed_types=True)
    if isinstance(value, Distribution):
        return _histogram(value.values)
    if isinstance(value, Picture):
        return wandb.Image(str(value.path))
    return value


def _histogram(values: ArrayLike) -> Any:
    """None where no value is finite. A few far values would leave the others one bin: they are in the outermost."""
    import wandb

    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    numbers = np.clip(numbers, *np.percentile(numbers, [OUTSIDE, 100 - OUTSIDE]))
    return wandb.Histogram(np_histogram=np.histogram(numbers, bins=BINS))


def _safe(name: str) -> str:
    """A name W&B takes: letters, digits, dots, dashes and underscores, at most 128; a longer one keeps its end."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[-128:]


def _wandb_artifact(artifact: Artifact) -> Any:
    import wandb

    made = wandb.Artifact(_safe(artifact.name), type=artifact.kind, metadata=finite(artifact.metadata))
    if artifact.by_reference:
        made.add_reference(artifact.path.resolve().as_uri(), max_objects=1000)
    elif artifact.path.is_dir():
        made.add_dir(str(artifact.path), policy="immutable")  # read where it lies: a copy would fill the home folder
    else:
        made.add_file(str(artifact.path), policy="immutable")
    return made
