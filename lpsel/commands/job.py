"""Job: run train, select or evaluate with a composed configuration, and write result.json."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from lpsel.cache import in_use, warn_if_shared
from lpsel.config import build, configured, default_cache
from lpsel.distributed import is_main_process, started_together
from lpsel.errors import UserError, check_int
from lpsel.output_folder import check_run_folder
from lpsel.redact import redacted
from lpsel.run_config import FORMAT, RESULT, RunConfig, leaves
from lpsel.storage import check_writable, finite, write_json
from lpsel.tracking.tracker import SafeTracker, Tracker

if TYPE_CHECKING:
    from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A command with its configuration, run folder, cache and tracker."""

    command: str
    config: DictConfig
    run_dir: Path
    cache_dir: Path
    tracker: Tracker
    in_sweep: bool = False  # reuse a model that an earlier run trained in the same way
    temporary: list[Path] = field(default_factory=list)  # folders to delete once the result is written

    @classmethod
    def of(cls, command: str, config: DictConfig, run_dir: Path, in_sweep: bool = False) -> "Job":
        check_required(config)
        if (seed := config.get("seed")) is not None:  # before the recipes that use it
            check_int("seed", seed, 0)
        cache_dir = Path(config.cache_dir or default_cache()).expanduser().resolve()
        check_writable("cache_dir", cache_dir)
        warn_if_shared(cache_dir)
        tracker = SafeTracker(build(config.tracker) if is_main_process() else Tracker())
        return cls(command, config, run_dir.resolve(), cache_dir, tracker, in_sweep)

    def training_setup(self) -> "TrainingSetup":
        """Training setup of this command; raises a UserError for an invalid setting."""
        from lpsel.training.setup import TrainingSetup

        return TrainingSetup.of(self.config, self.cache_dir, self.run_dir, self.tracker)

    @cached_property
    def run_config(self) -> RunConfig:
        """Configuration of the run folder, with the state of the inputs when the command started."""
        return RunConfig.of(self.command, self.config)

    def start_tracking(self) -> None:
        """Start the tracked run; called after the user's input is validated."""
        if is_main_process():
            self.run_config.save(self.run_dir)
        config: Any = redacted(OmegaConf.to_container(self.config, resolve=True))
        self.tracker.start(self.command, config, self.run_dir, self.run_dir.parent.name if self.in_sweep else None)

    def run(self) -> dict[str, Any]:
        """Run the command, write result.json, and end the tracked run in any case."""
        result = None
        if is_main_process():
            self.run_config.check(self.run_dir)
            check_run_folder(self.command, self.config, self.run_dir)
        try:
            command = import_module(f"lpsel.commands.{self.command}")
            run_digest = self.run_config.digest()
            with in_use(self.cache_dir, self.run_dir):
                result = redacted(finite({"format": FORMAT, "run": run_digest, **command.run(self)}))
            if is_main_process():
                write_json(self.run_dir / RESULT, result)
                for folder in self.temporary:
                    shutil.rmtree(folder, ignore_errors=True)
            return result
        except (UserError, OSError):
            if is_main_process() and not any(folder.exists() for folder in self.temporary):
                self.run_config.discard(self.run_dir)
            raise
        finally:
            if message := self.tracker.finish(result):
                log.info(message)


def check_required(config: DictConfig) -> None:
    """Raise a UserError if a required value is missing; an unused judge may be incomplete."""
    pairwise = str(config.get("evaluator", {}).get("_target_", "")).endswith("PairwiseEvaluator")
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if value == "???" and (pairwise or not key.startswith("judge.")):
            raise UserError(key, problem="required and not set", hint=f"set {key}=...")


def run(command: str, overrides: Sequence[str], run_dir: Path, in_sweep: bool = False) -> dict[str, Any]:
    """Run a command from Python, and return its result.

    Args:
        command: train, select or evaluate.
        overrides: options as on the command line, without its shortcuts: a path or Hub id is `dataset=local
            dataset.path=PATH` (also for model and scorer), evaluate takes `models=` instead of `model=`, and no scorer
            or dataset is implied.
        run_dir: the run folder.
        in_sweep: reuse a finished run in the folder.

    Raises:
        UserError: an error that the user can fix, except those of Hydra about unknown options or choices.
    """
    with configured(command):
        config = compose(command, overrides=list(overrides))
        run_dir.mkdir(parents=True, exist_ok=True)
        job = Job.of(command, config, run_dir, in_sweep)
        finished = job.run_config.finished(run_dir) if in_sweep else None
        return finished if finished is not None else job.run()


@contextmanager
def ranks_run(arguments: Sequence[str]) -> Iterator[None]:
    """Context manager in which the ranks that Lightning starts run `lpsel` with these arguments.

    The previous state is restored at the end, so that the process can run another job.
    """
    arguments_before, environment = sys.argv[1:], dict(os.environ)
    sys.argv[1:] = arguments
    try:
        yield
    finally:
        sys.argv[1:] = arguments_before
        if not started_together():
            os.environ.clear()
            os.environ.update(environment)
            if (distributed := sys.modules.get("torch.distributed")) and distributed.is_initialized():
                distributed.destroy_process_group()
