"""A callback that writes a scores folder from anyone's `transformers.Trainer` or TRL run.

from lpsel.integrations.transformers import ScoresCallback

rows = load_dataset("json", data_files="my.jsonl", split="train")
trainer = SFTTrainer(..., train_dataset=rows, callbacks=[ScoresCallback("scores", rows)])
trainer.train()
# then: python select.py dataset.path=my.jsonl scores=scores
"""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lpsel.console import track
from lpsel.data.batching import padded
from lpsel.data.content_ids import fingerprint, id_array
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError
from lpsel.model.flops import forward_flops, training_flops
from lpsel.model.loss import per_sample_nll, token_nll
from lpsel.scoring.store import Parts, write_scores

# N rows, B rows of a batch, T tokens of a row (padded), P positions of a batch with a label in any row, L labels of it

IGNORED = -100
TEMPLATE = "the trainer's own"


@dataclass(frozen=True)
class Counted:
    """What a scores folder says of every row beside its NLLs, each of length N."""

    ids: pa.StringArray
    lengths: NDArray[np.int32]
    response_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    @property
    def prompt_tokens(self) -> NDArray[np.int32]:
        return self.lengths - self.response_tokens

    def __len__(self) -> int:
        return len(self.ids)


class ScoresCallback(TrainerCallback):
    """Records the NLL of every training row before training and after each whole epoch, then writes the scores folder.

    The rows are seen as the trainer feeds them: its tokens, its labels, its collator. With several processes each
    computes its share, and the folder must be one that all see. Weights that are spread over processes (FSDP,
    DeepSpeed's third stage) are refused; `lpsel` itself scores with FSDP.

    A resumed training goes on with the records of the first, which stay in `FOLDER.parts` until the end. Whether a row
    was cut to length only the trainer knows: `truncated` is false throughout.

    Args:
        folder: becomes the scores folder.
        rows: the training rows before tokenisation, in the same order, in any form that lpsel knows: content ids are
            made of them, by which a selection finds the rows again.
        batch_tokens: largest batch of a recording pass, padding counted.

    Raises:
        UserError: at the start of training, where the trainer's rows are not one for one those of `rows`.
    """

    def __init__(self, folder: str | Path, rows: Sequence[Mapping[str, Any]] | Any, batch_tokens: int = 4096) -> None:
        self.folder = Path(folder)
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.parts = Parts(self.folder.with_name(f"{self.folder.name}.parts"))
        self.seconds = 0.0
        self.epochs = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fsdp or getattr(args, "deepspeed", None):
            raise UserError("ScoresCallback: weights are spread over processes (fsdp, deepspeed); score with lpsel.")
        self.started = time.monotonic()
        self.dataset, self.collate = kwargs["train_dataloader"].dataset, kwargs["train_dataloader"].collate_fn
        self.counted = self._count()
        if state.global_step == 0:
            if args.process_index == 0:
                self.parts.clear()
            _barrier()
            self._record(0, args, kwargs["model"])
        elif not self.parts.recorded(0):
            raise UserError(
                f"{self.parts.folder}: has no records from before training, which is resumed here at step "
                f"{state.global_step}; start it anew."
            )
        else:
            self.epochs = int(state.epoch or 0)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epoch = state.epoch or 0.0
        if abs(epoch - round(epoch)) < 1e-6:  # max_steps may end training within one
            self.epochs = round(epoch)
            self._record(self.epochs, args, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.process_index:
            return
        model, counted, trained = kwargs["model"], self.counted, self.epochs
        missing = [epoch for epoch in range(trained + 1) if not self.parts.recorded(epoch)]
        if missing:
            raise UserError(f"{self.parts.folder}: has no records of epoch {missing[0]}; train again without resuming.")
        fed = int(counted.lengths.sum(dtype=np.int64))
        scored = counted.lengths[counted.response_tokens > 0], counted.response_tokens[counted.response_tokens > 0]
        recorded = forward_flops(model, *scored) * (trained + 1)
        write_scores(
            self.folder,
            counted,
            self.parts.collect(trained, len(counted)),
            {
                "dataset_fingerprint": fingerprint(self.id_array),
                "scorer": getattr(model.config, "name_or_path", "") or type(model).__name__,
                "template": TEMPLATE,
                "epochs": trained,
                "columns": [],
                "rows": len(counted),
                "rows_without_supervised_token": int((counted.response_tokens == 0).sum()),
                "recipe": {
                    "epochs": float(args.num_train_epochs),
                    "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                    "learning_rate": args.learning_rate,
                    "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                    "max_grad_norm": args.max_grad_norm,
                    "seed": args.seed,
                },
                "seed": args.seed,
                "precision": "bf16-mixed"
                if args.bf16
                else "16-mixed"
                if args.fp16
                else str(model.dtype).split(".")[-1],
                "world_size": args.world_size,
                "tokens": fed * (2 * trained + 1),
                "flops": recorded + trained * training_flops(model, counted.lengths, counted.response_tokens),
                "wall_seconds": round(time.monotonic() - self.started, 3),
                "recording_seconds": round(self.seconds, 3),
            },
        )
        self.parts.remove()

    def _count(self) -> Counted:
        source = Source(DatasetSpec("rows", path="rows"))
        self.id_array = id_array(source.example(row).content_digest() for row in self.rows)
        n = len(self.dataset)
        if n != len(self.id_array):
            raise UserError(
                f"ScoresCallback: {n} rows are trained on and {len(self.id_array)} were given; give the rows that the "
                "trainer was given, in their order, and train without packing and without a filter."
            )
        if len(self.collate([self.dataset[i] for i in range(min(n, 2))])["labels"]) != min(n, 2):
            raise UserError("ScoresCallback: the trainer joins rows to one; say padding_free=False.")
        lengths, labels = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
        for i in range(n):
            features = self.collate([self.dataset[i]])
            fed_T = features.get("attention_mask", torch.ones_like(features["input_ids"]))[0]
            lengths[i], labels[i] = int(fed_T.sum()), int((features["labels"][0, 1:] != IGNORED).sum())
        return Counted(self.id_array.cast(pa.string()), lengths, labels, np.zeros(n, dtype=np.bool_))

    @torch.no_grad()
    def _record(self, epoch: int, args: TrainingArguments, model: Any) -> None:
        started = time.monotonic()
        supervised = np.flatnonzero(self.counted.response_tokens > 0)
        batches = padded(supervised, self.counted.lengths, self.batch_tokens)[args.process_index :: args.world_size]
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with track(f"Recording epoch {epoch}", total=sum(map(len, batches)), unit="rows") as advance:
                for rows in batches:
                    features = self.collate([self.dataset[i] for i in rows.tolist()])
                    nll_B = _per_sample_nll(model, {name: value.to(args.device) for name, value in features.items()})
                    self.parts.add(epoch, args.process_index, rows, nll_B.cpu())
                    advance(len(rows), tokens=int(self.counted.lengths[rows].sum()))
        finally:
            for module, training in modes:
                module.training = training
        self.parts.wait()
        _barrier()
        self.seconds += time.monotonic() - started


def _per_sample_nll(model: Any, features: dict[str, Tensor]) -> Tensor:
    """Mean NLL of each row in nats per label, shape (B,); logits are made where some row has a label."""
    labels_BT = features.pop("labels")[:, 1:]
    labelled_BT = labels_BT != IGNORED
    at_P = labelled_BT.any(0).nonzero()[:, 0]
    partial = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(**features, use_cache=False, **({"logits_to_keep": at_P} if partial else {})).logits
    logits_BPV = logits if partial else logits[:, at_P]
    row_L, place_L = labelled_BT[:, at_P].nonzero(as_tuple=True)
    nll_L = token_nll(logits_BPV[row_L, place_L], labels_BT[:, at_P][row_L, place_L])
    return per_sample_nll(nll_L, row_L, labelled_BT.sum(1))


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
