"""Callbacks and checks that report training problems: loss spikes, unknown tokens and untrained embeddings.

V vocabulary size, A added tokens in the rows, H hidden size
"""

import logging
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from lpsel.data.packing import OptimizerStep
from lpsel.data.tokens import Tokens
from lpsel.distributed import is_main_process
from lpsel.errors import UserError
from lpsel.model.load import load_config
from lpsel.model.spec import ModelSpec

log = logging.getLogger(__name__)

WINDOW = 32  # number of previous steps to compare a step with
MIN_WINDOW = 8
DEVIATIONS, FACTOR = 6.0, 1.5  # a spike exceeds both
MAX_LOGGED, MAX_SAVED = 5, 100  # spikes


class LossSpikes(L.Callback):
    """Counts loss spikes and logs the first few.

    A spike is a step whose mean NLL per supervised token exceeds the median m of the previous 8 to 32 steps by more
    than six deviations, and also exceeds 1.5 m. A deviation is 1.4826 times the median of |NLL - m| over these steps,
    which for a normal distribution equals the standard deviation.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.count = 0
        self.spikes: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: OptimizerStep, batch_idx: int
    ) -> None:
        if batch.micro_batches:
            self.add(trainer.global_step, pl_module.step_nll)

    def add(self, step: int, nll: float) -> None:
        """Check the loss of a step, counted from 1."""
        usual_nll = spike(list(self.window), nll)
        if usual_nll is not None:
            self.count += 1
            if self.count <= MAX_LOGGED and is_main_process():
                last = "; further spikes are only counted" if self.count == MAX_LOGGED else ""
                log.warning("%s: loss spike in step %s, NLL %.3f after %.3f%s", self.title, step, nll, usual_nll, last)
            if self.count <= MAX_SAVED:
                self.spikes.append({"step": step, "nll": nll, "median": usual_nll})
        self.window.append(nll)

    def described(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.spikes}

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self.window), "count": self.count, "spikes": self.spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window = deque(state["window"], maxlen=WINDOW)
        self.count, self.spikes = state["count"], state["spikes"]


def spike(window: Sequence[float], nll: float) -> float | None:
    """Return the median NLL of the previous steps if a step's NLL is a spike (see `LossSpikes`), otherwise None."""
    if len(window) < MIN_WINDOW:
        return None
    center = median(window)
    deviation = 1.4826 * median(abs(value - center) for value in window)
    is_spike = nll > max(center + DEVIATIONS * deviation, FACTOR * center)
    return center if is_spike else None


def check_vocabulary(tokens: Tokens, tokenizer: Any, spec: ModelSpec, path: str) -> None:
    """Check, before loading the model, that it has an embedding for every token in the rows."""
    vocabulary = getattr(load_config(spec, path).get_text_config(), "vocab_size", None)
    if vocabulary is None or used_tokens(tokens).max(initial=0) < vocabulary:
        return
    row = next(i for i in range(len(tokens)) if tokens.input_ids(i).max(initial=0) >= vocabulary)
    ids_T = tokens.input_ids(row)
    unknown = int(ids_T[ids_T >= vocabulary][0])
    text = tokenizer.convert_ids_to_tokens(unknown)
    problem = f"row {row} has token {unknown} ({text}), but the model has {vocabulary:,} embeddings"
    hint = "resize the embeddings and save the model, or remove the text of that token from the rows"
    raise UserError(path, problem=problem, hint=hint)


def used_tokens(tokens: Tokens) -> np.ndarray:
    """Return the distinct tokens in all rows, in ascending order."""
    parts = [np.flatnonzero(np.bincount(batch.ids)) for batch in tokens.batches()]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


class UntrainedTokens(L.Callback):
    """Warns about added tokens in the rows whose embeddings look untrained: all zero, or equal for several tokens.

    Training continues: a target learns these tokens, but a scorer's early losses on them mean little. Sharded
    embeddings are not checked. `tokens` contains the tokens as text.
    """

    def __init__(self, title: str, tokens: Tokens, tokenizer: Any) -> None:
        self.title = title
        self.added = sorted(tokenizer.added_tokens_decoder)
        self.used_A = np.intersect1d(used_tokens(tokens), self.added)
        self.tokenizer = tokenizer
        self.tokens: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        weight_VH = pl_module.language_model.get_input_embeddings().weight
        if isinstance(weight_VH, DTensor):
            return
        ids = untrained(weight_VH, self.used_A, self.added)
        self.tokens = [self.tokenizer.convert_ids_to_tokens(token) for token in ids]
        if self.tokens and trainer.is_global_zero:
            why = "the rows contain tokens that the model was never trained on"
            sign = "embeddings all zero, or equal for several tokens"
            fix = "Use a model that was trained on them, or a template without them."
            log.warning("%s: %s (%s): %s. %s", self.title, why, sign, ", ".join(self.tokens), fix)


def untrained(weight_VH: torch.Tensor, used_A: np.ndarray, added: list[int]) -> list[int]:
    """Return the used added tokens whose embedding is all zero or equal to that of another added token.

    Args:
        weight_VH: the input embeddings.
        used_A: tokens that the tokenizer added and the rows contain.
        added: all tokens that the tokenizer added.
    """
    known = [token for token in added if token < len(weight_VH)]
    embeddings = weight_VH.detach()[torch.tensor(known, dtype=torch.int64, device=weight_VH.device)].float().cpu()
    if not known:
        return []
    _, group, count = torch.unique(embeddings, dim=0, return_inverse=True, return_counts=True)
    suspect = (embeddings == 0).all(dim=1) | (count[group] > 1)
    suspects = [token for token, is_suspect in zip(known, suspect.tolist(), strict=True) if is_suspect]
    return sorted(set(suspects) & set(used_A.tolist()))
