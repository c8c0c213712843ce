"""What recorded losses say of a row: perplexity and learning percentage.

E recorded columns (0 = before training, then one after each epoch), N rows

Formulas: Mekala, Nguyen, Shang, Smaller Language Models are capable of selecting Instruction-Tuning Training Data for
Larger Language Models, Findings of ACL 2024, arXiv 2402.10430.
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


def _quotient(
    above_N: NDArray[np.float64], below_N: NDArray[np.float64], ppl_EN: NDArray[np.float64]
) -> NDArray[np.float64]:
    defined_N = np.isfinite(ppl_EN).all(axis=0) & (below_N != 0)
    with np.errstate(over="ignore"):
        quotient_N = np.divide(above_N, below_N, out=np.full(len(above_N), np.nan), where=defined_N)
    return np.where(np.isfinite(quotient_N), quotient_N, np.nan)
