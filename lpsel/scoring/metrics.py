"""What recorded losses say of a row: perplexity and learning percentage.

E recorded columns (0 = before training, then one after each epoch), N rows

Formulas: Mekala, Nguyen, Shang, Smaller Language Models are capable of selecting Instruction-Tuning Training Data for
Larger Language Models, Findings of ACL 2024, arXiv 2402.10430, where no other source is named.
"""

import numpy as np
from numpy.typing import NDArray

LARGEST_EXPONENT = 700.0  # exp of it is still a float64


def perplexity(nll_EN: NDArray[np.float64]) -> NDArray[np.float64]:
    """P = exp(NLL), of the mean NLL per supervised token in nats; same shape. Infinite above an NLL of 709.78."""
    with np.errstate(over="ignore"):
        return np.exp(nll_EN)


def scaled_perplexity(nll_EN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perplexities that can be compared inside a row, (E, N): exp(NLL), or that over one number per row.

    Rows in which a perplexity would overflow are divided by a common factor. Quotients of a row's perplexities and of
    their differences, such as the learning percentage, do not change by that.
    """
    top_N = np.fmax.reduce(nll_EN, axis=0)
    shift_N = np.where(np.isfinite(top_N), np.maximum(top_N - LARGEST_EXPONENT, 0.0), 0.0)
    return perplexity(nll_EN - shift_N)


def learning_percentage(ppl_EN: NDArray[np.float64], epoch: int = 1) -> NDArray[np.float64]:
    """LP(i) = (P_{i-1} - P_i) / (P_0 - P_n) with i = `epoch` and n the last column, shape (N,).

    The share of all that is learnt of a row in n epochs that is learnt in epoch i; low is hard. Mostly in [0, 1], not
    always: perplexity may rise in between. NaN where it is undefined: P_0 = P_n, or a perplexity that is not finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(ppl_EN[epoch - 1] - ppl_EN[epoch], ppl_EN[0] - ppl_EN[-1], ppl_EN)


def learning_percentage_app(ppl_EN: NDArray[np.float64], epoch: int = 1) -> NDArray[np.float64]:
    """LP_app(i) = (P_{i-1} - P_i) / P_0 with i = `epoch`, shape (N,): one epoch is enough for LP_app(1).

    At most 1 for i = 1; low is hard, and below 0 the row got harder. NaN where a perplexity up to column i is not
    finite.
    """
    with np.errstate(invalid="ignore"):
        return _quotient(ppl_EN[epoch - 1] - ppl_EN[epoch], ppl_EN[0], ppl_EN[: epoch + 1])


def forgetting_events(nll_EN: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often NLL rises from one recorded pass to the next, plus a fraction below 1 that orders ties, shape (N,).

    Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019, section 3,
    count changes from classified rightly to wrongly; a response has no such bit, and a rise of its loss takes its
    place. The fraction is (rank + 1) / (N + 1) of the last NLL, so of equal counts the higher loss comes out higher.
    NaN where a record is not finite.
    """
    defined_N = np.isfinite(nll_EN).all(axis=0)
    events_N = np.full(nll_EN.shape[1], np.nan)
    nll_EM = nll_EN[:, defined_N]
    fraction_M = (mid_ranks(nll_EM[-1]) + 1) / (nll_EM.shape[1] + 1)
    events_N[defined_N] = (np.diff(nll_EM, axis=0) > 0).sum(axis=0) + fraction_M
    return events_N


def mean_relative_drop(nll_EN: NDArray[np.float64]) -> NDArray[np.float64]:
    """1/n sum over e = 1..n of (L_0 - L_e) / L_0, with L_e the NLL after epoch e, shape (N,): low is learnt slowly.

    One minus the area under the NLL curve by its right ends, in units of L_0. Jiang et al., Characterizing Structural
    Regularities of Labeled Data in Overparameterized Models, ICML 2021, rank by the same average over training of
    accuracy or probability ("cumulative learning speed"). NaN where a record is not finite or L_0 = 0.
    """
    return 1 - _quotient(nll_EN[1:].mean(axis=0), nll_EN[0], nll_EN)


def mid_ranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs, shape (N,)."""
    _, place_N, count = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place_N]


def _quotient(
    above_N: NDArray[np.float64], below_N: NDArray[np.float64], ppl_EN: NDArray[np.float64]
) -> NDArray[np.float64]:
    defined_N = np.isfinite(ppl_EN).all(axis=0) & (below_N != 0)
    with np.errstate(over="ignore"):
        quotient_N = np.divide(above_N, below_N, out=np.full(len(above_N), np.nan), where=defined_N)
    return np.where(np.isfinite(quotient_N), quotient_N, np.nan)
