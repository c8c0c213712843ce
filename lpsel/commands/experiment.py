"""Conclude an experiment: evaluate its runs for each target and seed, and write one report of all runs."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpsel.commands.job import check_required, run
from lpsel.commands.report import report
from lpsel.errors import UserError, first_line
from lpsel.report.runs import grouped
from lpsel.run_config import RESULT, RUN_CONFIG
from lpsel.storage import file_names, read_dict, read_json, write_json

log = logging.getLogger(__name__)

UNTRAINED = ("revision", "template", "max_length", "bin_weights")  # options of a target that also apply before training


def conclude(sweep: DictConfig, folder: Path, runs: Sequence[Path]) -> Path:
    """Evaluate the runs and write a report; returns the path of its page.

    Each target and seed is evaluated separately, together with the untrained target. The baseline is the model trained
    on all rows, unless the evaluation sets one. A finished evaluation of the same runs is reused.

    Args:
        sweep: the sweep's configuration with Hydra's node.
        runs: folders of finished training runs.

    Raises:
        UserError: an evaluation failed; the report is written anyway.
    """
    results = {run_dir: read_json(run_dir / RESULT) for run_dir in runs}
    groups = grouped(results, lambda run: (str(results[run]["base_model"]["name"]), int(results[run]["seed"])))
    failed: UserError | None = None
    names = file_names([f"evaluate-{target}-seed-{seed}" for target, seed in groups])
    for name, members in zip(names, groups.values(), strict=True):
        full = [member for member in members if results[member]["rule"] == "full"]
        all_rows = full[0] if 0 < len(full) < len(members) else None
        target = results[members[0]]["base_model"]
        untrained = target["path"] or target["name"]
        options = [f"{key}={json.dumps(target[key])}" for key in UNTRAINED if target.get(key) is not None]
        models = [read_json(member / RUN_CONFIG)["config"]["model"] for member in members]
        trust = ["trust_remote_code=true"] if any(model["trust_remote_code"] is True for model in models) else []
        for suffix, overrides in evaluations(sweep.experiment).items():
            given = [each.removeprefix("baseline=") for each in overrides if each.startswith("baseline=")]
            baseline = given[0].strip("\"'") if given else None
            named: dict[str, Any]
            if baseline is None:
                named = {
                    "models": [untrained, *(str(member) for member in members if member != all_rows)],
                    "baseline": None if all_rows is None else str(all_rows),
                }
            else:
                named = {"models": [str(member) for member in members]}
            if baseline in (None, untrained):
                overrides = [*options, *overrides]
            try:
                _evaluate(sweep, [*trust, *overrides], named, folder / f"{name}{suffix}")
            except UserError as error:
                log.error("Not evaluated: %s", error)
                failed = error
    page = report([str(folder)], folder / "report")
    if failed:
        log.error("The report has what was evaluated: %s. Run the same command again to resume.", page)
        raise failed
    return page


def check_merged(train: DictConfig) -> None:
    """Raise a UserError if a training is to save only its adapter, which cannot be evaluated."""
    if OmegaConf.select(train, "adapter.merge") is False:
        raise UserError("adapter.merge", "false", "the merged models are evaluated", "leave it out")


def check_evaluations(sweep: DictConfig) -> None:
    """Raise a UserError for an evaluation that cannot run after the jobs; Hydra must be running."""
    if not sweep.get("experiment"):
        return
    check_merged(sweep)
    for evaluation in evaluations(sweep.experiment).values():
        try:
            check_required(compose("evaluate", _overrides(sweep, evaluation, {"models": ["trained"]})))
        except (HydraException, OmegaConfBaseException) as error:
            problem = f"cannot be composed ({first_line(error)})"
            raise UserError("experiment.evaluate", json.dumps(evaluation), problem, "fix the option") from error


def evaluations(experiment: DictConfig) -> dict[str, list[str]]:
    """Overrides of `lpsel evaluate` for each evaluation, by the suffix of its folder name."""
    evaluate: Any = OmegaConf.to_container(experiment.evaluate, resolve=True)
    if not isinstance(evaluate, dict):
        return {"": evaluate}
    return {f"-{name}": overrides for name, overrides in evaluate.items()}


def _evaluate(sweep: DictConfig, evaluation: list[str], named: dict[str, Any], folder: Path) -> None:
    """Evaluate the given models and baseline, and replace an earlier evaluation of others in the folder."""
    overrides = _overrides(sweep, evaluation, named)
    saved = read_dict(folder / RUN_CONFIG)
    if saved and saved["config"] != saved["config"] | named:  # since then, a failed job has finished
        (folder / RESULT).unlink(missing_ok=True)
        write_json(folder / RUN_CONFIG, saved | {"config": saved["config"] | named})
    run("evaluate", overrides, folder, in_sweep=True)


def _overrides(sweep: DictConfig, evaluation: list[str], named: dict[str, Any]) -> list[str]:
    return [
        f"tracker={sweep.hydra.runtime.choices.tracker}",
        *(override for override in sweep.hydra.overrides.task if override.lstrip("+").startswith("tracker.")),
        f"+experiment.name={sweep.experiment.name}",
        f'cache_dir="{sweep.cache_dir}"',
        f"trainer.accelerator={sweep.trainer.accelerator}",
        f"trainer.precision={sweep.trainer.precision}",
        *evaluation,
        "models=[{}]".format(",".join(f'"{model}"' for model in named["models"])),
        *([f'baseline="{named["baseline"]}"'] if named.get("baseline") else []),
    ]
