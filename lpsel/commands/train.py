"""`lpsel train`: load or compute scores, select a subset, train the target on it, and save a Hugging Face model."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from lpsel.commands import result_summary
from lpsel.commands.job import Job
from lpsel.commands.select import describe_model, write_selection
from lpsel.commands.selection_inputs import load_table, prepare_inputs, warn_of_toy
from lpsel.commands.tracked_values import log_ledger
from lpsel.config import build
from lpsel.console import as_text, lines
from lpsel.data.content_ids import counts
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.dataset import Source
from lpsel.data.tokens import Tokens
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.export import save_model
from lpsel.model.load import check_model, load_tokenizer, locate, with_template
from lpsel.model.spec import ModelSpec
from lpsel.scoring.scorer import checked_tokens
from lpsel.selection.select import select
from lpsel.tracking.artifacts import model_artifact, model_name
from lpsel.training.costs import ledger
from lpsel.training.monitors import LossSpikes, UntrainedTokens
from lpsel.training.setup import TrainingSetup
from lpsel.training.trained_models import MODEL, checkpoints_of, trained_once, training_entry
from lpsel.training.trainer import fit, full_training

log = logging.getLogger(__name__)


def run(job: Job) -> dict[str, Any]:
    """Select rows, train on them, and save the model in the selection folder, which is the run folder."""
    setup = job.training_setup()
    spec: ModelSpec = build(job.config.model)
    adapter: Adapter | None = build(job.config.adapter)
    if adapter is not None:
        adapter.check(job.config.trainer.strategy)
    inputs = prepare_inputs(job.config, job.cache_dir, lambda: setup, tokens_of=spec)
    _ = setup.device  # raises a UserError if not available
    check_model(spec, job.cache_dir)
    warn_of_toy("model", spec, inputs.source)
    spec = with_template(spec, inputs.source, job.cache_dir)
    path = locate(spec, job.cache_dir)
    job.start_tracking()

    table, scores = load_table(inputs)
    selection = select(table, inputs.spec, inputs.pct, inputs.seed)
    result: dict[str, Any] = {"command": "train"}
    if is_main_process():
        result |= write_selection(inputs, selection, scores, job.run_dir, job.tracker, job.tracker.use_artifact)
    counts = f"{selection.n_selected:,} of {selection.n_total:,} rows"
    log.info("Selection %s: %s, to train %s on", inputs.spec.name, counts, spec.name)

    adapter_settings = OmegaConf.to_container(job.config.adapter, resolve=True)
    entry = training_entry(setup, spec, path, adapter_settings, inputs.source.ids, selection.selected)
    checkpoints = checkpoints_of(entry)
    job.temporary.append(checkpoints)
    fit_target = partial(train, setup, spec, adapter, path, inputs.source, selection.selected, checkpoints)
    result |= trained_once(setup, entry, fit_target, from_any_run=job.in_sweep)
    if not is_main_process():
        return {}
    result["ledger"] = ledger(result["scoring"], result["training"], result.pop("full_training"), result["n_total"])
    log_ledger(job.tracker, result["ledger"])
    log.info(as_text(lines(result_summary.run(result))))
    return result


def train(
    setup: TrainingSetup, spec: ModelSpec, adapter: Adapter | None, path: str, source: Source,
    selected_N: NDArray[np.bool_], checkpoints: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train the target from the weights at `path` and save it; returns its part of result.json in the main process."""
    epochs, title = spec.recipe.epochs, f"Target {spec.name}"
    tokenizer = load_tokenizer(spec, path)
    tokens = checked_tokens(source, tokenizer, spec, path, setup.cache_dir)
    data = _training_data(setup, spec, tokens, selected_N)
    spikes, untrained = LossSpikes(title), UntrainedTokens(title, tokens, tokenizer)
    module = setup.fine_tuner("target", spec, path, data.steps_per_epoch * epochs, adapter=adapter)
    callbacks = [spikes, untrained]
    trainer, cost = fit(setup, module, data, epochs=epochs, title=title, callbacks=callbacks, checkpoints=checkpoints)
    last_step_nll = float(trainer.callback_metrics["target/nll"])
    folder, name = setup.run_dir / MODEL, model_name(setup.run_dir)
    save_model(trainer, module, tokenizer, folder)
    if not is_main_process():
        return {}
    training = {
        "rows": int(data.trained.sum()),
        "rows_truncated": int(tokens.truncated[data.trained].sum()),
        "rows_unusable": counts(tokens.unusable),
        "steps": trainer.global_step,
        "epochs": epochs,
        "last_step_nll": last_step_nll,
        "loss_spikes": spikes.described(),
        "untrained_tokens": untrained.tokens,
        "precision": module.precision,
        "world_size": trainer.world_size,
        **asdict(cost),
    }
    adapted = module.adapted.describe(setup.run_dir) if module.adapted else None
    saved = folder.is_dir()
    tracked = folder if saved or adapted is None else Path(adapted["folder"])  # the adapter, if only that was saved
    setup.tracker.log_artifact(model_artifact(name, tracked, training))
    return {
        "model": str(folder) if saved else None,
        "artifact": name,
        "base_model": describe_model(spec),
        "adapter": adapted,
        "training": training,
        "full_training": full_training(module, data, epochs),
    }


def _training_data(
    setup: TrainingSetup, spec: ModelSpec, tokens: Tokens, selected_N: NDArray[np.bool_]
) -> SubsetDataModule:
    data = setup.data_module(tokens, spec, mask=selected_N)
    if not data.steps_per_epoch:
        problem = "leaves no supervised token in any selected row"
        raise UserError("model.max_length", spec.max_length, problem, "increase it")
    if unsupervised := int(selected_N.sum() - data.trained.sum()):
        log.warning("Target: %s selected rows have no supervised token for %s and are skipped", unsupervised, spec.name)
    return data
