"""Settings of a model and its fine-tuning. Imports no heavy libraries."""

from dataclasses import InitVar, dataclass, field
from typing import Any

from lpsel.errors import UserError, check_choice, check_flag, check_int, check_number

SCHEDULES = ("cosine", "linear", "constant")
TEMPLATES = ("auto", "alpaca", "chat", "plain")
REDUCTIONS = ("token", "row", "micro_batch")
STOPS = ("stable",)
MIN_STOP_ROWS = 20  # a rank correlation over fewer rows means little
RELEASED_BATCH = 32  # rows per step and GPU in the released training settings: 8 micro-batches of 4


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning; the defaults are the paper's (released training settings).

    Attributes:
        global_batch: rows per optimizer step, over all devices and micro-batches.
        learning_rate: peak learning rate, reached after warm-up.
        warmup: fraction of all optimizer steps over which the learning rate rises from 0.
        schedule: learning rate after warm-up: cosine or linear decay to 0, or constant.
        reduction: what the loss of a step averages: its supervised tokens, the means of its rows, or the means of its
            micro-batches of 4 rows, as in the released training, where short answers count more.
        dropout: train with the dropout rates in the model's config.json. Rows are then padded instead of packed, and
            the result depends on train_tokens and the number of devices.
        seed: seed for the order of the rows and for dropout.
        gpus: number of GPUs; sets global_batch as in the released settings, 32 rows per GPU.
    """

    epochs: int = 3
    global_batch: int = RELEASED_BATCH
    learning_rate: float = 2e-5
    warmup: float = 0.03
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    reduction: str = "token"
    dropout: bool = False
    seed: int = 42
    gpus: InitVar[int | None] = None

    def __post_init__(self, gpus: int | None) -> None:
        check_int("recipe.epochs", self.epochs, 1)
        if gpus is not None:
            check_int("recipe.gpus", gpus, 1)
            object.__setattr__(self, "global_batch", RELEASED_BATCH * gpus)
        check_int("recipe.global_batch", self.global_batch, 1, what="a number of rows")
        check_number("recipe.learning_rate", self.learning_rate, above=0)
        check_number("recipe.warmup", self.warmup, minimum=0)
        if self.warmup >= 1:
            raise UserError("recipe.warmup", self.warmup, "must be a fraction of all steps, less than 1")
        check_choice("recipe.schedule", self.schedule, SCHEDULES)
        check_number("recipe.max_grad_norm", self.max_grad_norm, above=0)
        check_choice("recipe.reduction", self.reduction, REDUCTIONS)
        check_flag("recipe.dropout", self.dropout)
        check_int("recipe.seed", self.seed, 0)
        if self.seed >= 2**32:
            raise UserError("recipe.seed", self.seed, "must be less than 4294967296")


@dataclass(frozen=True)
class ModelSpec:
    """Settings of a causal language model, used as scorer or target.

    Attributes:
        path: Hugging Face id or local folder; null for a tiny model that is created when needed.
        revision: branch, tag or commit of a Hub model.
        template: how a row is formatted as text: alpaca, chat (the tokenizer's own template), plain, or auto, which
            depends on the dataset (`lpsel.model.load.with_template`).
        max_length: maximum number of tokens per row; longer rows are truncated.
        trust_remote_code: run Python code that comes with the model.
        bin_weights: without safetensors, load pickled weights (pytorch_model.bin), tensors only.
        tiny: arguments of `lpsel.toy.model.make_tiny`, used if path is null.
        architecture: the sizes in config.json, used only by dry runs that cannot read that file.
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
        check_choice("template", self.template, TEMPLATES)
        check_int("max_length", self.max_length, 2, what="a number of tokens")
        check_flag("trust_remote_code", self.trust_remote_code)
        check_flag("bin_weights", self.bin_weights)
        if not self.path and self.tiny is None:
            hint = "set model.path=FOLDER_OR_HUB_ID (for the scorer, scorer.path=)"
            raise UserError(f"model {self.name}", problem="has no path", hint=hint)


@dataclass(frozen=True)
class ScorerSpec(ModelSpec):
    """Settings of a scorer: a model, and options that shorten its training (docs/guides/stopping.md)."""

    train_fraction: float = 1.0  # fraction of the rows with a supervised token, drawn at random, to train on
    stop: str | None = None  # `stable` ends an epoch's training once the ranking is stable; null trains whole epochs
    stop_bound: float = 0.9  # rank correlation with the previous check at which the ranking counts as stable
    stop_rows: int = 256  # number of rows, drawn at random, whose ranking is checked

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("scorer.train_fraction", self.train_fraction, above=0)
        if self.train_fraction > 1:
            raise UserError("scorer.train_fraction", self.train_fraction, "must be a fraction of the rows, at most 1")
        if self.stop is not None:
            check_choice("scorer.stop", self.stop, STOPS, "set it to null to train whole epochs")
        check_number("scorer.stop_bound", self.stop_bound, above=0)
        if self.stop_bound >= 1:
            raise UserError("scorer.stop_bound", self.stop_bound, "must be a rank correlation, less than 1")
        check_int("scorer.stop_rows", self.stop_rows, MIN_STOP_ROWS, what="a number of rows")

    def check_epochs(self, epochs: int) -> None:
        """Raise a UserError if a selection needs more recorded epochs than the recipe has."""
        if epochs > self.recipe.epochs:
            problem = f"the selection needs {epochs} recorded epochs"
            hint = "raise it, or choose a rule that needs fewer (selection=lp_app needs 1)"
            raise UserError("scorer.recipe.epochs", self.recipe.epochs, problem, hint)

    def less_training(self) -> dict[str, Any]:
        """Return the settings that shorten training; empty if the scorer trains on every row in every epoch."""
        settings: dict[str, Any] = {}
        if self.train_fraction < 1:
            settings["train_fraction"] = self.train_fraction
        if self.stop:
            settings["stop"] = {"rule": self.stop, "bound": self.stop_bound, "rows": self.stop_rows}
        return settings
