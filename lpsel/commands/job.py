"""One command's run: from a composed configuration to result.json in its folder."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lpsel.config import build, config_dir
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.output_folder import check_run_folder
from lpsel.run_config import FORMAT, RESULT, Asked
from lpsel.storage import finite, writable, write_json
from lpsel.tracking.guarded import Guarded
from lpsel.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """The keys under `node` whose value is still ???."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key


def check_folder(command: str, config: DictConfig, run_dir: Path) -> None:
    """Reject a run folder that belongs to another configuration or in which the run would replace files of the user.

    Raises:
        UserError: names what differs, or the file.
    """
    Asked.of(command, config).check(run_dir)
    check_run_folder(command, config, run_dir)


@dataclass(frozen=True)
class Job:
    """One command's run: its configuration, its folder, the shared cache and the tracker.

    In a sweep a model that was trained before in the same way is taken in place of a new one.

    Attributes:
        leftovers: folders that only an unfinished run needs, removed once its result is on disk.
    """

    command: str
    config: DictConfig
    run_dir: Path
    cache_dir: Path
    tracker: Tracker
    in_sweep: bool = False
    leftovers: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, command: str, config: DictConfig, run_dir: Path, in_sweep: bool = False) -> "Job":
        cache_dir = Path(config.cache_dir or "~/.cache/lpsel").expanduser().resolve()
        try:
            writable(cache_dir)
        except OSError as error:
            raise UserError(
                f"cache_dir={cache_dir}: cannot be written ({error.strerror}); give cache_dir=FOLDER or LPSEL_CACHE."
            ) from error
        return cls(
            command=command,
            config=config,
            run_dir=run_dir.resolve(),
            cache_dir=cache_dir,
            tracker=Guarded(build(config.tracker) if is_main_process() else Tracker()),
            in_sweep=in_sweep,
        )

    def training_setup(self) -> "TrainingSetup":
        """How this command trains models.

        Raises:
            UserError: a setting is invalid.
        """
        from lpsel.training.setup import TrainingSetup

        return TrainingSetup.of(self.config, self.cache_dir, self.run_dir, self.tracker)

    def asked(self) -> Asked:
        """What the run folder is for."""
        return Asked.of(self.command, self.config)

    def start_tracking(self) -> None:
        """Begin the tracked run; called once what can be wrong with the user's input has been looked at."""
        if is_main_process():
            self.asked().keep(self.run_dir)
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        self.tracker.start(self.command, config, self.run_dir, self.run_dir.parent.name if self.in_sweep else None)

    def _check_given(self) -> None:
        """Name what a choice cannot do without and was not given; a judge that is not asked may lack what it likes."""
        pairwise = str(self.config.get("evaluator", {}).get("_target_", "")).endswith("PairwiseEvaluator")
        for key in _missing(OmegaConf.to_container(self.config, resolve=False)):
            if pairwise or not key.startswith("judge."):
                raise UserError(f"{key}: not given, and {key.split('.')[0]} cannot do without; say {key}=...")

    def run(self) -> dict[str, Any]:
        """Run the command, write its result.json, end the tracked run whatever happens."""
        result = None
        self._check_given()
        if is_main_process():
            check_folder(self.command, self.config, self.run_dir)
            (self.run_dir / RESULT).unlink(missing_ok=True)  # of an earlier run in the same folder
        try:
            result = finite({"format": FORMAT, **import_module(f"lpsel.commands.{self.command}").run(self)})
            if is_main_process():
                write_json(self.run_dir / RESULT, result)
                for folder in self.leftovers:
                    shutil.rmtree(folder, ignore_errors=True)
            return result
        except (UserError, OSError):
            if is_main_process() and not any(folder.exists() for folder in self.leftovers):
                self.asked().forget(self.run_dir)
            raise
        finally:
            line = self.tracker.finish(result)
            if line:
                log.info(line)


def run(command: str, overrides: Sequence[str], run_dir: Path, in_sweep: bool = False) -> dict[str, Any]:
    """Run a command from Python, as `lpsel COMMAND OVERRIDE...` does from a shell, and return its result.

    Args:
        command: train, select or evaluate.
        overrides: as on the command line; `models=` in place of evaluate's `model=`.
        run_dir: the run folder.
        in_sweep: a run that is done already is found in its folder.

    Raises:
        UserError: what the command line would print in one line.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name=command):
        config = compose(command, overrides=list(overrides))
        run_dir.mkdir(parents=True, exist_ok=True)
        job = Job.of(command, config, run_dir, in_sweep)
        found = job.asked().finished(run_dir) if in_sweep else None
        return found if found is not None else job.run()
