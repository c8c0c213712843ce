"""The LightningDataModule: batches of selected rows for training, and of all rows for recording losses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from lpsel.data.batching import Rows, Split, packed, padded, recording_rounds, token_weights, training_plan
from lpsel.data.packing import MicroBatch, OptimizerStep, collate
from lpsel.data.random_order import epoch_order
from lpsel.data.shared_prefixes import Prefixes, find_prefixes
from lpsel.data.tokens import Tokens


class _StepPlan(NamedTuple):
    """This rank's part of an optimizer step, before collating."""

    micro_batches: list[Rows]
    weight_N: NDArray[np.float32] | None  # token weight of each row of the dataset, see `token_weights`
    divisor: int


class _Steps(Dataset[OptimizerStep]):
    def __init__(self, data: "SubsetDataModule") -> None:
        self.data = data

    def __getitem__(self, plan: _StepPlan) -> OptimizerStep:
        packs = [self.data.pack(rows) for rows in plan.micro_batches]
        if plan.weight_N is not None:
            weight_N = torch.from_numpy(plan.weight_N)
            packs = [replace(pack, weight_N=weight_N[pack.index_B][pack.row_N]) for pack in packs]
        return OptimizerStep(packs, plan.divisor)


class _Unrecorded(Sampler):
    """Samples the rounds of this rank's plan that were not recorded before the pass starts."""

    def __init__(self, data: "SubsetDataModule") -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.rounds())

    def __iter__(self) -> Iterator[int]:
        yield from self.data.rounds_left()


class _EpochPlan(Sampler):
    """Samples the steps of the current epoch. Lightning calls `set_epoch`."""

    def __init__(self, data: "SubsetDataModule") -> None:
        self.data = data
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data.steps_per_epoch

    def __iter__(self) -> Iterator[_StepPlan]:
        data = self.data
        order = data.order(self.epoch)
        supervised_N = data.tokens.response_tokens.astype(np.int64)
        lengths, budget, split = data.packing(data.train_tokens)
        plan = training_plan(order, lengths, data.batch_size, budget, data.rank, data.world, split)
        weight_N, divisors = token_weights(order, supervised_N, data.batch_size, data.reduction)
        done_epoch, done_steps = data.completed
        for step, (micro_batches, divisor) in enumerate(zip(plan, divisors, strict=True)):
            if self.epoch == done_epoch and step < done_steps:
                yield _StepPlan([], None, 0)
            else:
                yield _StepPlan(micro_batches, weight_N, divisor)


class SubsetDataModule(L.LightningDataModule):
    """Data for training on selected rows and, with `record`, for validation passes that record the losses of rows.

    Rows without supervised tokens have no loss, and are neither trained on nor recorded.

    Args:
        tokens: the tokens of the dataset, N rows.
        mask: which rows to train on, shape (N,), or None for all.
        batch_size: rows per optimizer step, over all ranks.
        seed: seed for the order of the rows.
        train_tokens, score_tokens: maximum tokens per pack; a longer row gets its own pack.
        record: whether to run recording passes: over all rows, or those in a mask of shape (N,).
        reduction: what the loss of a step is averaged over, see `lpsel.data.batching.token_weights`.

    Attributes:
        completed: an epoch and the number of its steps completed before resuming; these steps are empty.
        recorded_N: losses that an interrupted recording pass has already recorded, NaN elsewhere, (N,). Complete rounds
            are skipped; the others are repeated with the same batches, and so give the same losses.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        mask: NDArray[np.bool_] | None = None,
        batch_size: int,
        seed: int,
        train_tokens: int,
        score_tokens: int,
        record: bool | NDArray[np.bool_] = False,
        reduction: str = "token",
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.supervised = tokens.response_tokens > 0
        self.trained = self.supervised if mask is None else self.supervised & mask
        self.batch_size, self.seed = batch_size, seed
        self.train_tokens, self.score_tokens = train_tokens, score_tokens
        self.record = record is not False
        self.to_record = self.supervised & record
        self.reduction = reduction
        self.completed = (0, 0)
        self.recorded_N = np.full(len(tokens), np.nan)

    @cached_property
    def prefixes(self) -> Prefixes:
        """Prefixes shared by many rows, limited to half of a pack."""
        return find_prefixes(self.tokens, min(self.train_tokens, self.score_tokens) // 2)

    def packing(self, budget: int) -> tuple[NDArray[np.int32], int, Split]:
        """Return row lengths, (N,), the tokens per batch available for rows, and the function to split rows with.

        A pack contains all prefixes. For a model without support for packs, whole rows are padded to equal length.
        """
        loss: Any = getattr(self.trainer and self.trainer.lightning_module, "loss", None)
        if loss is not None and loss.attention is None:
            return self.tokens.lengths, budget, padded
        own_lengths = self.tokens.lengths - self.prefixes.length_N
        return own_lengths, max(1, budget - sum(map(len, self.prefixes.ids))), packed

    def pack(self, rows: Rows) -> MicroBatch:
        return collate(self.tokens, rows, self.prefixes, varlen=self.on_gpu)

    def order(self, epoch: int) -> Rows:
        """Return the rows to train on, in the order of an epoch."""
        order = epoch_order(self.tokens.ids, self.seed, epoch)
        return order[self.trained[order]]

    def tokens_ahead(self, epochs: int) -> int:
        """Count the tokens of all forward passes in `epochs` epochs; one with a backward pass counts three times."""
        lengths_N = self.tokens.lengths.astype(np.int64)
        trained, recorded = int(lengths_N[self.trained].sum()), int(lengths_N[self.to_record].sum())
        return 3 * epochs * trained + (epochs + 1) * recorded * self.record

    def times_trained(self, steps: Sequence[int]) -> NDArray[np.int64]:
        """Count how often each row was trained on, shape (N,), after the given number of steps in each epoch."""
        times_N = np.zeros(len(self.tokens), np.int64)
        for epoch, done in enumerate(steps):
            times_N[self.order(epoch)[: done * self.batch_size]] += 1
        return times_N

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch; the last batch may be smaller."""
        return -(-int(self.trained.sum()) // self.batch_size)

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def on_gpu(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda" if self.trainer else torch.cuda.is_available()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Steps(self), sampler=_EpochPlan(self), batch_size=None, pin_memory=self.on_gpu)

    def val_dataloader(self) -> DataLoader | Sequence:
        return self.recording(sampler=_Unrecorded(self)) if self.record else []

    def rounds(self, rows: Rows | None = None) -> list[list[Rows]]:
        """Return the batches of a pass over `rows` (those to record by default), in rounds of one batch per rank."""
        rows = np.flatnonzero(self.to_record) if rows is None else rows
        lengths, budget, split = self.packing(self.score_tokens)
        return recording_rounds(rows, lengths, budget, self.world, split)

    def rounds_left(self) -> list[int]:
        """Return the rounds of the next recording pass with rows that are not recorded yet."""
        missing_N = np.isnan(self.recorded_N)
        return [i for i, batches in enumerate(self.rounds()) if missing_N[np.concatenate(batches)].any()]

    def recording(self, rows: Rows | None = None, sampler: Sampler | None = None) -> DataLoader:
        """Return a loader of this rank's batches of a pass over `rows`, those to record by default."""
        batches_of_rank: Any = [batches[self.rank] for batches in self.rounds(rows)]
        pack: Any = self.pack  # takes row numbers, not a list of samples
        return DataLoader(batches_of_rank, sampler=sampler, batch_size=None, collate_fn=pack, pin_memory=self.on_gpu)
