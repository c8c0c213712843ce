"""Concatenate the tokens of two datasets: rows to record, and other rows to train on."""

# N rows in both datasets, T tokens of a row
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.tokens import Batch, Tokens


class JoinedTokens:
    """The rows of `first`, then those of `second`, with the interface of `Tokens` that the data module uses."""

    def __init__(self, first: Tokens, second: Tokens) -> None:
        self.first, self.second = first, second
        self.ids = pa.concat_arrays([first.ids, second.ids])
        self.lengths = np.concatenate([first.lengths, second.lengths])
        self.response_tokens = np.concatenate([first.response_tokens, second.response_tokens])

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self) -> list[Batch]:
        """Return the list columns of all rows, in order."""
        return [*self.first.batches(), *self.second.batches()]

    def input_ids(self, i: int) -> NDArray[np.int32]:
        """Return the tokens of row i, int32 (T,)."""
        tokens, row = self._at(i)
        return tokens.input_ids(row)

    def supervised(self, i: int) -> NDArray[np.bool_]:
        """Return which tokens of row i are labels, bool (T,)."""
        tokens, row = self._at(i)
        return tokens.supervised(row)

    def _at(self, i: int) -> tuple[Tokens, int]:
        """Return the dataset of row i, and the number of the row in it."""
        return (self.first, i) if i < len(self.first) else (self.second, i - len(self.first))
