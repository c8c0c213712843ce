"""The commands: `lpsel COMMAND`, and train.py, select.py, evaluate.py beside the package.

Nothing heavy is imported before a job starts, so that --help and mistakes answer at once.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lpsel.command_line import check_arguments, in_our_words
from lpsel.distributed import is_main_process, started_together
from lpsel.errors import ReportedByMainProcess, UserError, disk_full, file_errors, first_line
from lpsel.redact import redact, show_traceback
from lpsel.signals import Ended, endings

COMMANDS = {
    "train": "find or make scores and a subset, train a model on it",
    "select": "find or make scores, write a subset",
    "evaluate": "compare models on held-out rows",
}
# Commands that take paths and flags, not overrides: their job's module has `main(arguments)`.
PLAIN = {
    "agreement": "compare scorers: do they find the same rows hard",
    "votes": "count what people said of blinded pairs",
    "publish": "a subset as a data set with a card, for the Hub",
    "report": "runs as one page, with figures and tables",
    "runs": "run folders with their key figures",
    "show": "one run folder",
    "rows": "the hardest and easiest rows of scores",
}
TINY_MODELS = {"tiny", "tiny-target"}
GRACE = 5  # seconds the main process gets to say what is wrong: torchrun ends all ranks when the first has ended


def console() -> None:
    """The console command `lpsel COMMAND [OVERRIDE ...]`."""
    # Lightning starts the other ranks with this process's arguments, from which the command's name is gone by then.
    started_as = os.environ.get("LPSEL_COMMAND")
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        run(arguments[0], arguments[1:])
    elif started_as in COMMANDS and os.environ.get("LOCAL_RANK", "0") != "0":
        run(started_as, arguments)
    elif arguments and arguments[0] in PLAIN:
        run_plain(arguments[0], arguments[1:])
    elif arguments in ([], ["-h"], ["--help"]):
        print("usage: lpsel COMMAND [OVERRIDE ...]   (lpsel COMMAND --help lists what can be overridden)\n")
        print("\n".join(f"  {name:<11}{what}" for name, what in (COMMANDS | PLAIN).items()))
    else:
        _fail("lpsel", f"{arguments[0]}: no such command; give one of {', '.join(COMMANDS | PLAIN)}.")


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run one command under Hydra.

    Exit status 0 when it is done and 2 for a user's mistake, which is one line on standard error, or a traceback with
    LPSEL_DEBUG=1 in the environment; 128 and the signal's number where a signal has ended it.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lpsel.config import config_dir
    from lpsel.sweep import Watch

    prog = f"lpsel {command}"
    os.environ["LPSEL_COMMAND"] = command
    debug = bool(os.environ.get("LPSEL_DEBUG"))
    sys.excepthook = show_traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands exceptions to us instead of printing them
    given = list(sys.argv[1:] if arguments is None else arguments)
    mistakes = (UserError, HydraException, OmegaConfBaseException)
    try:
        with reader_may_leave(), endings():
            check_arguments(given)
            sys.argv[1:] = overrides(command, given)
            Watch.before_run = None if debug else partial(_check_folder, command)
            start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)
            with file_errors():
                start(_job(command, mistakes))()
            if Watch.sweep is not None:
                sys.exit(_end_of_sweep(command, Watch.sweep))
    except mistakes as error:
        if debug:
            raise
        _fail(prog, error if isinstance(error, UserError) else in_our_words(error, command))
    except Ended as end:
        _end(prog, end)


def run_plain(command: str, arguments: Sequence[str]) -> None:
    """Run a command that takes paths and flags; mistakes end as in `run`."""
    sys.excepthook = show_traceback
    try:
        with reader_may_leave(), file_errors():
            import_module(f"lpsel.commands.{command}").main(arguments)
    except UserError as error:
        if os.environ.get("LPSEL_DEBUG"):
            raise
        _fail(f"lpsel {command}", str(error))
    except KeyboardInterrupt:
        print(f"lpsel {command}: interrupted", file=sys.stderr)
        sys.exit(130)


def _job(command: str, mistakes: tuple[type[Exception], ...]) -> Callable[[Any], dict[str, Any]]:
    def job(config: Any) -> dict[str, Any]:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from lpsel.commands.job import Job

        hush()
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            from lpsel.sweep import run_one

            run_one(command, config, mistakes)
            return {}
        folder = Path(hydra.runtime.output_dir)
        try:
            if config.get("dry_run"):
                from lpsel.commands.dry_run import show_job

                show_job(command, config, folder)
                return {}
            with file_errors():
                started = Job.of(command, config, folder)
                result = started.run()
        except mistakes as error:
            if os.environ.get("LPSEL_DEBUG"):
                raise
            # Raised on, it would cost a line of Hydra's.
            _fail(f"lpsel {command}", error)
        except Exception as error:
            if os.environ.get("LPSEL_DEBUG") or not disk_full(error):
                raise
            remedy = "make room, and the same command goes on from what is finished."
            _fail(f"lpsel {command}", f"{first_line(error)}: no room to write; {remedy}")
        if is_main_process():
            if command == "evaluate":
                from lpsel.commands.evaluate import show

                show(config, result)
            print(started.run_dir, flush=True)
        return result

    return job


def _check_folder(command: str, config: Any) -> None:
    """Exit if the run folder is rejected, before Hydra writes its configuration and log there."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lpsel.commands.job import check_folder

    if not is_main_process() or config.get("dry_run"):
        return
    try:
        folder = Path(str(config.hydra.run.dir)).expanduser().resolve()
        if folder.is_dir():
            check_folder(command, OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), folder)
    except UserError as error:
        _fail(f"lpsel {command}", error)
    except (OmegaConfBaseException, OSError):
        return  # the job meets the same error, and reports it


