import math

import numpy as np
import pytest
from scipy import stats

from lpsel.evaluation.comparison import Measured, compare


def test_figures_worked_out_by_hand():
    # 6 nats over 4 tokens and 3 bytes; one of two answers right
    measured = Measured(
        nll=np.array([2.0, 4.0]),
        tokens=np.array([1, 3]),
        response_bytes=np.array([1, 2]),
        exact_match=np.array([1.0, 0.0]),
        rouge_l=np.array([1.0, 0.2]),
    )
    (figures,) = compare([measured], 100, 0)
    assert {name: figure["value"] for name, figure in figures["metrics"].items()} == pytest.approx(
        {"nll": 1.5, "perplexity": math.exp(1.5), "bits_per_byte": 2 / math.log(2), "exact_match": 0.5, "rouge_l": 0.6}
    )
    assert figures["difference"] is None


def test_the_paired_interval_is_scipys():
    generator = np.random.default_rng(0)
    one, two = (generator.integers(0, 2, 40).astype(float) for _ in range(2))
    tokens = np.full(40, 5)
    ours = compare([Measured(one, tokens, tokens, one, one), Measured(two, tokens, tokens, two, two)], 20_000, 1)[1]
    theirs = stats.bootstrap(
        (two, one),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    difference = ours["difference"]["exact_match"]
    assert (difference["low"], difference["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.026)  # 1/40
    # per token: a fifth of the difference per row
    assert ours["difference"]["nll"]["value"] == pytest.approx((two.mean() - one.mean()) / 5)
