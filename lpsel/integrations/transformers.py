"""Callback for `transformers.Trainer` and TRL that writes a scores folder.

from lpsel.integrations.transformers import ScoresCallback

rows = load_dataset("json", data_files="my.jsonl", split="train")
trainer = SFTTrainer(..., train_dataset=rows, callbacks=[ScoresCallback("scores", rows)])
trainer.train()
# then: python select.py dataset.path=my.jsonl scores=scores
"""

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lpsel.console import track
from lpsel.data.batching import padded
from lpsel.data.column_forms import choose_form, forms_of, to_example
from lpsel.data.content_ids import counts, fingerprint, id_array, kinds_array, raw_digest
from lpsel.errors import UnusableRow, UserError, check_choice
from lpsel.model.flops import forward_flops, training_flops
from lpsel.model.loss import per_sample_nll, token_nll
from lpsel.output_folder import check_output_folder, mark_output_folder
from lpsel.scoring.store import Parts, write_scores
from lpsel.selection.agreement import spearman

log = logging.getLogger(__name__)

# N rows, E passes that record losses, B rows in a batch, T tokens per row (padded), P positions with a label in any row
# of a batch, L labels in it, V vocabulary size

IGNORED = -100
NAME = "ScoresCallback"  # used in errors and to mark output folders
TEMPLATE = "the trainer's own"
FEW_ROWS, UNRELATED = 20, 0.3  # a lower rank correlation of lengths means another order; not checked for fewer rows


