"""A sweep: where its jobs go, one job among others, and what became of all of them.

A job that is done already is found, one that fails is written down, and the next one starts. A launcher may run jobs in
other processes or on other machines, so each leaves its outcome as a file in the sweep's folder.
"""

import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lpsel.commands.job import Job
from lpsel.distributed import agree, is_main_process, started_together
from lpsel.errors import UserError, file_errors, first_line
from lpsel.run_config import WHERE_AND_HOW, unused_keys
from lpsel.storage import digest, write_atomically, write_json

log = logging.getLogger(__name__)

OUTCOMES, PLANS = ".jobs", ".plans"
LOCAL = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
ERROR = "error.txt"
LONGEST_NAME = 100  # characters of a job's folder; file systems take 255 bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        number: in the sweep, from 0.
        folder: its run folder.
        state: done, found (was done before), failed, or planned by a dry run.
        reason: why it failed, in one line.
        mistake: whether the user can mend that.
        plan: the work that a dry run found in it.
    """

    number: int
    folder: str
    state: str
    reason: str = ""
    mistake: bool = False
    plan: list[dict[str, Any]] = field(default_factory=list)


class Watch(Callback):
    """Tells `lpsel.cli` which sweep Hydra has run, since Hydra returns nothing, and when it is about to run one job.

    Attributes:
        before_run: called with the configuration before Hydra writes anything. Hydra ignores its exceptions, but not
            SystemExit.
    """

    sweep: DictConfig | None = None
    before_run: Callable[[DictConfig], None] | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        if Watch.before_run is not None:
            Watch.before_run(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Watch.sweep = config
        if is_main_process():
            shutil.rmtree(_outcomes(folder_of(config), config), ignore_errors=True)
        if config.get("dry_run"):  # here, whatever the jobs themselves would be started with
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.launcher = LOCAL


def folder_of(sweep: DictConfig) -> Path:
    """The sweep's folder; asking for it here first makes it that of every job, which has other overrides."""
    HydraConfig.instance().set_config(sweep)
    return Path(str(sweep.hydra.sweep.dir)).expanduser().resolve()


def _outcomes(folder: Path, config: DictConfig) -> Path:
    """Where the jobs' outcomes are; a dry run has its own, and leaves those of a sweep that runs alone."""
    return folder / (PLANS if config.get("dry_run") else OUTCOMES)


def run_one(command: str, config: DictConfig, mistakes: tuple[type[Exception], ...]) -> None:
    """Run one job of a sweep, or find that it is done; never raises what only this job suffers from."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    outcomes = _outcomes(Path(str(hydra.sweep.dir)).expanduser().resolve(), config)

    def ended(state: str, **more: Any) -> None:
        if is_main_process():
            outcomes.mkdir(parents=True, exist_ok=True)
            outcome = Outcome(int(hydra.job.num), str(folder.resolve()), state, **more)
            write_json(outcomes / f"{outcome.number}.json", asdict(outcome))

    try:
        if config.get("dry_run"):
            from lpsel.commands.dry_run import planned

            work = planned(command, config, folder)
            problem = next((piece.problem for piece in work or () if piece.problem), "")
            state = "found" if work is None else "failed" if problem else "planned"
            ended(state, reason=problem, mistake=True, plan=[asdict(piece) for piece in work or ()])
            return
        with _alone(hydra, config), file_errors():
            found = _run_or_find(command, config, folder)
        ended("found" if found else "done")
        if is_main_process():
            print(folder.resolve(), flush=True)
    except Exception as error:
        mistake = isinstance(error, mistakes)
        reason = " ".join(str(error).split()) if mistake else f"{type(error).__name__}: {first_line(error)}"
        ended("failed", reason=reason, mistake=mistake)
        log.error("Failed: %s", reason)
        if not mistake:
            write_atomically(folder / ERROR, lambda file: file.write(traceback.format_exc().encode(errors="replace")))
            log.error("Where: %s", folder / ERROR)
        if os.environ.get("LPSEL_DEBUG"):
            traceback.print_exc()
    finally:
        if "torch" in sys.modules:
            from lpsel.model.device import free_memory

            free_memory()


def _run_or_find(command: str, config: DictConfig, folder: Path) -> bool:
    """Whether the job was done before."""
    from filelock import FileLock

    job = Job.of(command, config, folder, in_sweep=True)
    lock = FileLock(folder / ".lock")  # two calls of the same sweep, or two jobs that come to the same

    def look() -> bool:
        if is_main_process():
            lock.acquire()
        return job.asked().finished(folder) is not None

    try:
        if agree(look):
            log.info("Done before: %s", folder)
            return True
        (folder / ERROR).unlink(missing_ok=True)
        job.run()
        return False
    finally:
        if is_main_process():
            lock.release()


@contextmanager
def _alone(hydra: Any, config: DictConfig) -> Iterator[None]:
    """Let the ranks that Lightning starts for this job run this job only, and leave nothing of them to the next.

    Lightning gives them this process's arguments and Hydra's run folder.
    """
    trainer = config.get("trainer", {})
    alone = str(trainer.get("devices")) in ("1", "auto") or started_together()
    if not alone and "joblib" in str(hydra.launcher.get("_target_")):
        raise UserError(
            f"trainer.devices={trainer.devices}: hydra/launcher=joblib runs jobs side by side, each on one device; say "
            "trainer.devices=1, or leave the launcher out."
        )
    arguments, environment = sys.argv[1:], dict(os.environ)
    sys.argv[1:] = [*hydra.overrides.task, "hydra.mode=RUN"]
    with read_write(hydra), open_dict(hydra):
        hydra.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        sys.argv[1:] = arguments
        if not started_together():
            os.environ.clear()
            os.environ.update(environment)
            if (distributed := sys.modules.get("torch.distributed")) and distributed.is_initialized():
                distributed.destroy_process_group()


def outcomes_of(sweep: DictConfig) -> list[Outcome]:
    """The outcomes of a sweep's last call, one for each run folder, in the order of the jobs."""
    files = _outcomes(folder_of(sweep), sweep).glob("[!.]*.json")
    read = [Outcome(**json.loads(file.read_text())) for file in files]
    first: dict[str, Outcome] = {}
    for outcome in sorted(read, key=lambda o: o.number):
        first.setdefault(outcome.folder, outcome)
    return list(first.values())


