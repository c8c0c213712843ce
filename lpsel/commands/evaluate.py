"""`lpsel evaluate`: compare models on held-out rows, by their answers to prompts, or on lm_eval tasks."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, ListConfig, OmegaConf

from lpsel.commands.job import Job
from lpsel.commands.tracked_values import log_evaluation
from lpsel.config import build, choice, choices, config_dir, same_letters
from lpsel.errors import UserError
from lpsel.evaluation.evaluator import GENERATIONS, Candidates, EvaluationContext
from lpsel.evaluation.judgements import JUDGEMENTS
from lpsel.generation.openai_client import Endpoint
from lpsel.model.device import resolve_precision
from lpsel.model.load import locate
from lpsel.model.spec import ModelSpec
from lpsel.report.runs import find_runs, rule_name
from lpsel.run_config import read_result
from lpsel.tracking.artifacts import evaluation_artifact, model_artifact

log = logging.getLogger(__name__)


def run(job: Job) -> dict[str, Any]:
    """Evaluate the models and write generations and metrics to the run folder."""
    config = job.config
    candidates, names = candidates_of(config)
    with_key = sorted({model.host for model in candidates.all if isinstance(model, Endpoint) and model.key_env})
    if len(with_key) > 1:
        problem = f"would be sent to {with_key[0]} and {with_key[1]}"
        hint = "evaluate the models of one server at a time; their answers are cached"
        raise UserError("key_env", config.key_env, problem, hint)
    evaluator = build(config.evaluator)
    context = EvaluationContext(job.run_dir, job.cache_dir, config.trainer.accelerator, config.trainer.precision)
    device = None
    if candidates.all:  # imported verdicts need neither models nor torch, which takes seconds to import
        device = str(context.device)
        resolve_precision(context.precision, context.accelerator)
    for spec in candidates.all:
        if isinstance(spec, ModelSpec) and spec.path:
            locate(spec, job.cache_dir)
    evaluator.check(candidates)
    _warn_of_toy_rows(evaluator, names, candidates)
    if candidates.all:
        log.info("Evaluating %s", "; ".join(model.name for model in candidates.all))
    job.start_tracking()
    for name in dict.fromkeys(names):
        folder = Path(name).expanduser()
        artifact = (read_result(folder) or {}).get("artifact")
        if artifact is not None:
            job.tracker.use_artifact(model_artifact(artifact, folder / "model"))
    result = evaluator.evaluate(candidates, context)
    log_evaluation(job.tracker, result)
    for output in (job.run_dir / GENERATIONS, job.run_dir / JUDGEMENTS):
        if output.exists():
            job.tracker.log_artifact(evaluation_artifact(output, job.run_dir))
    return {"command": "evaluate", "device": device, **result}


def _check_used(config: DictConfig) -> None:
    """Raise a UserError for an option that the evaluator does not use, or that imported verdicts replace."""
    given = {key: config[key] for key in ("prompts", "judgements") if config[key] is not None}
    if OmegaConf.to_container(config.judge) != OmegaConf.to_container(choice("judge", "openai")):
        given["judge"] = None  # a mapping, which the error leaves out
    evaluator = _evaluator_name(config)
    used = str(OmegaConf.to_container(config.evaluator))  # refers to options as ${NAME}
    for key, value in given.items():
        if f"${{{key}}}" not in used:
            hint = "leave it out, or set evaluator=pairwise"
            raise UserError(key, value, f"evaluator={evaluator} does not use it", hint)
    if given.pop("judgements", None) is not None:
        given |= {key: value for key, value in (("model", config.models), ("baseline", config.baseline)) if value}
        if given:
            key, value = next(iter(given.items()))
            problem = f"evaluator={evaluator} does not use it with judgements="
            raise UserError(key, value, problem, "leave one of them out")


def _evaluator_name(config: DictConfig) -> str:
    """Name of the evaluator in conf/evaluator, or its class if it has none."""
    target: str = config.evaluator["_target_"]
    for name in choices("evaluator"):
        if target in (config_dir() / "evaluator" / f"{name}.yaml").read_text():
            return name
    return target


def _warn_of_toy_rows(evaluator: Any, names: Sequence[str], candidates: Candidates) -> None:
    """Warn if a model other than the embedded ones is evaluated on the embedded toy rows."""
    dataset = getattr(evaluator, "dataset", None)
    if dataset is None or dataset.path is not None:
        return
    for name, model in zip(names, candidates.all, strict=True):
        base = (read_result(Path(name).expanduser()) or {}).get("base_model")
        path = base["path"] if base else getattr(model, "path", None)
        if path is not None:
            problem = f"has toy rows for the embedded models: results of {model.name} on them are meaningless"
            log.warning("dataset=%s %s. Set dataset=FILE_OR_HUB_ID.", dataset.name, problem)
            return


def candidates_of(config: DictConfig) -> tuple[Candidates, list[str]]:
    """Resolve the baseline, if any, and the models, and return them with their names in the configuration.

    A sweep folder is expanded to its runs. Runs that differ only in the seed get it added to their names.

    Raises:
        UserError: a model does not exist, or the evaluator does not use an option.
    """
    _check_used(config)
    models = config.models if isinstance(config.models, ListConfig) else [config.models]
    names = [run for name in models if name is not None for run in _runs_of(str(name), config.baseline)]
    baseline = [] if config.baseline is None else [str(config.baseline)]
    specs = [candidate(name, config) for name in [*names, *baseline]]
    count = Counter(spec.name for spec in specs)
    for number, (name, spec) in enumerate(zip([*names, *baseline], specs, strict=True)):
        seed = (read_result(Path(name).expanduser()) or {}).get("seed")
        if count[spec.name] > 1 and seed is not None and isinstance(spec, ModelSpec):
            specs[number] = replace(spec, name=f"{spec.name}, seed {seed}")
    return Candidates(tuple(specs[: len(names)]), specs[-1] if baseline else None), [*baseline, *names]


def _runs_of(name: str, baseline: str | None) -> list[str]:
    """Expand a sweep folder to its training runs, without the baseline; other names are returned unchanged."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file() or read_result(folder) is not None:
        return [name]
    runs = find_runs([folder])
    excluded = None if baseline is None else Path(baseline).expanduser().resolve()
    trained = [str(run.folder) for run in runs.by_command("train") if run.folder != excluded]
    if trained and runs.skipped:
        log.warning("%s: %s of its runs are not finished and not evaluated", name, len(runs.skipped))
    return trained or [name]


