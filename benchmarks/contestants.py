"""Contestants that lpsel is compared with: the released recipe's loop, lm-eval, transformers' Trainer.

All read token ids from the same file, so that they process the same tokens. Loading is not timed.
"""

import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import ours
import torch
import torch.nn.functional as F
from harness import Run, stopwatch, touch
from material import load
from torch import Tensor

from lpsel.data.tokens import Tokens

IGNORED = -100
ROWS_A_BATCH = 4  # the released settings: 4 rows a pass, 8 passes a step
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}

HAS_LM_EVAL = find_spec("lm_eval") is not None
HAS_TRAINER = find_spec("accelerate") is not None  # which transformers' Trainer needs
NO_TRAINER = "accelerate is not installed, so transformers' Trainer is left out"
OnReady = Callable[[Any], None]


def recipe_score(
    model_folder: Path, tokens_folder: Path, precision: str, *, device: str = "cpu", on_ready: OnReady = touch
) -> Run:
    """Run the released recipe's loop: padded batches of 4 rows in order, logits for all tokens, exp(mean) per row.

    Logits are cast to float32 before the cross entropy, as in the loss of transformers models.
    """
    tokens = Tokens(tokens_folder)
    model = load(model_folder, DTYPES[precision], device)
    rows = _rows(tokens)
    on_ready(model)
    perplexities = []
    seconds = stopwatch(device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for start in range(0, len(rows), ROWS_A_BATCH):
            batch = {
                name: tensor.to(device)
                for name, tensor in _padded([_row(tokens, i) for i in rows[start : start + ROWS_A_BATCH]]).items()
            }
            labels_BT = batch.pop("labels")[:, 1:]
            logits_BTV = model(**batch, use_cache=False).logits[:, :-1].float()
            losses_BT = F.cross_entropy(
                logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
            ).view(labels_BT.shape)
            count_B = (labels_BT != IGNORED).sum(1)
            perplexities += (losses_BT.sum(1) / count_B).exp().tolist()
    return Run(seconds(), int(tokens.lengths[rows].sum()), np.log(perplexities))


def lm_eval_score(
    model_folder: Path,
    tokens_folder: Path,
    precision: str,
    *,
    batch_size: int,
    device: str = "cpu",
    on_ready: OnReady = touch,
) -> Run:
    """Compute the log-likelihood of every response given its prompt with lm-eval, from token ids."""
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM

    tokens = Tokens(tokens_folder)
    rows = _rows(tokens)
    model = HFLM(str(model_folder), dtype=DTYPES[precision], device=device, batch_size=batch_size)
    requests = []
    for i in rows:
        ids, prompt = tokens.input_ids(i).tolist(), int(tokens.prompt_tokens[i])
        requests.append((("", ""), ids[:prompt], ids[prompt:]))
    on_ready(model.model)
    seconds = stopwatch(device)
    answers = model._loglikelihood_tokens(requests, disable_tqdm=True)
    took = seconds()
    nll = [-total / len(response) for (total, _), (_, _, response) in zip(answers, requests, strict=True)]
    return Run(took, int(tokens.lengths[rows].sum()), np.array(nll))


def trainer_train(
    model_folder: Path,
    tokens_folder: Path,
    precision: str,
    *,
    steps: int,
    batch_size: int = 32,
    device: str = "cpu",
    on_ready: OnReady = touch,
) -> Run:
    """Train with transformers' Trainer: 4 rows per pass, lpsel's rows per step and number of steps, its own AdamW."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    tokens = Tokens(tokens_folder)
    rows = ours.order_of(tokens)[: (steps + 1) * batch_size]
    model = load(model_folder, device=device)
    losses: list[Tensor] = []

    class Recorded(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            losses.append(super().training_step(*args, **kwargs))
            return losses[-1]

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            on_ready(model)

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 1:
                self.seconds = stopwatch(device)
            self.took = self.seconds()

    timed = Timed()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Recorded(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps + 1,
                per_device_train_batch_size=ROWS_A_BATCH,
                gradient_accumulation_steps=batch_size // ROWS_A_BATCH,
                train_sampling_strategy="sequential",
                learning_rate=ours.LEARNING_RATE,
                lr_scheduler_type="constant",
                bf16=precision == "bf16-mixed",
                use_cpu=device == "cpu",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=device == "cuda",
                seed=ours.SEED,
            ),
            train_dataset=[_row(tokens, i) for i in rows],
            data_collator=_padded,
            callbacks=[timed],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    per_step = torch.stack(losses).view(steps + 1, -1).sum(1)
    return Run(timed.took, int(tokens.lengths[rows[batch_size:]].sum()), per_step.double().cpu().numpy())


def _rows(tokens: Tokens) -> list[int]:
    """Return the rows with supervised tokens, in dataset order."""
    return np.flatnonzero(tokens.response_tokens).tolist()


def _row(tokens: Tokens, i: int) -> dict[str, Tensor]:
    ids_T = torch.tensor(tokens.input_ids(i), dtype=torch.int64)
    return {"input_ids": ids_T, "labels": ids_T.where(torch.tensor(tokens.supervised(i)), IGNORED)}


def _padded(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad a batch on the right and add its attention mask."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
    }
