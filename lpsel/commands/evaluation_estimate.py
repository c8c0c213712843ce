"""Estimate the work of evaluations, and the number and price of their judgments, for dry runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig

from lpsel.commands import work_estimate as estimate
from lpsel.commands.evaluate import candidates_of
from lpsel.commands.experiment import evaluations
from lpsel.commands.job import Job
from lpsel.commands.work_estimate import CHARACTERS, GUESSED, Pass, RowLengths, Work
from lpsel.config import build, configured
from lpsel.data.shared_source import shared_source
from lpsel.errors import UserError
from lpsel.evaluation.held_out import ReferenceEvaluator
from lpsel.evaluation.pairwise import PairwiseEvaluator
from lpsel.judging.openai import LIMITS, OpenAIJudge
from lpsel.model.flops import forward_flops
from lpsel.model.spec import ModelSpec


def evaluation_work(job: Job) -> list[Work]:
    """Estimate the work of every model of `lpsel evaluate` that runs on this machine."""
    evaluator = build(job.config.evaluator)
    candidates, _ = candidates_of(job.config)
    evaluator.check(candidates)
    local = [model for model in candidates.all if isinstance(model, ModelSpec)]
    if isinstance(evaluator, PairwiseEvaluator):
        prompts = [] if evaluator.prompts is None else evaluator.read_prompts(job.cache_dir)[0]
        lengths = np.array([len(prompt.text) // CHARACTERS + 1 for prompt in prompts], np.int32)
        rows = RowLengths(lengths, np.zeros_like(lengths), 1.0, GUESSED).with_answers(evaluator.max_new_tokens)
        return [_work(job, spec, len(prompts), [Pass(1, forward_flops, rows)]) for spec in local]
    if not isinstance(evaluator, ReferenceEvaluator):
        raise UserError("dry_run", True, "evaluator=lm_eval has no estimate", "leave it out")
    source, work = shared_source(evaluator.dataset), []
    for spec in local:
        _, _, rows = estimate.with_rows(spec, source, job.cache_dir)
        passes = [Pass(1, forward_flops, rows)]
        if evaluator.max_new_tokens:
            passes.append(Pass(1, forward_flops, rows.with_answers(evaluator.max_new_tokens)))
        work.append(_work(job, spec, len(source), passes))
    return work


def _work(job: Job, spec: ModelSpec, rows: int, passes: list[Pass]) -> Work:
    """Estimate forward passes of one model on one device."""
    model = estimate.model_shape(spec, job.cache_dir)
    tokens, flops = estimate.cost(model, passes)
    one_device = job.config.copy()
    one_device.trainer.devices = one_device.trainer.num_nodes = 1
    stored = None if model.shapes is None else 4.0 * model.shapes.num_parameters()
    return Work(
        "evaluate", spec.name, rows, tokens, passes[0].rows.counted, flops, stored,
        hours=estimate.gpu_hours(one_device, flops), limit=estimate.gpu_bytes(job.config),
    )  # fmt: skip


def judgments(experiment: DictConfig, cache_dir: Path, models: int) -> Iterator[str]:
    """Yield a line for every evaluation of an experiment whose judge is an API server; `models` of them are judged."""
    for overrides in evaluations(experiment).values():
        with configured("evaluate"):
            evaluator = build(compose("evaluate", overrides=overrides).evaluator)
        yield from judgments_of(evaluator, cache_dir, models)


def judgments_of(evaluator: Any, cache_dir: Path, models: int) -> Iterator[str]:
    """Yield a line with the number of judgments and their maximum price, if the judge is an API server."""
    judge = getattr(evaluator, "judge", None)
    if not isinstance(judge, OpenAIJudge) or evaluator.judgements is not None:
        return
    try:
        prompts, _ = evaluator.read_prompts(cache_dir)
    except UserError as error:
        yield f"Judgments by {judge.name}: unknown. {error}"
        return
    read = sum(len(prompt.text) for prompt in prompts) / CHARACTERS
    read += len(prompts) * (len(judge.text) / CHARACTERS + 2 * evaluator.max_new_tokens)
    reply_limit = next(filter(None, map(judge.request.get, LIMITS)), None)
    written = None if reply_limit is None else len(prompts) * reply_limit
    yield _line(judge, models, len(prompts), int(read), written)


def _line(judge: OpenAIJudge, models: int, prompts: int, read: int, written: int | None) -> str:
    """Describe the number of judgments and their maximum price, for answers of maximum length.

    `read` and `written` are tokens of one model's prompts and replies in one order; None if replies have no limit.
    """
    orders = len(judge.orders)
    questions = models * orders
    product = f"{models} models x {prompts:,} prompts x {orders} orders = {questions * prompts:,}"
    tokens = f"{questions * read / 1e6:,.1f} M tokens read and"
    if written is None:
        return f"Judgments: {product}, {judge.name}, {tokens} replies without a limit: set judge.request.max_tokens."
    price = judge.cost(questions * read, questions * written)
    costs = f"up to about ${price:,.2f}" if price is not None else "set judge.prompt_price and judge.completion_price"
    return f"Judgments: {product}, {judge.name}, {tokens} up to {questions * written / 1e6:,.1f} M written: {costs}."