def _end_of_sweep(command: str, sweep: Any) -> int:
    """Say what became of its jobs, evaluate and report an experiment's; returns the exit status."""
    from lpsel.sweep import folder_of, outcomes_of, show

    if not is_main_process():
        return 0
    folder = folder_of(sweep)
    outcomes = outcomes_of(sweep)
    show(outcomes, sweep)
    finished = [Path(outcome.folder) for outcome in outcomes if outcome.state in ("done", "found")]
    page = None
    if finished and sweep.get("experiment"):
        from lpsel.commands.experiment import conclude

        page = conclude(sweep, folder, finished)
    print(page or folder, flush=True)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    return 0 if not failed else 2 if all(outcome.mistake for outcome in failed) else 1


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End without a word when what reads the output has gone, as `| head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        sys.exit(128 + signal.SIGPIPE)


def hush() -> None:
    """Leave to our own lines what libraries say about themselves, and to the main process what all would say."""
    lightning = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed")
    for name in (*(f"lightning.{name}" for name in lightning), "httpx", "httpx2", "sentence_transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels it would fetch if it could
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a line for every retry
    if not is_main_process():
        logging.disable(logging.INFO)


def overrides(command: str, arguments: list[str]) -> list[str]:
    """What the user wrote, in the form Hydra needs.

    - `model.path=X` alone means `model=local model.path=X`, so that the path does not meet the recipe of another model;
      the same for scorer and dataset.
    - A real model brings the paper's data set and scorer where none are named, in place of the embedded ones. An
      experiment has its own.
    - evaluate's `model=` takes run folders too, which no config group can, so it is handed on as `models=`.
    - Of several ranks that start together, only the main one owns the time-stamped run folder.
    """
    if command == "evaluate":
        arguments = [f"models={a.removeprefix('model=')}" if a.startswith("model=") else a for a in arguments]
    named = {a.split("=", 1)[0]: a.split("=", 1)[1] for a in arguments if "=" in a and not a.startswith("-")}
    implied = [
        f"{group}=local"
        for group in ("model", "scorer", "dataset")
        if f"{group}.path" in named and group not in named and not (group == "model" and command != "train")
    ]
    real_model = (
        command == "train"
        and "experiment" not in named
        and ("model.path" in named or not set(named.get("model", "tiny").split(",")) <= set(TINY_MODELS))
    )
    if real_model:
        paper = {"dataset": "alpaca", "scorer": "opt-350m"}
        implied += [f"{g}={c}" for g, c in paper.items() if g not in named and f"{g}.path" not in named]
    if started_together() and not is_main_process() and "hydra.run.dir" not in named:
        implied += [f"hydra.run.dir={tempfile.gettempdir()}/lpsel-ranks", "hydra.output_subdir=null"]
    # Beside the user's own: argparse takes overrides from one place only, before or after flags such as --multirun.
    place = next((i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")), len(arguments))
    return [*arguments[:place], *implied, *arguments[place:]]


def _fail(prog: str, mistake: str | Exception) -> NoReturn:
    if isinstance(mistake, ReportedByMainProcess):
        time.sleep(GRACE)
    else:
        print(f"{prog}: {redact(' '.join(str(mistake).split()))}", file=sys.stderr)
    sys.exit(2)


def _end(prog: str, end: Ended) -> NoReturn:
    if end.together and not is_main_process():
        sys.exit(0)  # one that fails would have launchers kill the main process before it has ended well
    if is_main_process():
        print(f"{prog}: {end}", file=sys.stderr)
    sys.exit(end.status)


def entry_point(script: str) -> None:
    """Run the command that a script at the root of the repository is named after."""
    run(Path(script).stem)