def candidate(name: str, config: DictConfig) -> ModelSpec | Endpoint:
    """Resolve `model=NAME`: MODEL@URL, a run folder of train.py, a model folder, a name in conf/model, or a Hub id."""
    if (endpoint := Endpoint.of(name, config.key_env)) is not None:
        return endpoint
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return _trained_model(name, folder, config.trust_remote_code)
    if not folder.is_dir() and (config_dir() / "model" / f"{name}.yaml").is_file():
        return build(compose("evaluate", overrides=[f"+model={name}", "models=null"]).model)
    if not folder.is_dir() and (similar := same_letters(name, choices("model"))):
        raise UserError("model", name, "no such model", f"did you mean {similar[0]}?")
    options = {key: config[key] for key in ("template", "max_length", "trust_remote_code", "bin_weights")}
    if folder.is_dir():
        return ModelSpec(folder.resolve().name, str(folder), **options)
    return ModelSpec(name.rsplit("/", 1)[-1], name, config.revision, **options)


def _trained_model(name: str, folder: Path, trust_remote_code: bool) -> ModelSpec:
    """Load the model spec of a run folder, which may be untrusted: it never turns on trust_remote_code."""
    result = read_result(folder) or {}
    try:
        base, merged = result["base_model"], result["model"] is not None
        options = {"template": base["template"], "max_length": base["max_length"]}
        spec = ModelSpec(_describe_run(result), str(folder / "model"), **options, trust_remote_code=trust_remote_code)
        needs_code = base["trust_remote_code"] is not False
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        problem = "neither a finished run of train.py (result.json with a model) nor a model folder (config.json)"
        hint = "set model to one of these, a name in conf/model or a Hugging Face id"
        raise UserError("model", name, problem, hint) from None
    if needs_code and trust_remote_code is not True:
        problem = "its result.json has trust_remote_code=true, but this command does not"
        hint = "set trust_remote_code=true if you trust the code that comes with the model"
        raise UserError("model", name, problem, hint)
    if not merged:
        problem = "its adapter is not merged (adapter.merge=false)"
        hint = f"merge it into {folder / 'model'} (docs/guides/memory.md), and set model to that folder"
        raise UserError("model", name, problem, hint)
    return spec


def _describe_run(result: dict[str, Any]) -> str:
    """Describe a run in a table: its target, rule, scorer and percentage of the data."""
    settings = result.get("settings") or {}
    unit = " of the tokens" if settings.get("pct_of") == "tokens" else ""
    rows = "all" if result["rule"] == "full" else f"{result['pct']:g}%{unit}"
    bucket = f" {result['bucket']} bucket" if result.get("bucket") else ""
    length = " of matched length" if settings.get("length") == "matched" else ""
    known = " without known rows" if settings.get("known") == "drop" else ""
    adapter = f", {result['adapter']['method']}" if result.get("adapter") else ""
    scorer = f" by {result['scorer']['name']}" if result.get("scorer") else ""
    return f"{result['base_model']['name']}, {rule_name(result)}{bucket}{length}{known}{scorer}, {rows}{adapter}"
