"""Perplexity, LP and LP_app, by hand."""

import math
import warnings

import numpy as np
import pytest

from lpsel.scoring.metrics import learning_percentage, lp, lp_app, perplexity, scaled_perplexity
from lpsel.scoring.table import ScoreTable

# One column per row: easy, hard, one that gets worse at first, one that ends where it began.
PPL = np.array([[10.0, 10.0, 10.0, 8.0], [4.0, 9.0, 12.0, 6.0], [3.0, 7.0, 8.0, 7.0], [2.0, 6.0, 6.0, 8.0]])


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_perplexity_is_exp_of_the_mean_nll():
    assert perplexity(np.array([[0.0, math.log(10)]])) == pytest.approx(np.array([[1.0, 10.0]]))


def test_lp_is_the_share_of_all_learning_that_an_epoch_brings():
    # (10-4)/(10-2), (10-9)/(10-6), (10-12)/(10-6); the last learnt nothing in all
    assert lp(PPL) == pytest.approx([0.75, 0.25, -0.5, np.nan], nan_ok=True)
    assert lp(PPL, epoch=2) == pytest.approx([1 / 8, 2 / 4, 4 / 4, np.nan], nan_ok=True)


def test_lp_of_all_epochs_adds_up_to_one():
    assert sum(lp(PPL[:, :3], epoch) for epoch in (1, 2, 3)) == pytest.approx(1.0)


def test_lp_app_needs_the_first_epoch_alone():
    assert lp_app(PPL[:2]) == pytest.approx([0.6, 0.1, -0.2, 0.25])
    assert lp_app(PPL, epoch=2) == pytest.approx([0.1, 0.2, 0.4, -0.125])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_perplexity_that_is_no_finite_number_leaves_lp_undefined(bad, epoch):
    ppl = PPL[:, :1].copy()
    ppl[epoch] = bad
    assert np.isnan(lp(ppl)).all()
    assert np.isnan(lp_app(ppl)).all() == (epoch < 3)


def test_losses_too_large_for_a_perplexity_still_have_a_learning_percentage():
    # P = exp(800) is beyond float64. LP = (e^800 - e^799) / (e^800 - e^798) = (1 - 1/e) / (1 - 1/e^2)
    nll = np.array([[800.0, math.log(10)], [799.0, math.log(4)], [798.0, math.log(2)]])
    assert perplexity(nll)[0, 0] == np.inf
    assert learning_percentage(nll, "lp") == pytest.approx([(1 - 1 / math.e) / (1 - math.e**-2), 0.75])
    assert learning_percentage(nll, "lp_app") == pytest.approx([1 - 1 / math.e, 0.6])


def test_scaling_leaves_ordinary_rows_as_they_are():
    nll = np.log(PPL)
    assert (scaled_perplexity(nll) == perplexity(nll)).all()


def test_scaling_keeps_what_is_not_a_number():
    nll = np.array([[np.nan, np.inf, 1.0], [1.0, 1.0, np.nan]])
    assert np.isnan(learning_percentage(nll, "lp_app")).all()


def test_released_perplexities_are_used_as_they_are_and_their_logarithms_for_the_nll_basis():
    # exp(log(P)) of the two rows differ in the last digit; the rows themselves tie.
    ppl = np.array([[7.0, 14.0], [5.0, 10.0], [3.0, 6.0]])
    n = ppl.shape[1]
    tokens = np.ones(n, np.int32)
    table = ScoreTable(np.arange(n), None, tokens, tokens, tokens > 1, np.log(ppl), ppl=ppl)
    assert learning_percentage(table, "lp").tolist() == [0.5, 0.5]
    assert learning_percentage(table, "lp_app").tolist() == [2 / 7, 2 / 7]
    expected = [(math.log(a) - math.log(b)) / (math.log(a) - math.log(c)) for a, b, c in ppl.T]
    assert learning_percentage(table, "lp_nll") == pytest.approx(expected)
