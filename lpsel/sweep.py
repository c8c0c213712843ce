"""Sweeps: running a job, and the outcomes of all jobs.

Finished jobs are skipped, and failed jobs are recorded without stopping the sweep. A launcher may run jobs in other
processes or on other machines, so each job writes its outcome to a file in the sweep's folder.
"""

import fcntl
import logging
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from rich.text import Text

from lpsel import console
from lpsel.command_line import check_run, fail, is_user_error
from lpsel.commands.job import Job, ranks_run
from lpsel.distributed import agree, at_end, is_main_process
from lpsel.errors import UserError, first_line, resource_errors
from lpsel.model.device import free_memory, use_one_device
from lpsel.output_folder import check_output_folder, mark_output_folder
from lpsel.redact import printable, redact
from lpsel.run_config import check_headers
from lpsel.storage import opened, read_dict, read_json, write_file, write_json
from lpsel.sweep_names import BETWEEN, sweep_name

log = logging.getLogger(__name__)

ERROR_FILE = "error.txt"
SWEEP_FILE = ".sweep.json"  # name of the sweep and number of jobs, in the folder of outcomes


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job."""

    number: int
    folder: str
    state: str  # done, already finished, failed, or planned by a dry run
    reason: str = ""  # why it failed, in one line
    user_error: bool = False  # whether the user can fix the failure
    plan: list[dict[str, Any]] = field(default_factory=list)  # work of its models, as `work_estimate.Work`
    selection: str = ""  # name in conf/selection


class SweepCallback(Callback):
    """Checks a run or sweep before Hydra writes files, and stores the sweep, which hydra.main does not return.

    Hydra ignores all exceptions except SystemExit.
    """

    sweep: DictConfig | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        command = os.environ["LPSEL_COMMAND"]
        try:
            check_run(command, config)
        except UserError as error:
            if not os.environ.get("LPSEL_DEBUG"):  # the job raises the same error
                fail(f"lpsel {command}", error)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepCallback.sweep = config
        if is_main_process():
            from lpsel.commands.experiment import check_evaluations

            HydraConfig.instance().set_config(config)
            folder = _outcomes_dir(config)  # resolved once, since the overrides differ between jobs
            try:
                check_headers(config)
                check_evaluations(config)
                check_output_folder(folder, "sweep", replaced=False)
                _prepare(folder, config)
            except UserError as error:
                error = error.renamed("hydra.sweep.dir") if error.name == "--out" else error
                fail(f"lpsel {os.environ['LPSEL_COMMAND']}", error)
        if config.get("dry_run"):  # runs in this process, with any launcher
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


def _prepare(folder: Path, config: DictConfig) -> None:
    """Create or clear the folder of outcomes; several calls of the same sweep that run at once share it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_file = Path(f"{folder}.lock")
    lock_file.touch()
    lock = at_end.enter_context(opened(lock_file))
    name = sweep_name(config.hydra.overrides.task, config.hydra.sweeper.get("params"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits until the other call has written the file
        if (running := read_dict(folder / SWEEP_FILE).get("sweep", name)) != name:  # its jobs have the same numbers
            problem, hint = f"another sweep is running in it ({running})", "wait, or name another folder"
            raise UserError("hydra.sweep.dir", sweep_dir(), problem, hint) from None
    folder.mkdir(exist_ok=True)
    mark_output_folder(folder, "sweep")
    write_json(folder / SWEEP_FILE, {"sweep": name, "jobs": _number_of_jobs(config)})
    fcntl.flock(lock, fcntl.LOCK_SH)


def _number_of_jobs(config: DictConfig) -> int | None:
    """Number of jobs that Hydra's basic sweeper starts; None for another sweeper or invalid options."""
    if not config.hydra.sweeper["_target_"].endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except HydraException:
        return None
    return len(jobs)


def sweep_dir() -> Path:
    """Folder of the current sweep."""
    return Path(str(HydraConfig.get().sweep.dir)).expanduser().resolve()


def _outcomes_dir(config: DictConfig) -> Path:
    """Folder for the outcomes of jobs; a dry run uses a separate one."""
    return sweep_dir() / (".plans" if config.get("dry_run") else ".jobs")


def run_job(command: str, config: DictConfig) -> None:
    """Run one job of a sweep unless it is finished, and write its outcome; a failure does not stop the sweep."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir).resolve()
    outcome = Outcome(int(hydra.job.num), str(folder), "failed", selection=hydra.runtime.choices.get("selection", ""))
    try:
        if config.get("dry_run"):
            outcome = _plan(command, config, outcome)
        else:
            if is_main_process():
                total = read_json(_outcomes_dir(config) / SWEEP_FILE)["jobs"]
                log.info("Job %s%s: %s", outcome.number + 1, f" of {total}" if total else "", folder.name)
            with _isolated(hydra, config), resource_errors():
                was_finished = _run_or_find(command, config, folder)
            outcome = replace(outcome, state="already finished" if was_finished else "done")
            if is_main_process():
                print(folder, flush=True)
    except Exception as error:
        user_error = is_user_error(error)
        reason = " ".join(str(error).split()) if user_error else f"{type(error).__name__}: {first_line(error)}"
        outcome = replace(outcome, reason=redact(reason), user_error=user_error)
        if not config.get("dry_run"):  # a dry run lists every reason once, at the end
            log.error("Failed: %s", outcome.reason)
        if not user_error:
            write_file(folder / ERROR_FILE, redact(traceback.format_exc()))
            log.error("Traceback: %s", folder / ERROR_FILE)
        if os.environ.get("LPSEL_DEBUG"):
            print(redact(traceback.format_exc()), file=sys.stderr)
    if is_main_process():
        write_json(_outcomes_dir(config) / f"{outcome.number}.json", asdict(outcome))
    if "torch" in sys.modules:
        free_memory()


def _plan(command: str, config: DictConfig, outcome: Outcome) -> Outcome:
    """Outcome of a dry run: planned, already finished, or failed if its models do not fit into memory."""
    from lpsel.commands.dry_run import memory_problem, planned_work

    work = planned_work(command, config, Path(outcome.folder))
    if work is None:
        return replace(outcome, state="already finished")
    reason = str(memory_problem(work) or "")
    state = "failed" if reason else "planned"
    return replace(outcome, state=state, reason=reason, user_error=True, plan=[asdict(piece) for piece in work])


def _run_or_find(command: str, config: DictConfig, folder: Path) -> bool:
    """Run the job unless it is finished; return whether it was already finished."""
    job = Job.of(command, config, folder, in_sweep=True)
    lock = FileLock(folder / ".lock")  # two calls of the same sweep, or two jobs with the same configuration

    def finished() -> bool:
        if is_main_process():
            lock.acquire()
        return job.run_config.finished(folder) is not None

    try:
        if agree(finished):
            log.info("Already finished")
            return True
        (folder / ERROR_FILE).unlink(missing_ok=True)
        job.run()
        return False
    finally:
        lock.release()


@contextmanager
def _isolated(hydra: Any, config: DictConfig) -> Iterator[None]:
    """Make the ranks that Lightning starts run only this job, in its run folder."""
    if "joblib" in str(hydra.launcher.get("_target_")):
        use_one_device(config.trainer.devices, int(hydra.job.num))
    with read_write(hydra), open_dict(hydra):
        hydra.run.dir = hydra.runtime.output_dir
    with ranks_run([*hydra.overrides.task, "hydra.mode=RUN"]):
        yield


def read_outcomes(sweep: DictConfig) -> list[Outcome]:
    """Read the outcomes of the latest call of a sweep, one per run folder: the first that did not fail, if any."""
    by_folder: dict[str, Outcome] = {}
    for outcome in _all_outcomes(sweep):
        known = by_folder.get(outcome.folder)
        if known is None or (known.state == "failed" and outcome.state != "failed"):
            by_folder[outcome.folder] = outcome
    return [*by_folder.values()]


def _all_outcomes(sweep: DictConfig) -> list[Outcome]:
    """Read the outcomes of all jobs, including jobs that share a run folder."""
    files = _outcomes_dir(sweep).glob("[!.]*.json")
    return sorted((Outcome(**read_json(file)) for file in files), key=lambda o: o.number)


def print_outcomes(outcomes: Sequence[Outcome], sweep: DictConfig) -> None:
    """Print a table of the outcomes of all jobs, or their plans for a dry run."""
    if sweep.get("dry_run"):
        return _print_plans(outcomes, sweep)
    from lpsel.commands.runs import key_figures

    table = console.table(("job", "outcome", "rows", "result"), right=["rows"])
    for outcome in outcomes:
        folder = Path(outcome.folder)
        figures = ("", outcome.reason) if outcome.state == "failed" else key_figures(folder)
        table.add_row(*map(Text, (folder.name, outcome.state, *figures)))
    console.show(table)
    if failed := sum(outcome.state == "failed" for outcome in outcomes):
        print(f"{failed} of {len(outcomes)} jobs failed; run the same command again to retry them.", file=sys.stderr)


def _print_plans(outcomes: Sequence[Outcome], sweep: DictConfig) -> None:
    """Print the plans of a dry run, the number of judgments of an experiment, and every problem once."""
    from lpsel.commands.dry_run import Work, print_table, short_names
    from lpsel.commands.evaluation_estimate import judgments

    names = short_names({o.folder: Path(o.folder).name.split(BETWEEN) for o in outcomes})
    valid = [o for o in outcomes if o.state != "failed" or o.plan]
    jobs = []
    for outcome in valid:
        work = None if outcome.state == "already finished" else [Work(**piece) for piece in outcome.plan]
        jobs.append((names[outcome.folder], work))
    print_table(jobs, "experiment" in sweep)
    if "experiment" in sweep:
        judged = sum(o.selection != "full" for o in valid)  # full is the baseline
        for line in judgments(sweep.experiment, Path(sweep.cache_dir).expanduser(), judged):
            print(line)
    times = Counter(names[o.folder] for o in _all_outcomes(sweep))
    if repeated := [f"{name} ({count} times)" for name, count in times.items() if count > 1]:
        print(f"Repeated jobs, which run once: {', '.join(repeated)}.")
    for reason in dict.fromkeys(o.reason for o in outcomes if o.reason):
        print(printable(redact(reason)), file=sys.stderr)
