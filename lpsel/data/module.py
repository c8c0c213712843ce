"""The LightningDataModule: batches of an index-masked subset for training, of all rows for recording."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lpsel.data.batching import Rows, epoch_order, recording_plan, training_plan
from lpsel.data.tokens import Tokens

# B rows of a batch, T tokens of a row (padded), N supervised tokens of the batch


@dataclass  # not frozen: Lightning's bf16-true refuses to convert a frozen one
class MicroBatch:
    """Rows that go through the model together, padded on the right.

    Attributes:
        input_ids_BT: token ids, int64. Padding is never attended to by a real token, since it stands to the right.
        predicts_N: positions in the flattened (B*T,) batch whose hidden state predicts a supervised token.
        labels_N: the supervised tokens.
        row_N: which of the B rows each supervised token belongs to.
        index_B: row numbers in the data set; -1 for a row that only keeps ranks in step.
        tokens: tokens that are not padding, counted on the host.
    """

    input_ids_BT: Tensor
    predicts_N: Tensor
    labels_N: Tensor
    row_N: Tensor
    index_B: Tensor
    tokens: int

    def to(self, device: torch.device) -> "MicroBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


@dataclass  # not frozen, as above
class OptimiserStep:
    """This rank's share of one global batch.

    Attributes:
        micro_batches: at least one; as many on every rank.
        supervised_tokens: of the global batch, over all ranks and micro-batches.
        rows: of the global batch, over all ranks.
    """

    micro_batches: list[MicroBatch]
    supervised_tokens: int
    rows: int

    def to(self, device: torch.device) -> "OptimiserStep":
        return replace(self, micro_batches=[m.to(device) for m in self.micro_batches])

    def pin_memory(self) -> "OptimiserStep":
        return replace(self, micro_batches=[m.pin_memory() for m in self.micro_batches])


def collate(tokens: Tokens, rows: Rows) -> MicroBatch:
    """Pad `rows` of `tokens` into one batch; no rows make one of two tokens without a label."""
    if len(rows) == 0:
        nothing = torch.empty(0, dtype=torch.int64)
        return MicroBatch(torch.zeros(1, 2, dtype=torch.int64), nothing, nothing, nothing, torch.tensor([-1]), 0)
    ids = [tokens.input_ids(int(i)) for i in rows]
    width = max(map(len, ids))
    input_ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    supervised_BT = np.zeros((len(rows), width), dtype=bool)
    for b, i in enumerate(rows):
        input_ids_BT[b, : len(ids[b])] = ids[b]
        supervised_BT[b, : len(ids[b])] = tokens.supervised(int(i))
    flat_N = np.flatnonzero(supervised_BT)
    return MicroBatch(
        input_ids_BT=torch.from_numpy(input_ids_BT),
        predicts_N=torch.from_numpy(flat_N - 1),
        labels_N=torch.from_numpy(input_ids_BT.ravel()[flat_N]),
        row_N=torch.from_numpy(flat_N // width),
        index_B=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        tokens=sum(map(len, ids)),
    )


class _Steps(Dataset[OptimiserStep]):
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __getitem__(self, plan: tuple[list[Rows], int, int]) -> OptimiserStep:
        micro_batches, supervised, rows = plan
        return OptimiserStep([collate(self.tokens, m) for m in micro_batches], supervised, rows)


class _Passes(Dataset[MicroBatch]):
    def __init__(self, tokens: Tokens, plan: list[Rows]) -> None:
        self.tokens, self.plan = tokens, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: int) -> MicroBatch:
        return collate(self.tokens, self.plan[i])


class _EpochPlan(Sampler):
    """The steps of the current epoch. Lightning calls `set_epoch`."""

    def __init__(self, data: "SubsetDataModule") -> None:
        self.data = data
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[list[Rows], int, int]]:
        data = self.data
        order = epoch_order(data.tokens.ids, data.seed, self.epoch)
        order = order[data.trained[order]]
        supervised = data.tokens.response_tokens.astype(np.int64)
        plan = training_plan(order, data.tokens.lengths, data.batch_size, data.train_tokens, data.rank, data.world)
        for i, micro_batches in enumerate(plan):
            rows = order[i * data.batch_size : (i + 1) * data.batch_size]
            yield micro_batches, int(supervised[rows].sum()), len(rows)


class SubsetDataModule(L.LightningDataModule):
    """Trains on the rows of an index mask and, where asked, records all rows.

    Rows without a supervised token are neither trained on nor recorded: they give no gradient and have no loss.

    Args:
        tokens: the tokenised data set, N rows.
        mask: which rows to train on, shape (N,), or None for all.
        batch_size: rows of one optimiser step, over all ranks.
        seed: of the order of the rows.
        train_tokens, score_tokens: largest micro-batch in tokens, padding counted.
        record: whether validation passes run over all rows.
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
        record: bool = False,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.supervised = tokens.response_tokens > 0
        self.trained = self.supervised if mask is None else self.supervised & mask
        self.batch_size, self.seed = batch_size, seed
        self.train_tokens, self.score_tokens = train_tokens, score_tokens
        self.record = record

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the trained rows; the last batch may be smaller."""
        return -(-int(self.trained.sum()) // self.batch_size)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens, padding aside, that one pass over the trained rows feeds, over all ranks."""
        return int(self.tokens.lengths[self.trained].sum(dtype=np.int64))

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def train_dataloader(self) -> DataLoader:
        return self._loader(_Steps(self.tokens), sampler=_EpochPlan(self))

    def val_dataloader(self) -> DataLoader | Sequence:
        if not self.record:
            return []
        rows = np.flatnonzero(self.supervised)
        plan = recording_plan(rows, self.tokens.lengths, self.score_tokens, self.rank, self.world)
        return self._loader(_Passes(self.tokens, plan))

    def _loader(self, data: Dataset, sampler: Sampler | None = None) -> DataLoader:
        return DataLoader(data, sampler=sampler, batch_size=None, pin_memory=torch.cuda.is_available())
