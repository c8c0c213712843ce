"""`evaluate`: one or several models side by side on held-out rows."""

import json
import logging
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import ListConfig
from rich.console import Console

from lpsel.config import Job, build, config_dir
from lpsel.data.source import Source
from lpsel.errors import UserError
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.load import locate
from lpsel.model.spec import ModelSpec
from lpsel.tracking.base import Artifact

log = logging.getLogger(__name__)


def run(job: Job) -> dict[str, Any]:
    """Evaluate, write generations and figures."""
    if job.config.models is None:
        raise UserError("model: none given; say model=RUN_OR_MODEL, or model=[A,B] for several.")
    named = job.config.models if isinstance(job.config.models, ListConfig) else [job.config.models]
    baseline = [] if job.config.baseline is None else [job.config.baseline]
    candidates = [candidate(str(name), job) for name in [*baseline, *named]]
    evaluator = build(job.config.evaluator)
    source = Source(build(job.config.dataset))

    for spec in candidates:
        if spec.path:
            locate(spec, job.cache_dir)

    import torch

    device = device_of(job.config.trainer.accelerator)
    precision = resolve_precision(job.config.trainer.precision)
    log.info("Evaluating %s on %s rows of %s", "; ".join(c.name for c in candidates), len(source), source.spec.name)
    job.start_tracking()
    for run_folder in dict.fromkeys(str(name) for name in [*baseline, *named]):
        for parent in _made_by(run_folder):
            job.tracker.used(parent)
    result = evaluator.evaluate(
        candidates,
        source,
        folder=job.run_dir,
        cache_dir=job.cache_dir,
        device=device,
        dtype=torch.float32 if precision == "32-true" else torch.bfloat16,
    )
    for measured in result["models"]:
        figures = measured["metrics"]
        job.tracker.log({f"{measured['name']}/{k}": v["value"] for k, v in figures.items() if v["value"] is not None})
    job.tracker.made(Artifact("evaluation", f"evaluation-{job.run_dir.name}", job.run_dir / "generations"))
    return {"command": "evaluate", "dataset": source.spec.name, "device": str(device), **result}


def show(result: dict[str, Any]) -> None:
    """Print the models side by side."""
    from lpsel.evaluation.table import reference_table

    Console(width=None if Console().is_terminal else 140).print(reference_table(result))


def candidate(name: str, job: Job) -> ModelSpec:
    """What `model=NAME` means: a run folder of train.py, a model folder, a name in conf/model, or a Hub id.

    Raises:
        UserError: a folder that is neither a finished training run nor a model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return _elsewhere(folder.resolve().name, str(folder), job)
        try:
            made = json.loads((folder / "result.json").read_text())
            base = made["base_model"]
            merged = made["model"] is not None
            spec = ModelSpec(
                name=_run_name(folder, made),
                path=str(folder / "model"),
                template=base["template"],
                max_length=base["max_length"],
                trust_remote_code=base["trust_remote_code"],
            )
        except (OSError, ValueError, KeyError):
            raise UserError(
                f"model={name}: neither a finished run of train.py (result.json with a model) nor a model folder "
                "(config.json); give one of these, a name in conf/model or a Hugging Face id."
            ) from None
        if not merged:
            raise UserError(
                f"model={name}: its adapter is not merged (adapter.merge=false); merge it into {folder / 'model'} as "
                "docs/memory.md says, and give that."
            )
        return spec
    if (config_dir() / "model" / f"{name}.yaml").is_file():
        return build(compose("evaluate", overrides=[f"+model={name}", "models=null"]).model)
    return _elsewhere(name.rsplit("/", 1)[-1], name, job)


def _elsewhere(name: str, path: str, job: Job) -> ModelSpec:
    config = job.config
    return ModelSpec(
        name=name,
        path=path,
        template=config.template,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
    )


def _run_name(folder: Path, made: dict[str, Any]) -> str:
    """What sets a run apart in a table: its target, rule and share."""
    rows = "all" if made["rule"] == "full" else f"{made['pct']:g} %"
    bucket = f" {made['bucket']} bucket" if made.get("bucket") else ""
    adapter = f", {made['adapter']['method']}" if made.get("adapter") else ""
    return f"{made['base_model']['name']}, {made['rule']}{bucket}, {rows}{adapter}"


def _made_by(name: str) -> list[Artifact]:
    result = Path(name).expanduser() / "result.json"
    if not result.is_file():
        return []
    made = json.loads(result.read_text())
    return (
        [Artifact("model", made["artifact"], result.parent / "model", by_reference=True)] if "artifact" in made else []
    )
