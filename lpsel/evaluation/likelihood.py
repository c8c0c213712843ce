"""How likely a model finds the reference responses, and how many bytes of them it was asked about."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lpsel.console import track
from lpsel.data.batching import packed
from lpsel.data.dataset import Example
from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import find_prefixes
from lpsel.data.tokens import Tokens
from lpsel.model.loss import PerSampleLoss


@torch.inference_mode()
def reference_nll(loss: PerSampleLoss, tokens: Tokens, batch_tokens: int, title: str) -> NDArray[np.float64]:
    """Negative log-likelihood of every row's supervised tokens, summed, in nats, shape (N,).

    0 where a row has no supervised token. Summed in float64 whatever the model's precision.

    Args:
        loss: the model, in evaluation mode, on its device.
        tokens: the reference rows, N of them.
        batch_tokens: largest pack.
        title: of the progress bar.
    """
    nll_N = np.zeros(len(tokens.ids))
    supervised = np.flatnonzero(tokens.response_tokens > 0)
    prefixes = find_prefixes(tokens)
    on_gpu = loss.model.device.type == "cuda"
    measured = []  # taken off the device at the end, so that no pack waits for the one before
    with track(title, total=len(supervised), unit="rows") as advance:
        for rows in packed(supervised, tokens.lengths, batch_tokens):
            batch = collate(tokens, rows, prefixes, varlen=on_gpu)
            measured.append((rows, batch.row_N.numpy(), loss(batch.to(loss.model.device))))
            advance(len(rows), tokens=batch.tokens)
    for rows, row_N, token_nll in measured:
        nll_N[rows] = np.bincount(row_N, weights=token_nll.cpu().double().numpy(), minlength=len(rows))
    return nll_N


def response_bytes(example: Example, tokens: Tokens, i: int, tokenizer: Any) -> int:
    """UTF-8 bytes of the response text that row i supervises.

    A row that was not cut supervises the whole text of its assistant's turns, the same bytes for every tokenizer and
    template. Of one that was cut, the supervised tokens that are left are decoded and counted.
    """
    if tokens.response_tokens[i] == 0:
        return 0
    whole = sum(len(turn.content.encode()) for turn in example.turns if turn.role == "assistant")
    if not tokens.truncated[i]:
        return whole
    left = tokens.input_ids(i)[tokens.supervised(i)]
    return min(whole, len(tokenizer.decode(left.tolist(), skip_special_tokens=True).encode()))
