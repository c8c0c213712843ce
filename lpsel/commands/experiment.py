"""What follows an experiment's jobs: an evaluation of every target's runs, and one report about all."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lpsel.commands.job import run
from lpsel.commands.report import report
from lpsel.errors import UserError
from lpsel.run_config import ASKED, RESULT
from lpsel.storage import file_names, read_json

log = logging.getLogger(__name__)


def conclude(sweep: DictConfig, folder: Path, runs: Sequence[Path]) -> Path:
    """Evaluate the runs and report on them; returns the report's page.

    Each target and seed has an evaluation of its own, whose baseline is the model trained on everything. One that is
    done already, of the same runs, is found.

    Args:
        sweep: the sweep's configuration, with Hydra's node; `experiment.evaluate` is what `lpsel evaluate` is told.
        folder: of the sweep.
        runs: folders of finished training runs.

    Raises:
        UserError: an evaluation cannot be made; the report is there all the same.
    """
    results = {run_dir: json.loads((run_dir / RESULT).read_text()) for run_dir in runs}
    groups: dict[tuple[str, int], list[Path]] = {}
    for run_dir, result in results.items():
        groups.setdefault((str(result["base_model"]["name"]), int(result["seed"])), []).append(run_dir)
    failed: UserError | None = None
    names = file_names([f"evaluate-{target}-seed-{seed}" for target, seed in groups])
    for name, members in zip(names, groups.values(), strict=True):
        full = [member for member in members if results[member]["rule"] == "full"]
        others = [member for member in members if member not in full]
        trusted = any(_trusts_model_code(member) for member in members)
        try:
            _evaluate(sweep, others or full, full[0] if full and others else None, folder / name, trusted)
        except UserError as error:
            log.error("Not evaluated: %s", error)
            failed = error
    page = report([str(folder)], folder / "report")
    if failed:
        raise UserError(f"{failed} The same command again goes on from here; the report so far: {page}")
    return page


def _trusts_model_code(run_dir: Path) -> bool:
    """Whether the sweep was called with model.trust_remote_code=true: asked.json is the configuration of its job."""
    return read_json(run_dir / ASKED)["config"]["model"]["trust_remote_code"] is True


def _evaluate(sweep: DictConfig, models: list[Path], baseline: Path | None, folder: Path, trusted: bool) -> None:
    listed = ",".join(f'"{model}"' for model in models)
    how: list[Any] = [
        f"tracker={sweep.hydra.runtime.choices.tracker}",
        f"+experiment.name={sweep.experiment.name}",
        f'cache_dir="{sweep.cache_dir}"',
        f"trainer.accelerator={sweep.trainer.accelerator}",
        f"trainer.precision={sweep.trainer.precision}",
    ]
    if trusted:
        how.append("trust_remote_code=true")
    about = [*sweep.experiment.evaluate, f"models=[{listed}]", *([f'baseline="{baseline}"'] if baseline else [])]
    run("evaluate", [*how, *about], folder, in_sweep=True)
