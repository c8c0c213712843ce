"""What a configuration says of a model and of the way it is fine-tuned. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any

from lpsel.errors import UserError

SCHEDULES = ("cosine", "linear", "constant")
TEMPLATES = ("alpaca", "chat", "plain")


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; the defaults are the paper's (released training settings).

    Attributes:
        epochs: passes over the rows; also the horizon of the learning-rate schedule.
        batch_size: rows of one optimiser step, over all devices and micro-batches.
        learning_rate: its peak, after warm-up.
        warmup: share of all optimiser steps over which the rate rises from 0.
        schedule: what the rate does after warm-up: cosine or linear to 0, or constant.
        max_grad_norm: the gradient's 2-norm is clipped to this.
        seed: of the order of the rows.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 2e-5
    warmup: float = 0.03
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed"):
            value = getattr(self, name)
            _require(isinstance(value, int), f"recipe.{name}={value}: must be a whole number.")
        for name in ("learning_rate", "warmup", "max_grad_norm"):
            value = getattr(self, name)
            _require(isinstance(value, int | float), f"recipe.{name}={value}: must be a number.")
        _require(self.epochs >= 1, f"recipe.epochs={self.epochs}: must be at least 1.")
        _require(self.batch_size >= 1, f"recipe.batch_size={self.batch_size}: must be at least 1 row.")
        _require(self.learning_rate > 0, f"recipe.learning_rate={self.learning_rate}: must be above 0.")
        _require(0 <= self.warmup < 1, f"recipe.warmup={self.warmup}: a share of all steps, from 0 to below 1.")
        _require(self.schedule in SCHEDULES, f"recipe.schedule={self.schedule}: must be one of {', '.join(SCHEDULES)}.")
        _require(self.max_grad_norm > 0, f"recipe.max_grad_norm={self.max_grad_norm}: must be above 0.")
        _require(0 <= self.seed < 2**32, f"recipe.seed={self.seed}: must be from 0 to 4294967295.")


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model, as scorer or as target.

    Attributes:
        name: shown in results and folder names.
        path: Hugging Face id or local folder; null for a tiny model made on the spot.
        revision: branch, tag or commit of a Hub model.
        template: how a row becomes text: alpaca, chat (the tokenizer's own) or plain.
        max_length: rows are cut to this many tokens.
        trust_remote_code: run Python code that comes with the model. Off unless asked for.
        tiny: arguments of `lpsel.model.tiny.make_tiny`, used when path is null.
        recipe: how it is fine-tuned.
    """

    name: str
    path: str | None = None
    revision: str | None = None
    template: str = "alpaca"
    max_length: int = 512
    trust_remote_code: bool = False
    tiny: dict[str, Any] | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        _require(self.template in TEMPLATES, f"template={self.template}: must be one of {', '.join(TEMPLATES)}.")
        _require(isinstance(self.max_length, int), f"max_length={self.max_length}: must be a whole number of tokens.")
        _require(self.max_length >= 2, f"max_length={self.max_length}: must be at least 2 tokens.")
        _require(
            bool(self.path) or self.tiny is not None,
            f"model {self.name}: no path; give model.path=FOLDER_OR_HUB_ID (scorer.path= for the scorer).",
        )


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
