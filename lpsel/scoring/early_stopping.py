"""Shorten a scorer's training: use a random part of the rows, or stop once the ranking of a sample is stable.

S rows in the sample, F of them with finite scores, R rows that this rank has recorded, W ranks, E recorded passes
(0 = before training, then one per epoch)
"""

import logging
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import MicroBatch, OptimizerStep
from lpsel.data.random_order import PART, SAMPLE, random_rows
from lpsel.data.tokens import Tokens
from lpsel.errors import UserError
from lpsel.model.flops import Times, count_work
from lpsel.model.spec import MIN_STOP_ROWS, ScorerSpec
from lpsel.scoring.metrics import correlation_interval, learning_percentage

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

CHECKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # fractions of an epoch; docs/results/stopping.md explains why they double


def check_steps(steps: int) -> list[int]:
    """Return the steps of an epoch after which the ranking is checked; never the last step."""
    rounded = {round(fraction * steps) for fraction in CHECKS}
    return sorted(step for step in rounded if 0 < step < steps)


def expected_agreement(correlation: float, rows: int, before: int, now: int, steps: int) -> dict[str, float]:
    """Estimate Spearman's correlation between the current ranking and the one after the whole epoch.

    Extrapolates from the last two checks, assuming that each further doubling of the steps changes the ranking as much
    as the last one did. The interval covers the sampling error of `rows` rows, at 95% for all checks together: training
    stops at the first high correlation, so the estimate is optimistic. It does not cover the extrapolation error.

    Args:
        correlation: Spearman's correlation between the checks after `before` and `now` of `steps` steps.
        rows: number of rows in the sample.

    Returns:
        `spearman`, `low` and `high`.
    """
    doublings = math.log(steps / now) / math.log(now / before)
    low, high = correlation_interval(correlation, rows, len(CHECKS))
    names = {"spearman": min(correlation, 1 - 1e-9), "low": low, "high": high}
    return {name: max(value, 0.0) ** doublings for name, value in names.items()}


def rank_correlation(a_S: Floats, b_S: Floats) -> float:
    """Compute Spearman's correlation over the rows that are finite in both; NaN if either is constant."""
    finite_S = np.isfinite(a_S) & np.isfinite(b_S)
    a_F, b_F = a_S[finite_S], b_S[finite_S]
    if len(a_F) < 2 or np.ptp(a_F) == 0 or np.ptp(b_F) == 0:
        return math.nan
    return float(spearmanr(a_F, b_F).statistic)


def random_part(tokens: Tokens, scorer: ScorerSpec) -> NDArray[np.bool_]:
    """Draw `scorer.train_fraction` of the rows with a supervised token, depending only on their content, bool (N,).

    Raises:
        UserError: no row is drawn.
    """
    supervised_N = tokens.response_tokens > 0
    count = math.floor(scorer.train_fraction * supervised_N.sum() + 0.5)
    if not count:
        problem = f"leaves none of {supervised_N.sum():,} rows with a supervised token to train on"
        raise UserError("scorer.train_fraction", scorer.train_fraction, problem, "raise it")
    part_N = np.zeros(len(tokens), np.bool_)
    part_N[random_rows(supervised_N, tokens.ids, scorer.recipe.seed, PART, count)] = True
    log.info("Scorer %s: trained on %s random rows, all are scored", scorer.name, f"{count:,}")
    return part_N


@dataclass
class EpochChecks:
    """Results of the checks in one epoch, as stored in the manifest."""

    epoch: int  # from 1
    steps: int  # in the whole epoch
    checked: list[int] = field(default_factory=list)  # steps after which the ranking was checked
    correlation: list[float | None] = field(default_factory=list)  # Spearman's with the previous check, if defined
    stopped: int | None = None  # step after which training ended early
    expected: dict[str, float] | None = None  # agreement with the whole epoch, from `expected_agreement`
    training: dict[str, float] = field(default_factory=dict)  # tokens and FLOPs of the whole epoch's training
    saved: dict[str, float] = field(default_factory=dict)  # tokens and FLOPs of the skipped part
    checks: dict[str, float] = field(default_factory=dict)  # tokens and FLOPs of the checks

    def describe(self, rows: int, bound: float) -> str:
        """Summarize the checks of a sample of `rows` rows in one line."""
        correlations = ", ".join(f"{r:.2f}" for r in self.correlation if r is not None) or "none"
        line = f"epoch {self.epoch}: correlations of successive rankings of {rows:,} rows: {correlations}; "
        cost = f"the checks cost {self.checks['flops'] / self.training['flops']:.0%} of its training"
        if self.stopped is None or self.expected is None:
            return f"{line}none reaches scorer.stop_bound={bound:g}, so the whole epoch was trained; {cost}"
        return (
            f"{line}stopped after step {self.stopped} of {self.steps}, which saves "
            f"{self.saved['flops'] / self.training['flops']:.0%} of its training ({self.saved['tokens']:,} tokens, "
            f"{self.saved['flops']:.3g} FLOPs); {cost}; expected agreement with the whole epoch: Spearman "
            + "{spearman:.2f} ({low:.2f} to {high:.2f})".format(**self.expected)
        )


