"""Command line entry points: `lpsel COMMAND`, and train.py, select.py and evaluate.py next to the package.

Heavy imports wait until a job starts, so that --help and errors are printed immediately.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lpsel import __version__
from lpsel.command_line import as_user_error, check_arguments, fail, is_user_error
from lpsel.distributed import (
    Interrupted,
    at_end,
    connected,
    end_with_main_process,
    exit_rank,
    is_main_process,
    lost_rank,
    signals_interrupt,
)
from lpsel.errors import UserError, resource_errors
from lpsel.redact import protect_output, redact

# Description and example of each command. Commands configured by Hydra:
HYDRA_COMMANDS = {
    "train": ("score and select rows as needed, and train a model on them", "model=opt-1.3b selection=lp_app pct=10"),
    "select": ("score rows as needed, and write a subset", "scorer=opt-350m dataset=my.jsonl pct=10"),
    "evaluate": ("compare models on held-out rows or prompts", "model=RUN baseline=facebook/opt-1.3b dataset=dolly"),
}
# Commands that take paths and flags; their module in lpsel.commands defines `main(arguments)`.
FLAG_COMMANDS = {
    "agreement": ("compare scorers: do they rank the same rows as hard?", "SCORES_1 SCORES_2"),
    "votes": ("count the votes of human annotators", "votes-ann.json votes-ben.json"),
    "publish": ("write a subset as a dataset with a card, for the Hub", "RUN --out my-subset"),
    "report": ("summarize runs on one page, with figures and tables", "RUN_1 RUN_2"),
    "runs": ("list run folders with their key figures", "--json"),
    "show": ("show one run folder", "RUN"),
    "rows": ("show the hardest and easiest rows of a run or scores", "RUN --hardest 5"),
    "explore": ("write a page to plot, search and filter the rows of a run", "RUN"),
    "validate": (
        "measure whether a score predicts results, with random subsets",
        "SCORES model=opt-125m --held-out dolly",
    ),
    "cache": ("list what is cached, and delete old entries", "--prune 90"),
}
COMMANDS = HYDRA_COMMANDS | FLAG_COMMANDS
NEXT = {"train": "lpsel evaluate model={}", "select": "lpsel rows {} --chosen", "evaluate": "lpsel report {}"}
VOTES = "lpsel votes FILE... --key {}"  # the next command after an evaluation that wrote a voting page
COMPLETION = ("-sc", "--shell-completion")


def console() -> None:
    """Entry point of the console script `lpsel COMMAND [OVERRIDE ...]`."""
    # Lightning starts the other ranks with the arguments of this process, without the command name.
    started_as = os.environ.get("LPSEL_COMMAND")
    arguments = sys.argv[1:]
    if arguments and arguments[0] in HYDRA_COMMANDS:
        run(arguments[0], arguments[1:])
    elif started_as in HYDRA_COMMANDS and os.environ.get("LOCAL_RANK", "0") != "0":
        run(started_as, arguments)
    elif arguments and arguments[0] in FLAG_COMMANDS:
        run_flag_command(arguments[0], arguments[1:])
    elif arguments in ([], ["-h"], ["--help"], ["help"]):
        print(_usage())
    elif arguments in (["--version"], ["-V"], ["version"]):
        print(f"lpsel {__version__}")
    elif arguments[0] in COMPLETION:
        _complete(arguments)
    else:
        from lpsel.config import suggestion

        hint = f"{suggestion(arguments[0], list(COMMANDS))}Use one of {', '.join(COMMANDS)}"
        fail("lpsel", UserError(arguments[0], problem="unknown command", hint=hint))


def _usage() -> str:
    lines = ["usage: lpsel COMMAND ...   (lpsel COMMAND --help lists the options)", ""]
    for name, (what, example) in COMMANDS.items():
        lines += [f"  {name:<11}{what}", f"  {'':<11}$ lpsel {name} {example}"]
    return "\n".join([*lines, "", 'lpsel --version; completion in bash: eval "$(lpsel -sc install=bash)"'])


def _complete(arguments: Sequence[str]) -> None:
    """Run Hydra's shell completion, which supports only one command: remove the command name from the line."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    command = next(iter(words[1:]), "")
    if arguments[1:] and arguments[1].startswith("query=") and len(words) < 3:
        print("\n".join(name for name in COMMANDS if name.startswith(command)))
    elif command not in FLAG_COMMANDS:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
        run(command if command in HYDRA_COMMANDS else "select", arguments)


