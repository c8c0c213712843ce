"""The judgments of an experiment's evaluations and their price, for its dry run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lpsel.config import build, config_dir
from lpsel.errors import UserError
from lpsel.generation.prompts import load_prompts
from lpsel.judging.openai import LIMITS, OpenAIJudge

CHARACTERS = 4  # per token


def judgments(experiment: DictConfig, cache_dir: Path, models: int) -> Iterator[str]:
    """A line for every evaluation whose judge is a server.

    Args:
        experiment: with `evaluate`, the overrides of `lpsel evaluate`, or a name for each of several evaluations.
        models: how many are judged.
    """
    evaluate: Any = OmegaConf.to_container(experiment.evaluate, resolve=True)
    for overrides in evaluate.values() if isinstance(evaluate, dict) else [evaluate]:
        with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="evaluate"):
            evaluator = build(compose("evaluate", overrides=overrides).evaluator)
        judge = getattr(evaluator, "judge", None)
        if not isinstance(judge, OpenAIJudge):
            continue
        folder = None if evaluator.prompts_dir is None else Path(evaluator.prompts_dir).expanduser()
        try:
            prompts = load_prompts(evaluator.prompts, evaluator.limit, cache_dir=cache_dir, folder=folder)
        except UserError as error:
            yield f"Judgments by {judge.name}: unknown. {error}"
            continue
        read = sum(len(prompt.text) for prompt in prompts) / CHARACTERS
        read += len(prompts) * (len(judge.text) / CHARACTERS + 2 * evaluator.max_new_tokens)
        written = len(prompts) * next((judge.request[name] for name in LIMITS if name in judge.request), 0)
        yield _line(judge, models, len(prompts), int(read), int(written))


def _line(judge: OpenAIJudge, models: int, prompts: int, read: int, written: int) -> str:
    """Counts and the highest price, with answers as long as they may be.

    Args:
        read, written: tokens of one model's prompts and replies in one order.
    """
    orders = len(judge.orders)
    questions = models * orders
    price = judge.cost(questions * read, questions * written)
    costs = f"up to about ${price:,.2f}" if price is not None else "set judge.prompt_price and judge.completion_price"
    return (
        f"Judgments: {models} models x {prompts:,} prompts x {orders} orders = {questions * prompts:,}, {judge.name}, "
        f"{questions * read / 1e6:,.1f} M tokens read and up to {questions * written / 1e6:,.1f} M written: {costs}."
    )
