"""The inputs of evaluators. An evaluator, built from a file in conf/evaluator, compares models with three methods:

- `check(candidates)` raises a UserError if models or settings are missing.
- `evaluate(candidates, context)` returns metrics as plain values and writes files to the run folder. It raises a
  UserError before it loads a model, if the error can be detected by then.
- `table(result)` formats the result for the terminal.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lpsel.errors import UserError
from lpsel.generation.openai_client import Endpoint
from lpsel.model.device import device_of, resolve_precision
from lpsel.model.spec import ModelSpec
from lpsel.storage import file_names

if TYPE_CHECKING:
    import torch

GENERATIONS = "generations"  # subfolder of the run folder, with one file per model


@dataclass(frozen=True)
class Candidates:
    """The models to evaluate and the baseline to compare them with."""

    models: tuple[ModelSpec | Endpoint, ...]
    baseline: ModelSpec | Endpoint | None = None

    @property
    def all(self) -> tuple[ModelSpec | Endpoint, ...]:
        """The baseline, if any, followed by the models."""
        return self.models if self.baseline is None else (self.baseline, *self.models)

    def local(self) -> list[ModelSpec]:
        """Return all models, which must have weights; raise a UserError if one is an endpoint or if there are none."""
        if not self.all:
            raise UserError("model", "null", "no model to evaluate", "set model=RUN_OR_MODEL or model=[A,B]")
        for model in self.all:
            if isinstance(model, Endpoint):
                name = f"{model.model}@{model.base_url}"
                hint = "set evaluator=pairwise, or set model to a run folder or a local model"
                raise UserError("model", name, "this evaluator needs the model's weights", hint)
        return [model for model in self.all if isinstance(model, ModelSpec)]


@dataclass(frozen=True)
class EvaluationContext:
    """Where an evaluation runs and writes its files."""

    folder: Path  # the run folder
    cache_dir: Path  # for tokens, answers, verdicts and tiny models
    accelerator: str  # accelerator and precision are set as for training
    precision: str

    @property
    def device(self) -> "torch.device":
        """Device to load the models on; imports torch."""
        return device_of(self.accelerator)

    @property
    def dtype(self) -> "torch.dtype":
        """Data type of the models' weights; imports torch."""
        import torch

        precise = resolve_precision(self.precision, self.accelerator) == "32-true"
        return torch.float32 if precise else torch.bfloat16


def generation_files(names: Sequence[str], folder: Path) -> list[str]:
    """Remove the generations of an earlier run, and return a file name in the run folder for each model."""
    shutil.rmtree(folder / GENERATIONS, ignore_errors=True)
    return [f"{GENERATIONS}/{file}.jsonl" for file in file_names(names)]
