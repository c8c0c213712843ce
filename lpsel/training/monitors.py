"""When the numbers of training go wrong: a step that is not finite ends it, a loss that jumps is told of.

R rows of a step's batch, over all ranks
"""

import logging
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning as L
import torch

from lpsel.data.batching import Rows
from lpsel.data.packing import OptimizerStep
from lpsel.distributed import is_main_process
from lpsel.errors import ReportedByMainProcess, UserError

log = logging.getLogger(__name__)

WINDOW = 32  # steps before one that it is compared with
FEWEST = 8  # of them; earlier steps are no spikes
DEVIATIONS, FACTOR = 6.0, 1.5  # a spike is above both
TOLD = 5  # spikes with a line in the log
KEPT = 100  # spikes that are written down one by one


def diverged(module: Any, step: OptimizerStep, batch_idx: int, nll: float, norm: float) -> UserError:
    """What ends a training whose step is not finite. To be called by all ranks, before the optimiser has moved.

    The rows of the batch are fed once more, for those among them whose own NLL is not finite.
    """
    trainer, recipe = module.trainer, module.spec.recipe
    data: Any = trainer.datamodule
    rows_R: Rows = data.order(trainer.current_epoch)[batch_idx * data.batch_size :][: data.batch_size]
    bad = torch.zeros(len(rows_R), device=trainer.strategy.root_device)
    place = {row: i for i, row in enumerate(rows_R.tolist())}
    with torch.no_grad():
        for batch in step.micro_batches:
            nll_B = module.validation_step(batch, 0)
            for row, finite in zip(batch.index_B.tolist(), nll_B.isfinite().tolist(), strict=True):
                if row >= 0 and not finite:
                    bad[place[row]] = 1
    alone = rows_R[trainer.strategy.reduce(bad, reduce_op="sum").cpu().numpy() > 0]
    culprits = f"; of themselves not finite: {_listed(alone)}" if 0 < len(alone) < len(rows_R) else ""
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    key = {"target": "model"}.get(module.role, module.role)
    return (UserError if is_main_process() else ReportedByMainProcess)(
        f"training the {module.role}: NLL {nll:g}, norm of the gradient {norm:g} in step {trainer.global_step + 1} "
        f"(epoch {trainer.current_epoch + 1}, learning rate {rate:g}), rows {_listed(rows_R)}{culprits}; the step was "
        f"not made and the checkpoint before it stays. Lower {key}.recipe.learning_rate={recipe.learning_rate:g}, or "
        "leave rows out."
    )


def _listed(rows: Rows) -> str:
    return ", ".join(map(str, sorted(rows.tolist())))


class LossSpikes(L.Callback):
    """Counts steps whose loss jumps, and says so in the log.

    A spike is a step whose mean NLL per supervised token is above the median m of up to 32 steps before it, 8 at least,
    by more than six deviations, and above 1.5 m. A deviation is 1.4826 times the median of |NLL - m| in these steps,
    which is a normal distribution's standard deviation; spikes are in the window of later steps, which a median bears.

    Attributes:
        count: spikes so far.
        found: of the first 100 the step, its NLL and the median.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.before: deque[float] = deque(maxlen=WINDOW)
        self.count = 0
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        if batch.micro_batches:
            self.add(trainer.global_step, pl_module.step_nll)

    def add(self, step: int, nll: float) -> None:
        """Look at the loss of a step, counted from 1."""
        usual = spike(list(self.before), nll)
        if usual is not None:
            self.count += 1
            if self.count <= TOLD and is_main_process():
                last = "; further ones are counted alone" if self.count == TOLD else ""
                log.warning("%s: loss spike in step %s, NLL %.3f after %.3f%s", self.title, step, nll, usual, last)
            if self.count <= KEPT:
                self.found.append({"step": step, "nll": nll, "median": usual})
        self.before.append(nll)

    def described(self) -> dict[str, Any]:
        """For a manifest or result.json."""
        return {"count": self.count, "first": self.found}

    def state_dict(self) -> dict[str, Any]:
        return {"before": list(self.before), "count": self.count, "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = deque(state["before"], maxlen=WINDOW)
        self.count, self.found = state["count"], state["found"]


def spike(before: Sequence[float], nll: float) -> float | None:
    """The median of the steps before, where a step's NLL is a spike beside them (`LossSpikes`), else None."""
    if len(before) < FEWEST:
        return None
    usual = median(before)
    deviation = 1.4826 * median(abs(value - usual) for value in before)
    return usual if nll > max(usual + DEVIATIONS * deviation, FACTOR * usual) else None