class ScoresCallback(TrainerCallback):
    """Records the NLL of every training row before training and after each full epoch, then writes a scores folder.

    Rows are recorded as the trainer feeds them, with its tokens, labels and collator. With several processes, each
    records its share, and all need access to the folder. Sharded weights (FSDP, DeepSpeed) and encoder-decoder models
    are not supported. If training is resumed, earlier records are reused; they are kept in `FOLDER.parts` until
    training ends. `truncated` is always false, because only the trainer knows whether a row was truncated.

    Args:
        folder: the scores folder to write.
        rows: the training rows before tokenization, in the trainer's order and any format that lpsel supports. Their
            content ids identify the rows in a selection.
        batch_tokens: maximum number of tokens in a recording batch, including padding.
        bad_rows: `skip` records nothing for rows that lpsel cannot use, like `dataset.bad_rows`; the trainer still
            trains on them.

    Raises:
        UserError: at the start of training, if the trainer is not supported, if its rows are not `rows`, or if `folder`
            or `FOLDER.parts` contains files that were not written by a ScoresCallback.
        UnusableRow: at the start of training, if lpsel cannot use a row and bad_rows=error.
    """

    def __init__(
        self,
        folder: str | Path,
        rows: Sequence[Mapping[str, Any]] | Any,
        batch_tokens: int = 4096,
        bad_rows: str = "error",
    ) -> None:
        check_choice("bad_rows", bad_rows, ("error", "skip"))
        self.folder = Path(folder).expanduser().resolve()
        self.rows = rows
        self.batch_tokens = batch_tokens
        self.bad_rows = bad_rows
        self.parts = Parts(self.folder.with_name(f"{self.folder.name}.parts"))
        self.seconds = 0.0
        self.epochs = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        _check_trainer(args, kw["model"])
        for output in (self.folder, self.parts.folder):
            try:
                check_output_folder(output, NAME, replaced=False)
            except UserError as error:
                raise error.renamed(NAME) from None
        self.started = time.monotonic()
        self.dataset, self.collate = kw["train_dataloader"].dataset, kw["train_dataloader"].collate_fn
        self.columns = self._columns()
        if state.global_step == 0:
            if args.process_index == 0:
                self.parts.clear()
                mark_output_folder(self.parts.folder, NAME)
            args.distributed_state.wait_for_everyone()
            self._record(0, args, kw["model"])
        else:
            self._resume(args, state, kw["model"])

    def _resume(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Keep the records up to the checkpoint; record its epoch, with the same weights, if that was interrupted."""
        full_epoch = _full_epoch(state)
        self.epochs = int(state.epoch or 0) if full_epoch is None else full_epoch
        if args.process_index == 0:
            self.parts.discard_after(self.epochs)
        args.distributed_state.wait_for_everyone()
        nll_EN, supervised_N = self.parts.collect(self.epochs, len(self.id_array)), self.columns.response_tokens > 0
        incomplete = np.flatnonzero((np.isnan(nll_EN) & supervised_N).any(axis=1)).tolist()
        args.distributed_state.wait_for_everyone()
        if incomplete not in ([], [full_epoch]):
            when = f"after epoch {incomplete[0]}" if incomplete[0] else "before training"
            problem = f"has no or incomplete records from {when}, and training resumes at step {state.global_step}"
            raise UserError(self.parts.folder, problem=problem, hint="train again without resuming")
        if incomplete:
            self._record(self.epochs, args, model)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        epoch = _full_epoch(state)
        if epoch is not None:  # max_steps may end training within an epoch
            self.epochs = epoch
            self._record(epoch, args, kw["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if args.process_index:
            return
        nll_EN = self.parts.collect(self.epochs, len(self.id_array))
        self.folder.mkdir(parents=True, exist_ok=True)
        mark_output_folder(self.folder, NAME)
        write_scores(self.folder, self.columns, nll_EN, self._manifest(args, kw["model"]), records=self.parts.folder)
        self.parts.remove()

    def _manifest(self, args: TrainingArguments, model: Any) -> dict[str, Any]:
        columns, epochs = self.columns, self.epochs
        scored_N = columns.response_tokens > 0
        recording = forward_flops(model, columns.lengths[scored_N], columns.response_tokens[scored_N]) * (epochs + 1)
        precision = "bf16-mixed" if args.bf16 else "16-mixed" if args.fp16 else str(model.dtype).split(".")[-1]
        return {
            "dataset_fingerprint": fingerprint(self.id_array),
            "scorer": getattr(model.config, "name_or_path", "") or type(model).__name__,
            "template": TEMPLATE,
            "epochs": epochs,
            "columns": [],
            "rows": len(columns.ids),
            "rows_without_supervised_token": int((~scored_N).sum()) - sum(counts(columns.unusable).values()),
            "recipe": {
                "epochs": float(args.num_train_epochs),
                "global_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "learning_rate": args.learning_rate,
                "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                "max_grad_norm": args.max_grad_norm,
                "seed": args.seed,
            },
            "seed": args.seed,
            "precision": precision,
            "world_size": args.world_size,
            "tokens": int(columns.lengths.sum(dtype=np.int64)) * (2 * epochs + 1),
            "flops": recording + epochs * training_flops(model, columns.lengths, columns.response_tokens),
            "wall_seconds": round(time.monotonic() - self.started, 3),
            "recording_seconds": round(self.seconds, 3),
        }

    def _columns(self) -> SimpleNamespace:
        """Compute the columns of the scores folder other than NLLs, and the number of tokens fed, shape (N,) each."""
        try:
            n = len(self.dataset)
        except TypeError:
            problem, hint = "cannot number the rows of a streamed dataset", "load it without streaming"
            raise UserError(NAME, problem=problem, hint=hint) from None
        label_rows = self._label_rows(min(n, 2))
        unusable: dict[int, str] = {}
        characters: list[int] = []
        digests = (self._digest(number, row, unusable, characters) for number, row in enumerate(self.rows))
        self.id_array = id_array(digests)
        if n != len(self.id_array):
            problem = f"got {len(self.id_array)} rows, but the trainer has {n}"
            hint = (
                "pass the trainer's rows in their order, and train without packing and filters; TRL drops rows whose "
                "answer is cut off by max_length"
            )
            raise UserError(NAME, problem=problem, hint=hint)
        if label_rows != min(n, 2):
            raise UserError(NAME, problem="the trainer concatenates rows", hint="set padding_free=False")
        length_N, labels_N = self._count_tokens(n)
        length_N[list(unusable)] = labels_N[list(unusable)] = 0
        correlation = spearman(np.array([characters, length_N], np.float64))[0, 1]
        if n >= FEW_ROWS and correlation < UNRELATED:
            log.warning(
                "%s: the lengths of the rows and of the trainer's rows have rank correlation %.2f. Unless most are "
                "truncated, the rows are not in the trainer's order, and losses are recorded for other rows.",
                NAME, correlation,
            )  # fmt: skip
        return SimpleNamespace(
            ids=self.id_array.cast(pa.string()),
            lengths=length_N,
            prompt_tokens=length_N - labels_N,
            response_tokens=labels_N,
            truncated=np.zeros(n, dtype=np.bool_),
            unusable=kinds_array(unusable, n),
        )

    def _count_tokens(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Count the tokens fed and the labels of every row, shape (N,) each."""
        length_N, labels_N = np.zeros((2, n), dtype=np.int32)
        for i in range(n):
            features = self.collate([self.dataset[i]])
            fed_T = features.get("attention_mask", torch.ones_like(features["input_ids"]))[0]
            length_N[i] = int(fed_T.sum())
            labels_N[i] = int((features["labels"][0, 1:] != IGNORED).sum())
        return length_N, labels_N

    def _label_rows(self, size: int) -> int:
        """Return how many rows of labels a batch of `size` rows has; raise a UserError if it has no labels."""
        features = self.collate([self.dataset[i] for i in range(size)])
        labels = features.get("labels") if isinstance(features, Mapping) else None
        if not isinstance(labels, Tensor) or labels.dim() != 2:
            problem = "the trainer's batches have no labels of tokens"
            raise UserError(NAME, problem=problem, hint="use a trainer of causal language models, such as SFTTrainer")
        return len(labels)

    def _digest(self, number: int, row: Mapping[str, Any], unusable: dict[int, str], characters: list[int]) -> bytes:
        """Compute a row's content digest; add its length to `characters` and, if it is unusable, why to `unusable`."""
        forms = forms_of(tuple(row))
        characters.append(0)
        try:
            example = to_example(row, choose_form(forms, row))
            characters[-1] = sum(example.characters())
            return example.content_digest()
        except UnusableRow as error:
            if self.bad_rows == "error":
                skip = "pass bad_rows='skip' to record nothing for such rows"
                rename = "pass rows with messages, prompt and completion, or instruction and output"
                hint = skip if forms else rename
                raise UnusableRow(error.name, None, error.problem, hint, f"row {number}", kind=error.kind) from None
            unusable[number] = error.kind
            return raw_digest(row)

    @torch.no_grad()
    def _record(self, epoch: int, args: TrainingArguments, model: Any) -> None:
        """Record the losses of this process's share of the rows, without changing the mode of any module."""
        started = time.monotonic()
        supervised = np.flatnonzero(self.columns.response_tokens > 0)
        batches = padded(supervised, self.columns.lengths, self.batch_tokens)[args.process_index :: args.world_size]
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with track(f"Recording epoch {epoch}", total=sum(map(len, batches)), unit="rows") as advance:
                for rows in batches:
                    features = self.collate([self.dataset[i] for i in rows.tolist()])
                    nll_B = _per_sample_nll(model, {name: value.to(args.device) for name, value in features.items()})
                    self.parts.add(epoch, args.process_index, rows, nll_B.cpu())
                    advance(len(rows), tokens=int(self.columns.lengths[rows].sum()))
        finally:
            for module, training in modes:
                module.training = training
        self.parts.wait()
        args.distributed_state.wait_for_everyone()
        self.seconds += time.monotonic() - started


def _full_epoch(state: TrainerState) -> int | None:
    """Return the number of epochs trained so far, or None within an epoch."""
    epoch = state.epoch or 0.0
    return round(epoch) if abs(epoch - round(epoch)) < 1e-6 else None


def _check_trainer(args: TrainingArguments, model: Any) -> None:
    """Raise a UserError for a trainer whose losses cannot be recorded, or not for the right rows."""
    if args.fsdp or args.deepspeed:
        problem = "does not support sharded weights (fsdp, deepspeed)"
        raise UserError(NAME, problem=problem, hint="score with lpsel itself")
    if getattr(args, "shuffle_dataset", False):  # of TRL
        problem = "does not know the order of the rows with shuffle_dataset=True"
        raise UserError(NAME, problem=problem, hint="leave it out: the trainer shuffles the rows in every epoch anyway")
    if getattr(model.config, "is_encoder_decoder", False):
        problem = f"does not support encoder-decoder models ({type(model).__name__})"
        raise UserError(NAME, problem=problem, hint="use a causal language model")


def _per_sample_nll(model: Any, features: dict[str, Tensor]) -> Tensor:
    """Compute each row's mean NLL in nats per label, shape (B,), with logits only at positions that have a label."""
    labels_BT = features.pop("labels")[:, 1:]
    supervised_BT = labels_BT != IGNORED
    positions_P = supervised_BT.any(0).nonzero()[:, 0]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits_BPV = model(**features, use_cache=False, logits_to_keep=positions_P).logits
    else:
        logits_BPV = model(**features, use_cache=False).logits[:, positions_P]
    labels_BP, supervised_BP = labels_BT[:, positions_P], supervised_BT[:, positions_P]
    row_L, position_L = supervised_BP.nonzero(as_tuple=True)
    nll_L = token_nll(logits_BPV[row_L, position_L], labels_BP[row_L, position_L])
    return per_sample_nll(nll_L, row_L, supervised_BT.sum(1))