def entry_point(script: str) -> None:
    """Run the command with the name of a script at the root of the repository."""
    run(Path(script).stem)


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run one command under Hydra.

    The exit status is 0 on success, 2 for a user error, and 128 plus the signal number for a signal. A user error is
    printed as one line on standard error, or as a traceback if LPSEL_DEBUG=1 is set in the environment.
    """
    import hydra

    from lpsel.config import config_dir
    from lpsel.model.device import allocator_settings
    from lpsel.overrides import hydra_arguments

    os.environ.update(allocator_settings())
    end_with_main_process()
    from lpsel.sweep import SweepCallback

    os.environ["LPSEL_COMMAND"] = command
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of printing them
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _errors_end_command(command), signals_interrupt(), at_end:
        check_arguments(arguments)
        sys.argv[1:] = hydra_arguments(command, arguments)
        SweepCallback.sweep = None
        start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)
        start(_job(command))()
        if SweepCallback.sweep is not None:
            sys.exit(_end_sweep(SweepCallback.sweep))


def run_flag_command(command: str, arguments: Sequence[str]) -> None:
    """Run a command that takes paths and flags; exit statuses are as in `run`."""
    with _errors_end_command(command):
        quiet_libraries()
        import_module(f"lpsel.commands.{command}").main(arguments)


@contextmanager
def _errors_end_command(command: str) -> Iterator[None]:
    """Context manager in which a user error or a signal ends the process with one line on standard error."""
    protect_output()
    try:
        with closed_pipe_ends_quietly(), resource_errors():
            yield
    except Exception as error:
        if not os.environ.get("LPSEL_DEBUG"):
            if is_user_error(error):
                fail(f"lpsel {command}", as_user_error(error, command))
            if reason := lost_rank(error):
                print(f"lpsel {command}: {redact(reason)}; run the same command again to resume", file=sys.stderr)
                exit_rank(1)
        if not connected():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        exit_rank(1)
    except KeyboardInterrupt:
        print(f"lpsel {command}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Interrupted as end:
        if end.all_ranks and not is_main_process():
            sys.exit(0)  # with any other status, launchers would kill the main process before it finishes
        if is_main_process():
            print(f"lpsel {command}: {end}", file=sys.stderr)
        sys.exit(end.status)


def _job(command: str) -> Callable[[Any], None]:
    """Create the function that Hydra calls with the composed configuration."""

    def job(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        protect_output()  # a launcher may have started this process
        quiet_libraries()
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            from lpsel.sweep import run_job

            run_job(command, config)
        else:
            with _errors_end_command(command):  # otherwise, Hydra would print an additional line
                _run_job(command, config, Path(hydra.runtime.output_dir))

    return job


def _run_job(command: str, config: Any, folder: Path) -> None:
    if config.get("dry_run"):
        from lpsel.commands.dry_run import print_plan

        print_plan(command, config, folder)
        return
    from lpsel.commands.job import Job
    from lpsel.config import build
    from lpsel.console import end, show

    job = Job.of(command, config, folder)
    result = job.run()
    if is_main_process():
        if command == "evaluate":
            show(build(config.evaluator).table(result))
        end(VOTES if result.get("key") else NEXT[command], job.run_dir)


def _end_sweep(sweep: Any) -> int:
    """Print the outcomes of a sweep, evaluate and report if it is an experiment; returns the exit status."""
    from hydra.core.hydra_config import HydraConfig

    from lpsel.console import OPEN, end
    from lpsel.sweep import print_outcomes, read_outcomes, sweep_dir

    if not is_main_process():
        return 0
    folder, outcomes = sweep_dir(), read_outcomes(sweep)
    print_outcomes(outcomes, sweep)
    finished = [Path(outcome.folder) for outcome in outcomes if outcome.state in ("done", "already finished")]
    if sweep.get("dry_run"):
        finished = []
    if finished and sweep.get("experiment"):
        from lpsel.commands.experiment import conclude

        end(OPEN, conclude(sweep, folder, finished))
    elif finished:
        end(NEXT["train" if HydraConfig.get().job.name == "train" else "evaluate"], folder)
    else:
        print(folder, flush=True)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return 0
    return 2 if all(outcome.user_error for outcome in failed) else 1


@contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """Exit without a message when the reader of standard output closes the pipe, as in `| head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        sys.exit(128 + signal.SIGPIPE)


def quiet_libraries() -> None:
    """Silence log messages of libraries, and all log messages of ranks other than the main process."""
    lightning = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed")
    for name in (*(f"lightning.{name}" for name in lightning), "httpx", "httpx2", "sentence_transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns about optional kernels
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # one line per retry
    if not is_main_process():
        logging.disable(logging.INFO)
