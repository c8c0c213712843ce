"""Further columns of the scores folder, each from one more pass of the untrained scorer.

B rows of a batch, N supervised tokens of the batch, T tokens of a row, V vocabulary
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lpsel.data.packing import MicroBatch
from lpsel.data.tokens import Tokens
from lpsel.model.lightning_module import FineTuner
from lpsel.model.loss import per_sample_nll


class WithoutPrompt:
    """The responses of `Tokens` alone: what is supervised of a row, behind BOS where the tokenizer has one.

    Without BOS, nothing predicts the first token of a response, and it is not supervised.
    """

    def __init__(self, tokens: Tokens, bos: int | None) -> None:
        self.tokens = tokens
        self.bos = [] if bos is None else [bos]
        self.ids = tokens.ids
        self.truncated = tokens.truncated
        supervised = tokens.response_tokens
        self.lengths = np.where(supervised > 0, supervised + len(self.bos), 0).astype(np.int32)
        self.response_tokens = np.maximum(self.lengths - 1, 0).astype(np.int32)
        self.prompt_tokens = self.lengths - self.response_tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self) -> list[Any]:
        """No columns to look for shared beginnings in: responses have none."""
        return []

    def input_ids(self, i: int) -> NDArray[np.int32]:
        """BOS and the response of row i, int32 (T,)."""
        return np.concatenate(
            [np.array(self.bos, np.int32), self.tokens.input_ids(i)[self.tokens.supervised(i)]], dtype=np.int32
        )

    def supervised(self, i: int) -> NDArray[np.bool_]:
        """All but the first token, bool (T,)."""
        return np.arange(self.lengths[i]) > 0


class ErrorNorms(FineTuner):
    """A model whose recording pass gives EL2N instead of NLL."""

    def validation_step(self, batch: MicroBatch, _batch_idx: int) -> Tensor:
        """Mean error norm of each row over its supervised tokens, shape (B,)."""
        assert self.loss is not None
        return per_sample_nll(self.loss(batch, measure=error_norm), batch.row_N, batch.supervised_B)


def error_norm(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """|| softmax(z) - onehot(y) ||_2 of every token, float32 (N,), from 0 to the square root of 2.

    Paul, Ganguli, Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021 (EL2N).
    """
    p_NV = logits_NV.float().softmax(dim=-1)
    p_N = p_NV.gather(1, labels_N[:, None])[:, 0]
    return ((p_NV * p_NV).sum(dim=-1) - 2 * p_N + 1).clamp(min=0).sqrt()


def extra_pass(column: str, tokens: Tokens, bos: int | None) -> tuple[Any, type[FineTuner]]:
    """What a further column needs: the tokens to feed, and the module whose recording pass gives it."""
    if column == "nll_0_noprompt":
        return WithoutPrompt(tokens, bos), FineTuner
    assert column == "el2n_0", column
    return tokens, ErrorNorms
