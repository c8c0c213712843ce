"""Parquet in batches that fit into memory."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.data.parquet import BATCH_BYTES, batches
from lpsel.data.size_limits import MIB
from lpsel.errors import UserError


def repeated(text, rows):
    """A column that holds the same text in every row, as a dictionary."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def test_batches_are_the_table(tmp_path):
    table = pa.table(
        {
            "n": range(10),
            "text": ["a", None] * 5,
            "turns": [[{"role": "user", "content": "b" * i}, None][: i % 3] for i in range(10)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    assert pa.Table.from_batches(batches(tmp_path / "t.parquet")) == table
    part = pa.Table.from_batches(batches(tmp_path / "t.parquet", columns=["n"], groups=[1, 3]))
    assert part["n"].to_pylist() == [3, 4, 5, 9]


def test_long_rows_are_read_in_small_batches(tmp_path):
    noise = np.random.default_rng(0).integers(97, 123, (80, MIB), np.uint8)
    pq.write_table(pa.table({"text": [row.tobytes().decode() for row in noise]}), tmp_path / "t.parquet")
    parts = list(batches(tmp_path / "t.parquet"))
    assert sum(map(len, parts)) == 80
    assert max(batch.nbytes for batch in parts) < 1.1 * BATCH_BYTES


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("nested", [None, pa.ListArray, pa.LargeListArray])
def test_a_text_repeated_in_every_row_counts_in_full(tmp_path, nested, typed):
    column = repeated("x" * MIB, 2_000)
    if nested:
        turns = pa.StructArray.from_arrays([column], ["content"])
        column = nested.from_arrays(np.arange(2_001), turns)
    pq.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", store_schema=typed)
    assert (tmp_path / "bomb.parquet").stat().st_size < 3 * MIB
    first = next(batches(tmp_path / "bomb.parquet"))
    assert len(first) * MIB <= BATCH_BYTES
    with pytest.raises(UserError, match=r"bomb.parquet: .* bytes expand to .* or more, over 200 times the size"):
        list(batches(tmp_path / "bomb.parquet"))
