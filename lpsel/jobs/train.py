"""`train`: find or make scores and a subset, train the target on it, leave a Hugging Face folder."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpsel.config import Job, build
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.jobs.ledger import describe_ledger, ledger
from lpsel.jobs.select import choose, describe_model, prepare, write_selection
from lpsel.model.adapter import Adapter
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.extras import check_training
from lpsel.model.load import check_model, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.tracking.base import Artifact

log = logging.getLogger(__name__)

MODEL = "model"


def run(job: Job) -> dict[str, Any]:
    """Select, train, save. The run folder is a selection folder of the contract with the model beside it."""
    target: ModelSpec = build(job.config.model)
    adapter: Adapter | None = build(job.config.adapter)
    check_training(job.config)
    if adapter is not None:
        adapter.check(job.config.trainer)
    plan = prepare(job, tokens_of=target)
    device_of(job.config.trainer.accelerator)
    precision = resolve_precision(job.config.trainer.precision)
    check_model(target, job.cache_dir)
    path = locate(target, job.cache_dir)
    job.start_tracking()

    from lpsel.data.module import SubsetDataModule
    from lpsel.data.tokens import tokenize
    from lpsel.jobs.fitting import fit, full_training
    from lpsel.jobs.score import report_tokens
    from lpsel.model.export import save_model
    from lpsel.model.module import FineTuner

    chosen = choose(job, plan)
    result = write_selection(job, plan, chosen) if is_main_process() else {}

    tokenizer = load_tokenizer(target, path)
    tokens = tokenize(plan.source, tokenizer, target.template, target.max_length, job.cache_dir)
    report_tokens(tokens, target)
    data = SubsetDataModule(
        tokens,
        mask=chosen.selection.selected,
        batch_size=target.recipe.batch_size,
        seed=target.recipe.seed,
        train_tokens=job.config.train_tokens,
        score_tokens=job.config.score_tokens,
        few_shapes=job.config.compile,
    )
    if not data.steps_per_epoch:
        raise UserError(
            f"model.max_length={target.max_length}: leaves no supervised token in any chosen row; raise it."
        )
    untrained = int(chosen.selection.n_selected - data.trained.sum())
    if untrained:
        log.warning(
            "Target: %s chosen rows keep no supervised token for %s and are not trained on", untrained, target.name
        )

    epochs = target.recipe.epochs
    module = FineTuner(
        "target",
        target,
        path,
        build(job.config.optimizer),
        data.steps_per_epoch * epochs,
        precision=precision,
        adapter=adapter,
        activation_checkpointing=job.config.activation_checkpointing,
        compiled=job.config.compile,
    )
    trainer, cost = fit(job, module, data, epochs=epochs, title=f"Target {target.name}", callbacks=[])
    nll = float(trainer.callback_metrics["target/nll"])
    folder = job.run_dir / MODEL
    save_model(trainer, module, tokenizer, folder)
    if not is_main_process():
        return {}

    result = {"command": "train", **result}
    result |= {
        "model": str(folder) if folder.is_dir() else None,
        "base_model": describe_model(target),
        "adapter": module.adapted.describe(job.run_dir) if module.adapted else None,
        "training": {
            "rows": int(data.trained.sum()),
            "rows_truncated": int(tokens.truncated[data.trained].sum()),
            "steps": trainer.global_step,
            "epochs": epochs,
            "last_step_nll": nll,
            "precision": module.precision,
            "world_size": trainer.world_size,
            **asdict(cost),
        },
    }
    result["ledger"] = ledger(result["scoring"], asdict(cost), full_training(module, data, epochs))
    name = f"model-{job.run_dir.parent.name}-{job.run_dir.name}"
    kept = folder if result["model"] else Path(result["adapter"]["folder"])
    job.tracker.made(Artifact("model", name, kept, by_reference=True, metadata=result["training"]))
    result["artifact"] = name
    if result["adapter"]:
        log.info(
            "Adapter: %s weights trained beside %s, at a learning rate of %g; kept in %s",
            f"{result['adapter']['trainable_parameters']:,}",
            target.name,
            target.recipe.learning_rate,
            result["adapter"]["folder"],
        )
    log.info(describe_ledger(result["ledger"]))
    log.info(
        "Trained %s on %s rows: %s steps, %s tokens, %.1f s, NLL of the last step %.4f",
        target.name,
        f"{int(data.trained.sum()):,}",
        trainer.global_step,
        f"{cost.tokens:,}",
        cost.seconds,
        nll,
    )
    return result
