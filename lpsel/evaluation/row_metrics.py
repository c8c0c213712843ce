"""Metrics of models on the same held-out rows, and paired differences between models. Pure functions."""

# N rows, R resamples, K columns of the bootstrap

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

Fraction = tuple[NDArray[Any], NDArray[Any]]  # numerator and denominator of a metric for every row, (N,) each


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
    baseline = measured[0]
    all_N = np.ones(len(baseline.tokens), bool)
    columns: dict[tuple[str, int, str], Fraction] = {}  # by (what is averaged, position of the model, metric)
    for i, model in enumerate(measured):
        fractions = _fractions(model, all_N, all_N)
        columns |= {("all rows", i, metric): fractions[metric] for metric in metrics}
    for i, model in enumerate(measured):
        same_tokens_N = model.labels == baseline.labels
        same_text_N = model.response_bytes == baseline.response_bytes
        for side, compared in (("model", model), ("baseline", baseline)):
            fractions = _fractions(compared, same_tokens_N, same_text_N)
            columns |= {(side, i, metric): fractions[metric] for metric in metrics}
    column_of = {key: k for k, key in enumerate(columns)}
    numerator_NK = np.column_stack([numerator_N for numerator_N, _ in columns.values()])
    denominator_NK = np.column_stack([denominator_N for _, denominator_N in columns.values()])
    ratios = bootstrap_ratios(numerator_NK, denominator_NK, resamples=resamples, seed=seed)

    def difference(i: int, metric: str) -> dict[str, Any]:
        k, k_baseline = column_of["model", i, metric], column_of["baseline", i, metric]
        by_row_N = numerator_NK[:, k] - numerator_NK[:, k_baseline]
        estimate = ratios.difference(k, k_baseline)
        if metric == "exact_match" and estimate.low is not None:
            estimate = Estimate(estimate.value, *paired_interval(by_row_N, 1))
        p_value = None if estimate.low is None else sign_flip_test(by_row_N, seed=seed)
        return estimate._asdict() | {"rows": int(ratios.rows_K[k]), "p_value": p_value}

    results: list[dict[str, Any]] = []
    for i, model in enumerate(measured):
        estimates = {metric: ratios.estimate(column_of["all rows", i, metric]) for metric in metrics}
        if "exact_match" in metrics:
            estimates["exact_match"] = _proportion(model.exact_match)
        estimates = {"nll": estimates["nll"], "perplexity": exponential(estimates["nll"]), **estimates}
        results.append(
            {
                "metrics": {metric: estimate._asdict() for metric, estimate in estimates.items()},
                "difference": {metric: difference(i, metric) for metric in metrics} if i > 0 else None,
            }
        )
    add_holm([test for result in results[1:] for test in result["difference"].values()])
    return results


def _proportion(value_N: NDArray[np.float64]) -> Estimate:
    """Return the mean of zeros and ones with Wilson's interval, which needs more than one value."""
    n = len(value_N)
    low, high = wilson(float(value_N.sum()), n) if n > 1 else (None, None)
    return Estimate(float(value_N.mean()), low, high)


def _fractions(
    model: RowMetrics, same_tokens_N: NDArray[np.bool_], same_text_N: NDArray[np.bool_]
) -> dict[str, Fraction]:
    """Return each of METRICS as a fraction per row, 0 / 0 in the rows that the masks exclude from likelihoods."""
    one_N = np.ones(len(model.tokens))
    return {
        "nll": (np.where(same_tokens_N, model.nll, 0), np.where(same_tokens_N, model.tokens, 0)),
        "bits_per_byte": (
            np.where(same_text_N, model.text_nll / math.log(2), 0),
            np.where(same_text_N, model.response_bytes, 0),
        ),
        "exact_match": (model.exact_match, one_N),
        "rouge_l": (model.rouge_l, one_N),
    }
