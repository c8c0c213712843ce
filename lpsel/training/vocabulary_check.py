"""Tokens that a tokenizer has and its model does not know, or was never trained on.

V tokens of the vocabulary, A added tokens in the rows, H hidden size
"""

import logging
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from lpsel.data.tokens import Tokens
from lpsel.errors import UserError
from lpsel.model.load import load_config
from lpsel.model.spec import ModelSpec

log = logging.getLogger(__name__)


def check_vocabulary(tokens: Tokens, tokenizer: Any, spec: ModelSpec, path: str) -> None:
    """See that the model has an embedding for every token of the rows; before it is loaded.

    Raises:
        UserError: names the first row with a token that it does not have.
    """
    known = getattr(load_config(spec, path).get_text_config(), "vocab_size", None)
    if known is None or used_tokens(tokens).max(initial=0) < known:
        return
    row = next(i for i in range(len(tokens)) if tokens.input_ids(i).max(initial=0) >= known)
    ids_T = tokens.input_ids(row)
    beyond = int(ids_T[ids_T >= known][0])
    raise UserError(
        f"{path}: row {row} has token {beyond} ({tokenizer.convert_ids_to_tokens(beyond)}), the model knows {known:,} "
        "tokens; resize its embeddings and save it, or take the text of that token out of the rows."
    )


def used_tokens(tokens: Tokens) -> np.ndarray:
    """The different tokens of all rows, in ascending order."""
    parts = [np.flatnonzero(np.bincount(batch.ids)) for batch in tokens.batches()]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


class UntrainedTokens(L.Callback):
    """Warns of added tokens in the rows whose embeddings are as a resized model has them, all 0 or one for several.

    Training goes on: the target learns them, and a scorer's losses on them say little at first. It is looked at where a
    training starts, and not where embeddings are sharded.

    Attributes:
        found: these tokens as text.
    """

    def __init__(self, title: str, tokens: Tokens, tokenizer: Any) -> None:
        self.title = title
        self.added = sorted(tokenizer.added_tokens_decoder)
        self.used_A = np.intersect1d(used_tokens(tokens), self.added)
        self.tokenizer = tokenizer
        self.found: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        weight_VH = pl_module.language_model.get_input_embeddings().weight
        if isinstance(weight_VH, DTensor):
            return
        self.found = [
            self.tokenizer.convert_ids_to_tokens(token) for token in untrained(weight_VH, self.used_A, self.added)
        ]
        if self.found and trainer.is_global_zero:
            log.warning(
                "%s: the model was never trained on %s, which stand in these rows (embeddings all 0, or one for "
                "several); give one that was, or a template without them",
                self.title,
                ", ".join(self.found),
            )


def untrained(weight_VH: torch.Tensor, used_A: np.ndarray, added: list[int]) -> list[int]:
    """Those of the used added tokens whose embedding is all 0 or that of another added token."""
    known = [token for token in added if token < len(weight_VH)]
    rows = weight_VH.detach()[torch.tensor(known, dtype=torch.int64, device=weight_VH.device)].float().cpu()
    if not len(rows):
        return []
    _, place, count = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    suspect = (rows == 0).all(dim=1) | (count[place] > 1)
    return sorted({token for token, odd in zip(known, suspect.tolist(), strict=True) if odd} & set(used_A.tolist()))