class StopWhenStable(L.Callback):
    """Ends an epoch early once the LP_app ranking of a fixed sample is stable.

    The sample's losses before an epoch come from the recording pass. Each check computes them again, distributed over
    all ranks, and ranks the rows by LP_app of this epoch so far, (P_{e-1} - P_t) / P_0. All ranks get the same numbers
    and stop together.

    Args:
        title: name of the fit in the log.
        data: data module of the fit.
        rows: size of the sample.
        bound: rank correlation between two successive checks at which the ranking counts as stable.

    Raises:
        UserError: there are too few rows to rank.
    """

    def __init__(self, title: str, data: SubsetDataModule, *, rows: int, bound: float) -> None:
        self.title, self.data, self.bound = title, data, bound
        self.sample = random_rows(data.supervised, data.tokens.ids, data.seed, SAMPLE, rows)
        if len(self.sample) < MIN_STOP_ROWS:
            problem = f"{len(self.sample)} rows with a supervised token are too few to rank"
            raise UserError("scorer.stop", "stable", problem, f"set scorer.stop=null below {MIN_STOP_ROWS} rows")
        self.steps = check_steps(data.steps_per_epoch)
        self.of_rank_S = np.full(len(self.sample), np.nan)  # losses of the sample in a pass; NaN for other ranks' rows
        self.recorded: list[tuple[Tensor, Tensor]] = []  # row numbers and losses of this rank's batches
        self.nll_ES: list[Floats] = []
        self.epochs: list[EpochChecks] = []
        self.score_S: Floats | None = None

    @property
    def times_checked(self) -> Times:
        """How many times the checks have fed each row, shape (N,)."""
        times_N = np.zeros(len(self.data.tokens), np.int64)
        times_N[self.sample] = sum(len(epoch.checked) for epoch in self.epochs)
        return times_N

    @property
    def rows_trained(self) -> int:
        """Number of distinct rows that have been trained on."""
        times_N = self.data.times_trained([epoch.stopped or epoch.steps for epoch in self.epochs])
        return int((times_N > 0).sum())

    def state_dict(self) -> dict[str, Any]:
        score = None if self.score_S is None else self.score_S.tolist()
        passes = [nll_S.tolist() for nll_S in self.nll_ES]
        return {"nll": passes, "epochs": [asdict(epoch) for epoch in self.epochs], "score": score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.nll_ES = [np.array(nll_S, np.float64) for nll_S in state["nll"]]
        self.epochs = [EpochChecks(**epoch) for epoch in state["epochs"]]
        self.score_S = None if state["score"] is None else np.array(state["score"], np.float64)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.of_rank_S = self.data.recorded_N[self.sample]

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MicroBatch, *_: Any
    ) -> None:
        self.recorded.append((batch.index_B, outputs))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.nll_ES.append(self._gather(trainer))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(self.epochs) == trainer.current_epoch:  # otherwise training resumes within this epoch
            self.epochs.append(EpochChecks(epoch=trainer.current_epoch + 1, steps=self.data.steps_per_epoch))
            self.score_S = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        step = batch_idx + 1
        if not batch.micro_batches:  # step of an earlier process
            trainer.should_stop = step == self.epochs[-1].stopped
            return
        if step not in self.steps:
            return
        epoch, before_S = self.epochs[-1], self.score_S
        nll_ES = np.array([*self.nll_ES, self._record_sample(trainer)])
        self.score_S = learning_percentage(nll_ES, "lp_app", epoch=len(self.nll_ES))
        correlation = math.nan if before_S is None else rank_correlation(before_S, self.score_S)
        epoch.checked.append(step)
        epoch.correlation.append(correlation if math.isfinite(correlation) else None)
        if trainer.strategy.reduce_boolean_decision(correlation >= self.bound):
            epoch.stopped = step
            step_before = epoch.checked[-2]
            epoch.expected = expected_agreement(correlation, len(self.sample), step_before, step, epoch.steps)
            # Lightning then runs the epoch's recording pass and ends the epoch.
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = False  # it must not end the next epoch
        epoch, data, model = self.epochs[-1], self.data, pl_module.language_model
        rows_trained = (epoch.stopped or epoch.steps) * data.batch_size
        skipped_N = np.zeros(len(data.tokens), np.int64)
        skipped_N[data.order(epoch.epoch - 1)[rows_trained:]] = 1
        checked_N = np.zeros(len(data.tokens), np.int64)
        checked_N[self.sample] = len(epoch.checked)
        epoch.training = count_work(model, data.tokens, data.trained.astype(np.int64))
        epoch.saved = count_work(model, data.tokens, skipped_N)
        epoch.checks = count_work(model, data.tokens, recorded_N=checked_N)
        log.info("%s: %s", self.title, epoch.describe(len(self.sample), self.bound))

    def _record_sample(self, trainer: L.Trainer) -> Floats:
        """Compute the sample's losses with the current weights, (S,)."""
        strategy = trainer.strategy
        with torch.no_grad():
            for i, batch in enumerate(self.data.recording(self.sample)):
                nll_B: Any = strategy.validation_step(strategy.batch_to_device(batch), i)
                self.recorded.append((batch.index_B, nll_B))
        return self._gather(trainer)

    def _gather(self, trainer: L.Trainer) -> Floats:
        """Gather the sample's losses from all ranks, (S,), then reset this rank's own."""
        if self.recorded:
            indices, losses = zip(*self.recorded, strict=True)
            # One transfer for all batches, since each waits for the device.
            index_R, nll_R = torch.cat(indices).cpu().numpy(), torch.cat(losses).cpu().numpy()
            position_R = np.searchsorted(self.sample, index_R).clip(max=len(self.sample) - 1)
            in_sample_R = self.sample[position_R] == index_R
            self.of_rank_S[position_R[in_sample_R]] = nll_R[in_sample_R]
            self.recorded.clear()
        of_rank_S = torch.tensor(self.of_rank_S, dtype=torch.float32, device=trainer.strategy.root_device)
        self.of_rank_S[:] = np.nan
        nll_WS = trainer.strategy.all_gather(of_rank_S).reshape(-1, len(self.sample)).cpu().numpy()
        return np.fmax.reduce(nll_WS.astype(np.float64), axis=0)  # ignores the NaN of ranks without the row
