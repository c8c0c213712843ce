"""`train`: find or make scores and a subset, train the target on it, leave a Hugging Face folder."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from lpsel.commands import result_summary as outline
from lpsel.commands.job import Job
from lpsel.commands.select import choose, describe_model, prepare, write_selection
from lpsel.commands.tracked_values import log_ledger
from lpsel.config import build
from lpsel.console import as_text, lines
from lpsel.data.dataset import Source
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.load import check_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.tracking.artifacts import model_artifact, model_name
from lpsel.training.costs import ledger
from lpsel.training.setup import TrainingSetup
from lpsel.training.trained_models import MODEL, checkpoints_of, trained_once, training_entry

log = logging.getLogger(__name__)


def run(job: Job) -> dict[str, Any]:
    """Select, train, save. The run folder is a selection folder of the contract with the model beside it."""
    target: ModelSpec = build(job.config.model)
    adapter: Adapter | None = build(job.config.adapter)
    setup = job.training_setup()
    if adapter is not None:
        adapter.check(job.config.trainer.strategy)
    plan = prepare(job, tokens_of=target)
    _ = setup.device, setup.precision
    check_model(target, job.cache_dir)
    path = locate(target, job.cache_dir)
    job.start_tracking()

    chosen = choose(job, plan)
    result = write_selection(job, plan, chosen) if is_main_process() else {}
    log.info(
        "Selection %s: %s of %s rows, to train %s on",
        plan.rule.name,
        f"{chosen.selection.n_selected:,}",
        f"{chosen.selection.n_total:,}",
        target.name,
    )
    rows_N = chosen.selection.selected
    entry = training_entry(
        setup,
        target,
        path,
        OmegaConf.to_container(job.config.adapter, resolve=True),
        plan.source.ids,
        rows_N,
    )
    checkpoints = checkpoints_of(entry)
    job.temporary.append(checkpoints)
    trained = trained_once(
        setup,
        entry,
        lambda: _train(setup, target, adapter, path, plan.source, rows_N, checkpoints),
        from_any_run=job.in_sweep,
    )
    if not is_main_process():
        return {}

    result = {"command": "train", **result, **trained}
    result["ledger"] = ledger(result["scoring"], result["training"], result.pop("full_training"))
    log_ledger(job.tracker, result["ledger"])
    log.info(as_text(lines([*outline.selection(result), *outline.scores(result), *outline.training(result)])))
    return result


def _train(
    setup: TrainingSetup,
    target: ModelSpec,
    adapter: Adapter | None,
    path: str,
    source: Source,
    rows_N: NDArray[np.bool_],
    checkpoints: Path,
) -> dict[str, Any]:
    """Train the target on the chosen rows and save it; its part of result.json, on the main process.

    Args:
        checkpoints: folder of its checkpoints.
    """
    from lpsel.data.tokens import tokenize
    from lpsel.model.export import save_model
    from lpsel.scoring.scorer import report_tokens
    from lpsel.training.monitors import LossSpikes, UntrainedTokens, check_vocabulary
    from lpsel.training.trainer import fit, full_training

    tokenizer = load_tokenizer(target, path)
    tokens = tokenize(source, tokenizer, target.template, target.max_length, setup.cache_dir)
    report_tokens(tokens, target)
    check_vocabulary(tokens, tokenizer, target, path)
    data = setup.data_module(tokens, target, mask=rows_N)
    if not data.steps_per_epoch:
        raise UserError(
            f"model.max_length={target.max_length}: leaves no supervised token in any chosen row; raise it."
        )
    untrained = int(rows_N.sum() - data.trained.sum())
    if untrained:
        log.warning(
            "Target: %s chosen rows keep no supervised token for %s and are not trained on", untrained, target.name
        )

    epochs = target.recipe.epochs
    module = setup.fine_tuner("target", target, path, data.steps_per_epoch * epochs, adapter=adapter)
    title = f"Target {target.name}"
    spikes, new = LossSpikes(title), UntrainedTokens(title, tokens, tokenizer)
    trainer, cost = fit(
        setup, module, data, epochs=epochs, title=title, callbacks=[spikes, new], checkpoints=checkpoints
    )
    nll = float(trainer.callback_metrics["target/nll"])
    folder = setup.run_dir / MODEL
    save_model(trainer, module, tokenizer, folder)
    if not is_main_process():
        return {}

    result: dict[str, Any] = {
        "model": str(folder) if folder.is_dir() else None,
        "base_model": describe_model(target),
        "adapter": module.adapted.describe(setup.run_dir) if module.adapted else None,
        "training": {
            "rows": int(data.trained.sum()),
            "rows_truncated": int(tokens.truncated[data.trained].sum()),
            "steps": trainer.global_step,
            "epochs": epochs,
            "last_step_nll": nll,
            "loss_spikes": spikes.described(),
            "untrained_tokens": new.tokens,
            "precision": module.precision,
            "world_size": trainer.world_size,
            **asdict(cost),
        },
    }
    result["full_training"] = full_training(module, data, epochs)
    result["artifact"] = model_name(setup.run_dir)
    saved = folder if result["model"] else Path(result["adapter"]["folder"])
    setup.tracker.log_artifact(model_artifact(result["artifact"], saved, result["training"]))
    return result