def show(outcomes: Sequence[Outcome], sweep: DictConfig) -> None:
    """Print what became of the jobs, or of a dry run what they would do."""
    from rich.table import Table
    from rich.text import Text

    from lpsel import console

    if sweep.get("dry_run"):
        from lpsel.commands.plan import Work, show_plan

        understood = [o for o in outcomes if o.state != "failed" or o.plan]
        work = [None if o.state == "found" else [Work(**piece) for piece in o.plan] for o in understood]
        show_plan([(Path(o.folder).name, w) for o, w in zip(understood, work, strict=True)], "experiment" in sweep)
        for reason in dict.fromkeys(o.reason for o in outcomes if o.reason):
            print(reason, file=sys.stderr)
        return
    table = Table("job", "outcome", "reason", box=None, padding=(0, 2, 0, 0))
    for outcome in outcomes:
        table.add_row(*(Text(console.printable(t)) for t in (Path(outcome.folder).name, outcome.state, outcome.reason)))
    console.show(table)
    if failed := sum(outcome.state == "failed" for outcome in outcomes):
        print(f"{failed} of {len(outcomes)} jobs failed; the same command again runs only these.", file=sys.stderr)


def sweep_name(overrides: Any, params: Any) -> str:
    """The folder of a sweep: what it is over and a digest of all it was asked, the same at every call."""
    given = _by_key([*(f"{key}={value}" for key, value in (params or {}).items()), *overrides])
    experiment = given.get("experiment")
    asked = {key: value for key, value in given.items() if _matters(key) or key == "experiment"}
    swept = [key for key, value in asked.items() if "," in value or "range(" in value]
    return f"{_safe(experiment or '-'.join(swept) or 'sweep')[:60]}-{_short(asked)}"


def job_name(overrides: Any, command: str, *, _root_: DictConfig) -> str:
    """The folder of a job inside its sweep's: its overrides, as far as this job looks at them.

    So jobs that come to the same are one: training on everything is the same for every share.
    """
    unused = unused_keys(command, _root_)
    kept = {key: value for key, value in _by_key(overrides).items() if _matters(key) and _group(key) not in unused}
    told = ",".join(f"{key}={value}" for key, value in kept.items())
    name = _safe(",".join(f"{key}={value.rsplit('/', 1)[-1]}" for key, value in kept.items()))
    if name == told and len(name) <= LONGEST_NAME:
        return name or "job"
    return f"{name[: LONGEST_NAME - 9]}-{_short(kept)}"


def _by_key(overrides: Any) -> dict[str, str]:
    """Key -> value, sorted; of several for a key the last, as in Hydra."""
    return dict(sorted(tuple(override.lstrip("+").split("=", 1)) for override in overrides if "=" in override))


def _matters(key: str) -> bool:
    """Whether an override is about what is run, and not where and how."""
    return key == "trainer.precision" or _group(key) not in (*WHERE_AND_HOW, "trainer")


def _group(key: str) -> str:
    return re.split("[.@]", key, maxsplit=1)[0]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._,=+-]+", "-", name)


def _short(asked: dict[str, str]) -> str:
    return digest(asked)[:8]


OmegaConf.register_new_resolver("lpsel_sweep", sweep_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("lpsel_job", job_name, replace=True)
