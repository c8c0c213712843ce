"""An order that looks random and depends on nothing but what the rows are, and a seed."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.data.random_order import splitmix64
from lpsel.scoring.table import ScoreTable

BLOCK_BYTES = 2**26


def random_place(table: ScoreTable, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every row, from its content id and the seed alone, float64 (N,).

    Neither the order of rows, nor which others are there, nor the machine changes it. Rows with the same content have
    the same place. Where the table has no ids, the row number takes their place.
    """
    state = splitmix64(np.full(len(table), seed % 2**64, np.uint64))
    if table.id is None:
        state = _absorb(state, table.index.astype(np.uint64))
    else:
        ids = table.id.cast(pa.large_string())
        length = np.diff(_offsets(ids))
        state = _absorb(state, length.astype(np.uint64))
        rows = max(BLOCK_BYTES // (int(length.max(initial=0)) + 8), 1)
        for start in range(0, len(ids), rows):
            block, block_length = state[start : start + rows], length[start : start + rows]
            for at, word in enumerate(_words(ids.slice(start, rows)).T):
                block[:] = np.where(8 * at < block_length, _absorb(block, word), block)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _absorb(state: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return splitmix64(state ^ word)


def _words(ids: Any) -> NDArray[np.uint64]:
    """The UTF-8 bytes of strings as words of 64 bits, zeros behind shorter ones, (strings, words)."""
    offsets = _offsets(ids)
    length = np.diff(offsets)
    width = -(-int(length.max(initial=0)) // 8) * 8
    padded = np.zeros((len(ids), width), np.uint8)
    data = ids.buffers()[2]
    if width and data is not None:
        used = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
        padded[np.arange(width) < length[:, None]] = used
    return padded.view("<u8").astype(np.uint64, copy=False)


def _offsets(strings: Any) -> NDArray[np.int64]:
    return np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
