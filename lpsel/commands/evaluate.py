"""`evaluate`: one or several models side by side on held-out rows."""

import logging
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, ListConfig

from lpsel import console
from lpsel.commands.job import Job
from lpsel.commands.tracked import track_evaluation
from lpsel.config import build, config_dir
from lpsel.errors import UserError
from lpsel.evaluation.evaluator import Candidates, Place
from lpsel.generation.openai_client import Endpoint
from lpsel.model.device import resolve_precision
from lpsel.model.load import locate
from lpsel.model.spec import ModelSpec
from lpsel.run_config import read_result
from lpsel.tracking.artifacts import Artifact, evaluation_artifact, model_artifact

log = logging.getLogger(__name__)


def run(job: Job) -> dict[str, Any]:
    """Evaluate, write generations and figures."""
    config = job.config
    models = [] if config.models is None else config.models
    named = [str(name) for name in (models if isinstance(models, list | ListConfig) else [models])]
    baseline = None if config.baseline is None else str(config.baseline)
    candidates = Candidates(
        tuple(candidate(name, job) for name in named), None if baseline is None else candidate(baseline, job)
    )
    evaluator = build(config.evaluator)
    place = Place(job.run_dir, job.cache_dir, config.trainer.accelerator, config.trainer.precision)
    device = None
    if candidates.all:  # verdicts made elsewhere are counted without torch, which takes seconds to import
        device = str(place.device)
        resolve_precision(place.precision)
    for spec in candidates.all:
        if isinstance(spec, ModelSpec) and spec.path:
            locate(spec, job.cache_dir)

    if candidates.all:
        log.info("Evaluating %s", "; ".join(c.name for c in candidates.all))
    evaluator.check(candidates)
    job.start_tracking()
    for name in dict.fromkeys([*([baseline] if baseline else []), *named]):
        for parent in _made_by(name):
            job.tracker.use_artifact(parent)
    result = evaluator.evaluate(candidates, place)
    track_evaluation(job.tracker, result)
    for made in (job.run_dir / "generations", job.run_dir / "judgements.parquet"):
        if made.exists():
            job.tracker.log_artifact(evaluation_artifact(made, job.run_dir))
    return {"command": "evaluate", "device": device, **result}


def show(config: DictConfig, result: dict[str, Any]) -> None:
    """Print the models side by side."""
    console.show(build(config.evaluator).table(result))


def candidate(name: str, job: Job) -> ModelSpec | Endpoint:
    """What `model=NAME` means: a run folder of train.py, a model folder, a name in conf/model, a Hub id, or MODEL@URL.

    Raises:
        UserError: a folder that is neither a finished training run nor a model.
    """
    endpoint = Endpoint.of(name)
    if endpoint is not None:
        return endpoint
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return _elsewhere(folder.resolve().name, str(folder), job)
        made = read_result(folder) or {}
        try:
            base = made["base_model"]
            merged = made["model"] is not None
            spec = ModelSpec(
                name=_run_name(folder, made),
                path=str(folder / "model"),
                template=base["template"],
                max_length=base["max_length"],
                trust_remote_code=job.config.trust_remote_code,
            )
            trusted = base["trust_remote_code"]
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"model={name}: neither a finished run of train.py (result.json with a model) nor a model folder "
                "(config.json); give one of these, a name in conf/model or a Hugging Face id."
            ) from None
        if trusted is not False and job.config.trust_remote_code is not True:
            raise UserError(
                "model",
                name,
                "its result.json has trust_remote_code=true, but this command does not",
                "set trust_remote_code=true if you trust the code that comes with the model",
            )
        if not merged:
            raise UserError(
                f"model={name}: its adapter is not merged (adapter.merge=false); merge it into {folder / 'model'} as "
                "docs/guides/memory.md says, and give that."
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
        bin_weights=config.bin_weights,
    )


def _run_name(folder: Path, made: dict[str, Any]) -> str:
    """What sets a run apart in a table: its target, rule, scorer and share."""
    rows = "all" if made["rule"] == "full" else f"{made['pct']:g} %"
    bucket = f" {made['bucket']} bucket" if made.get("bucket") else ""
    adapter = f", {made['adapter']['method']}" if made.get("adapter") else ""
    scorer = f" by {made['scorer']['name']}" if made.get("scorer") else ""
    return f"{made['base_model']['name']}, {made['rule']}{bucket}{scorer}, {rows}{adapter}"


def _made_by(name: str) -> list[Artifact]:
    folder = Path(name).expanduser()
    made = read_result(folder) or {}
    return [model_artifact(made["artifact"], folder / "model")] if "artifact" in made else []
