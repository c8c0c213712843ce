"""Metrics of models on held-out rows: likelihood of the reference responses, and their comparison with intervals."""

# N rows

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpsel.console import track
from lpsel.data.batching import packed
from lpsel.data.column_forms import Example
from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import find_prefixes
from lpsel.data.tokens import Tokens
from lpsel.evaluation.statistics import bootstrap_ratios, exponential
from lpsel.model.loss import PerSampleLoss

METRICS = ("nll", "bits_per_byte", "exact_match", "rouge_l")


class RowMetrics(NamedTuple):
    """Results of one model for every row, each of shape (N,).

    Attributes:
        nll: summed over the supervised tokens, in nats; 0 where there are none.
        tokens: number of supervised tokens.
        response_bytes: of the supervised response text.
        exact_match, rouge_l: of the greedy answer, from 0 to 1.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    response_bytes: NDArray[np.int64]
    exact_match: NDArray[np.float64]
    rouge_l: NDArray[np.float64]


@torch.inference_mode()
def reference_nll(loss: PerSampleLoss, tokens: Tokens, batch_tokens: int, title: str) -> NDArray[np.float64]:
    """Negative log-likelihood of the supervised tokens of each row, summed in float64, in nats, shape (N,).

    0 where a row has no supervised token.

    Args:
        loss: of a model in evaluation mode, on its device.
        tokens: the reference rows.
        batch_tokens: largest pack.
        title: of the progress bar.
    """
    nll_N = np.zeros(len(tokens.ids))
    supervised = np.flatnonzero(tokens.response_tokens > 0)
    prefixes = find_prefixes(tokens)
    on_gpu = loss.model.device.type == "cuda"
    packs = []  # stay on the device until the end, so that no pack waits for a transfer
    with track(title, total=len(supervised), unit="rows") as advance:
        for rows in packed(supervised, tokens.lengths, batch_tokens):
            batch = collate(tokens, rows, prefixes, varlen=on_gpu)
            packs.append((rows, batch.row_N.numpy(), loss(batch.to(loss.model.device))))
            advance(len(rows), tokens=batch.tokens)
    for rows, row_N, token_nll in packs:
        nll_N[rows] = np.bincount(row_N, weights=token_nll.cpu().double().numpy(), minlength=len(rows))
    return nll_N


def response_bytes(example: Example, tokens: Tokens, i: int, tokenizer: Any) -> int:
    """UTF-8 bytes of the supervised response text of row i.

    All text of the assistant's turns, independent of tokenizer and template; for a truncated row, the text of the
    supervised tokens that are left.
    """
    if tokens.response_tokens[i] == 0:
        return 0
    whole = sum(len(turn.content.encode()) for turn in example.turns if turn.role == "assistant")
    if not tokens.truncated[i]:
        return whole
    left = tokens.input_ids(i)[tokens.supervised(i)]
    return min(whole, len(tokenizer.decode(left.tolist(), skip_special_tokens=True).encode()))


def compare(measured: Sequence[RowMetrics], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Metrics of every model with their intervals, and paired differences to the first model.

    Returns:
        For every model `metrics` (METRICS and perplexity) and `difference` (METRICS; None for the first), each with
        `value`, `low` and `high`. exp of the difference in NLL is the ratio of perplexities.
    """
    one_N = np.ones(len(measured[0].tokens))
    numerators = [(m.nll, m.nll / math.log(2), m.exact_match, m.rouge_l) for m in measured]
    denominators = [(m.tokens, m.response_bytes, one_N, one_N) for m in measured]
    ratios = bootstrap_ratios(
        np.column_stack([column for of_model in numerators for column in of_model]),
        np.column_stack([column for of_model in denominators for column in of_model]),
        resamples=resamples,
        seed=seed,
    )
    results = []
    for i in range(len(measured)):
        columns = {metric: i * len(METRICS) + j for j, metric in enumerate(METRICS)}
        metrics = {metric: ratios.estimate(column) for metric, column in columns.items()}
        metrics = {"nll": metrics["nll"], "perplexity": exponential(metrics["nll"]), **metrics}
        difference = {metric: ratios.difference(column, j) for j, (metric, column) in enumerate(columns.items())}
        results.append(
            {
                "metrics": {metric: estimate._asdict() for metric, estimate in metrics.items()},
                "difference": {metric: estimate._asdict() for metric, estimate in difference.items()} if i else None,
            }
        )
    return results
