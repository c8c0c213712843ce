"""What every evaluator is given and gives back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lpsel.errors import UserError, is_int
from lpsel.generation.openai_client import Endpoint
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from rich.table import Table


@dataclass(frozen=True)
class Candidates:
    """The models of an evaluation: `models`, and what they are compared with, where one was named."""

    models: tuple[ModelSpec | Endpoint, ...]
    baseline: ModelSpec | Endpoint | None = None

    @property
    def all(self) -> tuple[ModelSpec | Endpoint, ...]:
        """The baseline first."""
        return self.models if self.baseline is None else (self.baseline, *self.models)

    def on_this_machine(self) -> list[ModelSpec]:
        """All of them, for an evaluator that computes with their weights.

        Raises:
            UserError: none, or one behind an endpoint.
        """
        if not self.all:
            raise UserError("model: none given; say model=RUN_OR_MODEL, or model=[A,B] for several.")
        specs = []
        for model in self.all:
            if isinstance(model, Endpoint):
                raise UserError(
                    f"model={model.model}@{model.base_url}: has no weights here; give a run folder or a model, or say "
                    "evaluator=pairwise."
                )
            specs.append(model)
        return specs


def check_seed(seed: Any) -> None:
    """Raise UserError for a seed that NumPy does not take."""
    if not is_int(seed) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to 4294967295.")


class Place(NamedTuple):
    """Where an evaluation runs and leaves its files.

    Attributes:
        folder: the run folder.
        cache_dir: for tokens, answers, judgements and tiny models.
        accelerator, precision: as the trainer's.
    """

    folder: Path
    cache_dir: Path
    accelerator: str
    precision: str

    @property
    def device(self) -> "torch.device":
        """Where the models run. Torch is imported for it, so that verdicts made elsewhere are counted without."""
        return device_of(self.accelerator)

    @property
    def dtype(self) -> "torch.dtype":
        """The type of the models' weights."""
        import torch

        return torch.float32 if resolve_precision(self.precision) == "32-true" else torch.bfloat16


class Evaluator(Protocol):
    """Compares models. Built from a file in conf/evaluator."""

    def check(self, candidates: Candidates) -> None:
        """See that what is compared was named; `evaluate` does so too.

        Raises:
            UserError: names what was not.
        """

    def evaluate(self, candidates: Candidates, place: Place) -> dict[str, Any]:
        """The figures, plain numbers, strings, lists and dictionaries; files go to the run folder.

        Raises:
            UserError: before any model is loaded where a mistake can be known by then.
        """

    def table(self, result: dict[str, Any]) -> "Table":
        """The result for the terminal."""
