"""Random orders that depend only on the content of the rows and a seed, not on their position or the machine."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# N rows
Ids: TypeAlias = pa.Array | Sequence[str]
PART, SAMPLE = 2**32, 2**32 + 1  # orders that differ from those of epochs: rows to train on, rows to monitor
TIES = 2**32 + 2  # a seed that users cannot set: for ties between scores or between the remainders of clusters
BLOCK_BYTES = 2**26


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply one step of SplitMix64, a bijection on 64-bit integers; the shape is unchanged.

    Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(ids: Ids, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle the rows for an epoch.

    Args:
        ids: content ids of at least 16 hexadecimal digits.

    Returns:
        Row numbers in the order of the epoch, shape (N,).
    """
    strings = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
    digits = pc.utf8_slice_codeunits(strings, 0, 16).buffers()[2]
    words_N = np.frombuffer(bytes.fromhex(digits.to_pybytes().decode() if digits else ""), ">u8").astype(np.uint64)
    key = splitmix64(splitmix64(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(epoch))
    return np.argsort(splitmix64(words_N ^ key), kind="stable")


def random_rows(mask_N: NDArray[np.bool_], ids: Ids, seed: int, order: int, count: int) -> NDArray[np.int64]:
    """Draw up to `count` rows of a mask: the first ones in `epoch_order(ids, seed, order)`, sorted by row number."""
    shuffled = epoch_order(ids, seed, order)
    return np.sort(shuffled[mask_N[shuffled]][:count])


def random_keys(ids: Ids | None, index: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a random number in [0, 1) for every row, float64 (N,).

    It depends on the row's id and, if several rows share the id, on the row's rank among them by row number, so that
    duplicates get independent numbers.

    Args:
        ids: any strings; None to hash the row numbers instead.
        index: row numbers.
    """
    state = splitmix64(np.full(len(index), seed % 2**64, np.uint64))
    if ids is None:
        state = _absorb(state, index.astype(np.uint64))
    else:
        strings = (ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())).cast(pa.large_string())
        _absorb_strings(state, strings)
        _absorb_ranks(state, index)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _absorb_strings(state: NDArray[np.uint64], strings: pa.LargeStringArray) -> None:
    """Mix strings into their states in place, in blocks of bounded size."""
    length = np.diff(_offsets(strings))
    state[:] = _absorb(state, length.astype(np.uint64))
    rows = max(BLOCK_BYTES // (int(length.max(initial=0)) + 8), 1)
    for start in range(0, len(strings), rows):
        block, block_length = state[start : start + rows], length[start : start + rows]
        for i, word in enumerate(_words(strings.slice(start, rows)).T):
            block[:] = np.where(8 * i < block_length, _absorb(block, word), block)


def _absorb_ranks(state: NDArray[np.uint64], index: NDArray[np.int64]) -> None:
    """Mix the rank of each row among rows with the same state into its state, in place; the first is unchanged."""
    ordered = np.sort(state)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return
    rows = np.flatnonzero(np.isin(state, repeated))
    rows = rows[np.lexsort((index[rows], state[rows]))]  # rows with the same state are adjacent
    start = np.flatnonzero(np.diff(state[rows], prepend=state[rows[0]] ^ np.uint64(1)))
    rank = np.arange(len(rows)) - np.repeat(start, np.diff(start, append=len(rows)))
    later = rows[rank > 0]
    state[later] = _absorb(state[later], rank[rank > 0].astype(np.uint64))


def _absorb(state: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return splitmix64(state ^ word)


def _words(strings: pa.LargeStringArray) -> NDArray[np.uint64]:
    """Return the UTF-8 bytes of strings as 64-bit words, padded with zeros, shape (strings, words)."""
    offsets = _offsets(strings)
    length = np.diff(offsets)
    width = -(-int(length.max(initial=0)) // 8) * 8
    padded = np.zeros((len(strings), width), np.uint8)
    data = strings.buffers()[2]
    if width and data is not None:
        used = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
        padded[np.arange(width) < length[:, None]] = used
    return padded.view("<u8").astype(np.uint64, copy=False)


def _offsets(strings: pa.LargeStringArray) -> NDArray[np.int64]:
    return np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
