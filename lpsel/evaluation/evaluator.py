"""What every evaluator gets and returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lpsel.errors import UserError
from lpsel.generation.openai_client import Endpoint
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from rich.table import Table

GENERATIONS = "generations"  # subfolder of the run folder, with one file per model


@dataclass(frozen=True)
class Candidates:
    """The models of an evaluation, and the baseline that they are compared with."""

    models: tuple[ModelSpec | Endpoint, ...]
    baseline: ModelSpec | Endpoint | None = None

    @property
    def all(self) -> tuple[ModelSpec | Endpoint, ...]:
        """The baseline, if any, followed by the models."""
        return self.models if self.baseline is None else (self.baseline, *self.models)

    def local(self) -> list[ModelSpec]:
        """All of them, for an evaluator that needs their weights.

        Raises:
            UserError: there is none, or one is an endpoint.
        """
        if not self.all:
            raise UserError("model", "null", "no model to evaluate", "set model=RUN_OR_MODEL or model=[A,B]")
        specs = []
        for model in self.all:
            if isinstance(model, Endpoint):
                name = f"{model.model}@{model.base_url}"
                hint = "set evaluator=pairwise, or set model to a run folder or a local model"
                raise UserError("model", name, "this evaluator needs the model's weights", hint)
            specs.append(model)
        return specs


@dataclass(frozen=True)
class EvaluationContext:
    """Where an evaluation runs and writes its files.

    Attributes:
        folder: the run folder.
        cache_dir: for tokens, answers, verdicts and tiny models.
        accelerator, precision: as for training.
    """

    folder: Path
    cache_dir: Path
    accelerator: str
    precision: str

    @property
    def device(self) -> "torch.device":
        """Device of the models; imports torch."""
        return device_of(self.accelerator)

    @property
    def dtype(self) -> "torch.dtype":
        """Data type of the models' weights; imports torch."""
        import torch

        return torch.float32 if resolve_precision(self.precision) == "32-true" else torch.bfloat16


class Evaluator(Protocol):
    """Compares models; built from a file in conf/evaluator."""

    def check(self, candidates: Candidates) -> None:
        """Raise a UserError if models or settings are missing; called before `evaluate`."""

    def evaluate(self, candidates: Candidates, context: EvaluationContext) -> dict[str, Any]:
        """Metrics as plain numbers, strings, lists and dictionaries; writes files to the run folder.

        Raises:
            UserError: before any model is loaded, if the error can be detected by then.
        """

    @staticmethod
    def table(result: dict[str, Any]) -> "Table":
        """The result for the terminal."""
