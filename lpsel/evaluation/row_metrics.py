"""Metrics of models on the same held-out rows, and paired differences between models. Pure functions."""

# N rows, R resamples

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.evaluation.statistics import (
    Estimate,
    add_holm,
    bootstrap_ratios,
    exponential,
    paired_interval,
    sign_flip_test,
    wilson,
)

METRICS = ("nll", "bits_per_byte", "exact_match", "rouge_l")


class RowMetrics(NamedTuple):
    """Results of one model for every row, each of shape (N,)."""

    nll: NDArray[np.float64]  # summed over the supervised tokens, in nats; 0 where there are none
    text_nll: NDArray[np.float64]  # the same without special tokens, such as the end of the response
    tokens: NDArray[np.int64]  # number of supervised tokens
    labels: NDArray[np.int64]  # a hash of the supervised tokens and the tokenizer
    response_bytes: NDArray[np.int64]  # length of the supervised response text in UTF-8
    exact_match: NDArray[np.float64]  # of the greedy answer, 0 or 1
    rouge_l: NDArray[np.float64]  # of the greedy answer, from 0 to 1


def compare_rows(
    measured: Sequence[RowMetrics], resamples: int, seed: int, metrics: Sequence[str] = METRICS
) -> list[dict[str, Any]]:
    """Compute the metrics of every model with intervals, and paired differences to the first model.

    Differences in NLL only use rows with the same supervised tokens for both models, and differences in bits per byte
    only rows with equally long text. Other rows, such as those truncated at different lengths, are not comparable.

    Args:
        metrics: the measured metrics, a prefix of METRICS.

    Returns:
        For every model: `metrics` (these and perplexity), each with `value`, `low` and `high`; and `difference` to the
        first model (None for the first itself), with the number of `rows` compared, `p_value` (sign-flip test over
        rows) and `p_value_holm`, corrected for the number of models and metrics. exp of the difference in NLL is the
        ratio of perplexities. Intervals are percentile bootstrap, but Wilson's and `paired_interval` for exact matches.
    """
    first, own = measured[0], len(metrics)
    every = np.ones(len(first.tokens), bool)
    columns: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for m in measured:
        columns += _columns(m, every, every)[:own]
    shared = [(m.labels == first.labels, m.response_bytes == first.response_bytes) for m in measured]
    for m, same in zip(measured, shared, strict=True):
        columns += [*_columns(m, *same)[:own], *_columns(first, *same)[:own]]
    numerator_NK, denominator_NK = (np.column_stack(side) for side in zip(*columns, strict=True))
    ratios = bootstrap_ratios(numerator_NK, denominator_NK, resamples=resamples, seed=seed)
    results: list[dict[str, Any]] = []
    for i in range(len(measured)):
        values = {metric: ratios.estimate(own * i + j) for j, metric in enumerate(metrics)}
        if "exact_match" in metrics:
            values["exact_match"] = _proportion(measured[i].exact_match)
        values = {"nll": values["nll"], "perplexity": exponential(values["nll"]), **values}
        difference: dict[str, dict[str, Any]] = {}
        for j, metric in enumerate(metrics) if i else ():
            k = own * (len(measured) + 2 * i) + j
            by_row_N = numerator_NK[:, k] - numerator_NK[:, k + own]
            estimate = ratios.difference(k, k + own)
            if metric == "exact_match" and estimate.low is not None:
                estimate = Estimate(estimate.value, *paired_interval(by_row_N, 1))
            p_value = None if estimate.low is None else sign_flip_test(by_row_N, seed=seed)
            difference[metric] = estimate._asdict() | {"rows": int(ratios.rows_K[k]), "p_value": p_value}
        by_metric = {name: each._asdict() for name, each in values.items()}
        results.append({"metrics": by_metric, "difference": difference if i else None})
    add_holm([each for result in results[1:] for each in result["difference"].values()])
    return results


def _proportion(value_N: NDArray[np.float64]) -> Estimate:
    """Return the mean of zeros and ones with Wilson's interval, which needs more than one value."""
    n = len(value_N)
    return Estimate(float(value_N.mean()), *(wilson(float(value_N.sum()), n) if n > 1 else (None, None)))


def _columns(
    m: RowMetrics, same_tokens_N: NDArray[np.bool_], same_text_N: NDArray[np.bool_]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return numerator and denominator of each of METRICS, with 0 for rows that are excluded."""
    one_N = np.ones(len(m.tokens))

    def counted(value_N: NDArray[Any], rows_N: NDArray[np.bool_]) -> NDArray[Any]:
        return np.where(rows_N, value_N, 0)

    return [
        (counted(m.nll, same_tokens_N), counted(m.tokens, same_tokens_N)),
        (counted(m.text_nll / math.log(2), same_text_N), counted(m.response_bytes, same_text_N)),
        (m.exact_match, one_N),
        (m.rouge_l, one_N),
    ]
