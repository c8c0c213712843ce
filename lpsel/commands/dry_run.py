"""`dry_run=true`: estimate the tokens, FLOPs and GPU memory of a job, and check whether its models fit.

Nothing is trained and no weights are loaded: a model's shape is read from its config.json, or from `architecture` in
conf/model if the Hub is not available.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from rich.text import Text

from lpsel import console
from lpsel.commands import work_estimate as estimate
from lpsel.commands.evaluate import candidates_of
from lpsel.commands.evaluation_estimate import evaluation_work, judgments_of
from lpsel.commands.job import Job
from lpsel.commands.row_checks import check_rows
from lpsel.commands.selection_inputs import check_recipe, query_source, read_given_scores, scoring_model
from lpsel.commands.work_estimate import GIB, UTILIZATION, ModelShape, Pass, Work
from lpsel.config import build
from lpsel.data.dataset import Source
from lpsel.data.shared_source import shared_source
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.device import resolve_precision
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.flops import forward_flops, training_flops
from lpsel.model.fsdp import option_of, shards
from lpsel.model.load import locate
from lpsel.model.memory_estimate import GPU_BYTES, USABLE, DeviceMemory, devices_needed, training_memory, training_pack
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.scoring.columns import RECORDABLE
from lpsel.scoring.store import find_scores, scores_entry
from lpsel.selection.spec import SelectionSpec
from lpsel.training.checkpoint import CHECKPOINTS_KEPT


def print_plan(command: str, config: DictConfig, folder: Path) -> None:
    """Print the plan of one job; raises a UserError if a model does not fit or the job would end with one."""
    work = planned_work(command, config, folder)
    print_table([(command, work)])
    if command == "evaluate":
        job = Job.of(command, config, folder)
        candidates, _ = candidates_of(config)
        for line in judgments_of(build(config.evaluator), job.cache_dir, len(candidates.models)):
            print(line)
    if problem := memory_problem(work or ()):
        raise problem
    print(folder.resolve(), flush=True)


def memory_problem(work: Iterable[Work]) -> UserError | None:
    """Error for the first model that does not fit into memory, or None."""
    return next((UserError(w.model, problem=w.problem, hint=w.hint) for w in work if w.problem), None)


def planned_work(command: str, config: DictConfig, folder: Path, *, scores_exist: bool = True) -> list[Work] | None:
    """List the models that a job would run, in order; None if its run folder has the result.

    Args:
        scores_exist: whether the file `scores=` exists and is checked; otherwise it is written before the job runs.
    """
    job = Job.of(command, config, folder)
    if job.run_config.finished(folder):
        return None
    if command == "evaluate":
        return evaluation_work(job)
    job.training_setup()
    rule: SelectionSpec = build(config.selection)
    adapter: Adapter | None = build(config.adapter) if command == "train" else None
    if adapter is not None:
        adapter.check(config.trainer.strategy)
    source = shared_source(build(config.dataset))
    pct = rule.percentage(config.pct, len(source))
    query = None
    if scores_exist:
        query = query_source(config, rule)
        scores, _ = read_given_scores(config, rule, source)
        check_rows(rule, build(config.cluster), source, scores)
    work = []
    if rule.epochs is not None and config.scores is None:
        scorer: ScorerSpec = build(config.scorer)
        scorer = scoring_model(rule, scorer, build(config.model)) if command == "train" else scorer
        check_recipe(rule, scorer)
        trained_on = query if rule.trains_on_query else None
        work.append(_scoring(job, scorer, source, trained_on, rule.epochs, rule.records))
    if command == "train":
        work.append(_training(job, build(config.model), adapter, source, rule.planned_rows(pct, len(source))))
    return work


def _scoring(
    job: Job, scorer: ScorerSpec, source: Source, query: Source | None, epochs: int, columns: tuple[str, ...]
) -> Work:
    """Estimate the passes of a scorer that trains on `query`, if any, or `source`, and records the rows of `source`."""
    scorer, model, rows = estimate.with_rows(scorer, source, job.cache_dir)
    trained_rows = rows
    if query is not None:
        _, _, trained_rows = estimate.with_rows(scorer, query, job.cache_dir)
    passes = [
        Pass(epochs * scorer.train_fraction, training_flops, trained_rows),
        Pass(1 + epochs, forward_flops, rows),
    ]
    has_bos = getattr(model.tokenizer, "bos_token_id", None) is not None
    for column in columns:
        recorded_rows = rows.without_prompts(has_bos) if RECORDABLE[column].without_prompt else rows
        passes.append(Pass(1, forward_flops, recorded_rows))
    setup = job.training_setup()
    entry_of = partial(scores_entry, setup, scorer, source, epochs, trained_on=query)
    try:
        path = locate(scorer, job.cache_dir)
        weights = model_fingerprint(path, scorer.revision, job.cache_dir)
        entry = entry_of(weights=weights, precision=setup.precision(scorer, path))
        in_cache = find_scores(entry, epochs, columns) is not None
    except UserError:  # a model that is not on this machine has no scores on it
        weights = f"{scorer.path}@{scorer.revision}"
        entry, in_cache = entry_of(weights=weights, precision=setup.trainer["precision"]), False
    work = _work(job.config, "score", scorer, model, len(source), passes, training=epochs > 0)
    return replace(work, key=entry.digest, epochs=epochs, columns=columns, in_cache=in_cache)


def _training(job: Job, target: ModelSpec, adapter: Adapter | None, source: Source, selected: int) -> Work:
    """Estimate the training, with selected rows as long as the average row."""
    target, model, rows = estimate.with_rows(target, source, job.cache_dir)
    passes = [Pass(target.recipe.epochs * selected / len(source), training_flops, rows)]
    saved = 0.0 if model.shapes is None else 4.0 * model.shapes.num_parameters()
    return replace(_work(job.config, "train", target, model, selected, passes, adapter), model_bytes=saved)


def _work(
    config: DictConfig, what: str, spec: ModelSpec, model: ModelShape, rows: int, passes: Sequence[Pass],
    adapter: Adapter | None = None, *, training: bool = True,
) -> Work:  # fmt: skip
    """Estimate the work of one model from its passes."""
    tokens, flops = estimate.cost(model, passes)
    limit = estimate.gpu_bytes(config)
    size, problem, hint = _memory(config, spec, model, adapter, training, limit)
    checkpoints = _disk(config, model, adapter) if training else 0.0
    return Work(
        what, spec.name, rows, tokens, passes[-1].rows.counted, flops, size, problem=problem, hint=hint, limit=limit,
        hours=estimate.gpu_hours(config, flops), checkpoints=checkpoints,
    )  # fmt: skip


def _memory(
    config: DictConfig, spec: ModelSpec, model: ModelShape, adapter: Adapter | None, training: bool, limit: float | None
) -> tuple[float | None, str, str]:
    """Bytes per device (None if the model's shape is unknown), and the problem and hint if it does not fit."""
    if model.shapes is None:
        return None, "", ""
    precision, accelerator, strategy = config.trainer.precision, config.trainer.accelerator, config.trainer.strategy
    if precision == "auto" and config.gpu_memory_gib is not None:
        precision = "bf16-mixed"  # of the GPU that the user describes
    else:
        hidden_size = model.shapes.config.get_text_config().hidden_size
        precision = resolve_precision(precision, accelerator, hidden_size)

    def memory(shards_per_copy: int, pack: int) -> DeviceMemory:
        if not training:
            stored = 2 if precision == "bf16-true" else 4
            return DeviceMemory(stored * model.shapes.num_parameters() / shards_per_copy, 0.0, 0.0)
        return training_memory(
            model.shapes,
            spec,
            precision=precision,
            eight_bits=config.optimizer["_target_"].startswith("bitsandbytes."),
            adapter=adapter,
            checkpointing=config.activation_checkpointing,
            pack=pack,
            shards=shards_per_copy,
            layers_stay=not option_of(strategy, "reshard_after_forward", True),
            gpu=GPU_BYTES if limit is None else limit,
        )

    usable = math.inf if limit is None else USABLE["cuda"] * limit
    shards_per_copy, pack = 1, config.train_tokens
    if shards(strategy):
        shards_per_copy = estimate.devices(config.trainer) // option_of(strategy, "replicate", 1)
    if pack == "auto":
        pack = training_pack(accelerator, usable, lambda tokens: memory(shards_per_copy, tokens))
    needed = memory(shards_per_copy, pack).total
    if limit is None or needed <= usable:
        return needed, "", ""
    enough = devices_needed(usable, lambda devices: memory(devices, pack))
    option = f"trainer=fsdp trainer.devices={enough}" if enough else "adapter=qlora"
    problem = f"needs {needed / GIB:.0f} GiB on each GPU, which has {limit / GIB:.0f}, a tenth of it in reserve"
    return needed, problem, f"set {option}; docs/guides/memory.md lists more options"


def _disk(config: DictConfig, model: ModelShape, adapter: Adapter | None) -> float:
    """Bytes of the checkpoints of a training run: float32 weights and two moments; 0 with an adapter."""
    if model.shapes is None or adapter is not None:
        return 0.0
    moments = 2 if config.optimizer["_target_"].startswith("bitsandbytes.") else 8
    bytes_per_weight = 4 + moments
    return float(CHECKPOINTS_KEPT * bytes_per_weight * model.shapes.num_parameters())


def print_table(jobs: Sequence[tuple[str, Sequence[Work] | None]], experiment: bool = False) -> None:
    """Print the work of jobs, None for a finished one. Scores from an earlier job or the cache are not counted again.

    Args:
        experiment: whether an evaluation and a report follow.
    """
    numbers = ("rows", "tokens", "FLOPs", "GiB per device")
    table = console.table(("job", "work", *numbers), numbers)
    counted: list[Work] = []
    for name, work in jobs:
        if not work:
            table.add_row(Text(name), "already finished" if work is None else "no model to run")
        for number, piece in enumerate(work or ()):
            table.add_row(Text("" if number else name), *_cells(piece, counted))
            if not piece.in_cache and not any(other.covers(piece) for other in counted):
                counted.append(piece)
    table.caption = Text(_totals(counted, experiment))
    console.show(table)


def short_names(options: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Short names of jobs from the options in their folder names, without options that all jobs share."""
    shared = set.intersection(*map(set, options.values())) if len(options) > 1 else set[str]()
    return {job: " ".join(o for o in parts if o not in shared) or " ".join(parts) for job, parts in options.items()}


def _cells(piece: Work, earlier: Sequence[Work]) -> list[str]:
    name = piece.model
    if piece.in_cache:
        return [f"scores of {name}, in the cache"]
    if any(other.covers(piece) for other in earlier):
        return [f"scores of {name}, as above"]
    epochs = "1 epoch" if piece.epochs == 1 else f"{piece.epochs} epochs"
    return [
        f"score with {name}, {epochs}" if piece.what == "score" else f"{piece.what} {name}",
        f"{piece.rows:,}",
        _short(piece.tokens),
        "unknown" if piece.flops is None else f"{piece.flops:.2g}",
        _gib(piece),
    ]


def _gib(piece: Work) -> str:
    if piece.bytes is None:
        return "unknown"
    limit = "" if piece.limit is None else f" of {piece.limit / GIB:,.0f}"
    return f"{piece.bytes / GIB:,.1f}{limit}{' !' if piece.problem else ''}"


def _totals(counted: Sequence[Work], experiment: bool) -> str:
    """Describe the total work, and what the estimates assume and leave out, one sentence or more per line."""
    flops = [piece.flops for piece in counted if piece.flops is not None]
    at_least = "at least " if len(flops) < len(counted) else ""
    lines = [f"Total: {_short(sum(piece.tokens for piece in counted))} tokens, {at_least}{sum(flops):.3g} FLOPs."]
    hours = [piece.hours for piece in counted if piece.hours is not None]
    if hours:
        total = f"{sum(hours):,.1f}" if at_least or sum(hours) >= 0.05 else "less than 0.1"
        lines.append(f"{at_least}{total} hours at {UTILIZATION}% of gpu_tflops.".capitalize())
    models: dict[str, set[str]] = {}  # by how their tokens were counted
    for piece in counted:
        models.setdefault(piece.lengths, set()).add(piece.model)
    lines += [f"Tokens {how}: {', '.join(sorted(names))}." for how, names in models.items()]
    if any(piece.what == "evaluate" for piece in counted):
        lines.append(
            "Answers are assumed to have maximum length. Generation does not reach this utilization on a GPU. Memory "
            "is the weights in float32."
        )
    else:
        saved = sum(piece.model_bytes for piece in counted) / 1e9
        checkpoints = max((piece.checkpoints for piece in counted), default=0.0) / 1e9
        lines.append(f"Disk: {saved:,.1f} GB of models, and up to {checkpoints:,.1f} GB of checkpoints in training.")
        lines.append(
            "Selected rows are assumed to have average length. Memory is weights, gradients, optimizer states and "
            f"estimated activations; embedding{', evaluation' if experiment else ''} and file access are not included."
        )
    return "\n".join(lines)


def _short(count: float) -> str:
    """Format a count with three digits and a unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
