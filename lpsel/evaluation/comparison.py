"""What models did on the same rows, as figures side by side with intervals and paired differences."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.evaluation.statistics import Estimate, bootstrap_ratios, exponential

# N rows

METRICS = ("nll", "bits_per_byte", "exact_match", "rouge_l")


class Measured(NamedTuple):
    """What one model did on every row, each of shape (N,).

    Attributes:
        nll: of the supervised tokens, summed, in nats; 0 where there are none.
        tokens: supervised.
        response_bytes: of the supervised response text.
        exact_match, rouge_l: of the greedy answer, from 0 to 1.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    response_bytes: NDArray[np.int64]
    exact_match: NDArray[np.float64]
    rouge_l: NDArray[np.float64]


def compare(measured: Sequence[Measured], resamples: int, seed: int) -> list[dict[str, Any]]:
    """The figures of every model with their intervals, and their paired differences to the first model's.

    Returns:
        For every model `metrics` (those of METRICS and perplexity) and `difference` (those of METRICS, None for the
        first): each a dictionary of `value`, `low` and `high`. exp of the difference in NLL is the ratio of
        perplexities.
    """
    one_N = np.ones(len(measured[0].tokens))
    columns = [
        {
            "nll": (m.nll, m.tokens),
            "bits_per_byte": (m.nll / math.log(2), m.response_bytes),
            "exact_match": (m.exact_match, one_N),
            "rouge_l": (m.rouge_l, one_N),
        }
        for m in measured
    ]
    ratios = bootstrap_ratios(
        np.column_stack([model[metric][0] for model in columns for metric in METRICS]),
        np.column_stack([model[metric][1] for model in columns for metric in METRICS]),
        resamples=resamples,
        seed=seed,
    )
    figures = []
    for i in range(len(measured)):
        at = {metric: i * len(METRICS) + j for j, metric in enumerate(METRICS)}
        estimates = {metric: ratios.estimate(k) for metric, k in at.items()}
        estimates = {"nll": estimates["nll"], "perplexity": exponential(estimates["nll"]), **estimates}
        differences = {metric: ratios.difference(k, j) for j, (metric, k) in enumerate(at.items())}
        figures.append({"metrics": _plain(estimates), "difference": _plain(differences) if i else None})
    return figures


def _plain(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {metric: estimate._asdict() for metric, estimate in estimates.items()}
