"""Registry of the columns that a scorer can record before training in addition to `nll_0`.

N supervised tokens in a batch, T tokens in a row, V vocabulary size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # selection rules and dry runs use the registry without torch
    from torch import Tensor

    from lpsel.data.tokens import Tokens
    from lpsel.model.loss import Measure


@dataclass(frozen=True)
class RecordableColumn:
    """The mean of a measure over the supervised tokens of each row, computed in a separate recording pass."""

    measure: Measure | None = None  # (logits (N, V), labels (N,)) -> values (N,); None for the NLL
    without_prompt: bool = False  # feed the response without its prompt (`WithoutPrompt`)


class WithoutPrompt:
    """View of `Tokens` without prompts: each row's supervised tokens, after BOS if the tokenizer has one.

    Without BOS, nothing predicts the first token of a response, so it is not supervised.
    """

    def __init__(self, tokens: Tokens, bos: int | None) -> None:
        self.tokens = tokens
        self.bos = np.array([] if bos is None else [bos], np.int32)
        self.ids = tokens.ids
        supervised = tokens.response_tokens
        self.lengths = np.where(supervised > 0, supervised + len(self.bos), 0).astype(np.int32)
        self.response_tokens = np.maximum(self.lengths - 1, 0).astype(np.int32)

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self) -> list[Any]:
        """Return no batches to search for shared prefixes, since responses have none."""
        return []

    def input_ids(self, i: int) -> NDArray[np.int32]:
        """Return BOS and the response of row i, int32 (T,)."""
        return np.concatenate([self.bos, self.tokens.input_ids(i)[self.tokens.supervised(i)]])

    def supervised(self, i: int) -> NDArray[np.bool_]:
        """Return the mask of supervised tokens of row i, bool (T,): all but the first token."""
        return np.arange(self.lengths[i]) > 0


def error_norm(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Compute || softmax(z) - onehot(y) ||_2 of every token, float32 (N,), from 0 to the square root of 2.

    Paul, Ganguli, Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021 (EL2N).
    """
    p_NV = logits_NV.float().softmax(dim=-1)
    p_N = p_NV.gather(1, labels_N[:, None])[:, 0]
    return ((p_NV * p_NV).sum(dim=-1) - 2 * p_N + 1).clamp(min=0).sqrt()


RECORDABLE = {
    "nll_0_noprompt": RecordableColumn(without_prompt=True),
    "el2n_0": RecordableColumn(error_norm),
}
