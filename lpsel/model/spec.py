"""What a configuration says of a model and of the way it is fine-tuned. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any

from lpsel.errors import UserError, is_int, is_number

SCHEDULES = ("cosine", "linear", "constant")
TEMPLATES = ("alpaca", "chat", "plain")
STOPS = ("stable",)
FEWEST_STOP_ROWS = 20  # a rank correlation of fewer says little


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
            _require(is_int(value), f"recipe.{name}={value}: must be a whole number.")
        for name in ("learning_rate", "warmup", "max_grad_norm"):
            value = getattr(self, name)
            _require(is_number(value), f"recipe.{name}={value}: must be a number.")
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
        bin_weights: read pickled weights (pytorch_model.bin) where there are no safetensors, tensors only. Off unless
            asked for.
        tiny: arguments of `lpsel.toy.model.make_tiny`, used when path is null.
        architecture: what config.json says of its size, for a dry run that cannot read it; unused else.
        recipe: how it is fine-tuned.
    """

    name: str
    path: str | None = None
    revision: str | None = None
    template: str = "alpaca"
    max_length: int = 512
    trust_remote_code: bool = False
    bin_weights: bool = False
    tiny: dict[str, Any] | None = None
    architecture: dict[str, Any] | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        _require(self.template in TEMPLATES, f"template={self.template}: must be one of {', '.join(TEMPLATES)}.")
        _require(is_int(self.max_length), f"max_length={self.max_length}: must be a whole number of tokens.")
        for name in ("trust_remote_code", "bin_weights"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name}={value}: must be true or false.")
        _require(self.max_length >= 2, f"max_length={self.max_length}: must be at least 2 tokens.")
        _require(
            bool(self.path) or self.tiny is not None,
            f"model {self.name}: no path; give model.path=FOLDER_OR_HUB_ID (scorer.path= for the scorer).",
        )


@dataclass(frozen=True)
class ScorerSpec(ModelSpec):
    """A model as scorer, and how much of its recipe's training it gets: docs/guides/stopping.md.

    Attributes:
        train_fraction: share of the rows with a supervised token, chosen at random, that it is trained on.
        stop: `stable` ends an epoch's training once the ranking has settled; null trains whole epochs.
        stop_bound: the ranking has settled when its rank correlation with the checkpoint before reaches this.
        stop_rows: rows, chosen at random, by which the ranking is followed.
    """

    train_fraction: float = 1.0
    stop: str | None = None
    stop_bound: float = 0.9
    stop_rows: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_fraction", "stop_bound"):
            value = getattr(self, name)
            _require(is_number(value), f"scorer.{name}={value}: must be a number.")
        _require(
            0 < self.train_fraction <= 1,
            f"scorer.train_fraction={self.train_fraction}: a share of the rows, above 0 and at most 1.",
        )
        _require(
            self.stop is None or self.stop in STOPS,
            f"scorer.stop={self.stop}: must be {' or '.join(STOPS)}, or null to train whole epochs.",
        )
        _require(
            0 < self.stop_bound < 1, f"scorer.stop_bound={self.stop_bound}: a rank correlation, above 0 and below 1."
        )
        _require(
            is_int(self.stop_rows) and self.stop_rows >= FEWEST_STOP_ROWS,
            f"scorer.stop_rows={self.stop_rows}: must be a whole number of rows, at least {FEWEST_STOP_ROWS}.",
        )

    def less_training(self) -> dict[str, Any]:
        """What is asked for in place of training on every row of every epoch; empty where nothing is."""
        part = {"train_fraction": self.train_fraction} if self.train_fraction < 1 else {}
        rule = {"rule": self.stop, "bound": self.stop_bound, "rows": self.stop_rows} if self.stop else {}
        return part | ({"stop": rule} if rule else {})


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
