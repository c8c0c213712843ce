"""Parquet files in batches that the memory can hold, whatever a small file may claim to hold."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lpsel.data.size_limits import MIB, check_expansion
from lpsel.errors import UserError, first_line

ROWS_AT_ONCE = 65_536
BYTES_AT_ONCE = 64 * MIB


def batches(
    path: Path, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Record batches in order, of at most ROWS_AT_ONCE rows and of about BYTES_AT_ONCE where a row has no more.

    Args:
        columns: all where None.
        groups: row groups by number, all where None.

    Raises:
        UserError: the file is damaged, or its rows expand beyond measure.
    """
    total = 0
    try:
        with pq.ParquetFile(path) as file:
            texts = [column.path for column in map(file.schema.column, range(len(file.schema))) if _is_text(column)]
            with pq.ParquetFile(path, read_dictionary=texts) as coded:
                for group in range(file.num_row_groups) if groups is None else groups:
                    about = file.metadata.row_group(group)
                    first = next(coded.iter_batches(batch_size=1, row_groups=[group], columns=columns), None)
                    if first is None:
                        continue
                    a_row = max(about.total_byte_size // about.num_rows, *map(_longest, first.columns), 1)
                    rows = min(max(BYTES_AT_ONCE // a_row, 1), ROWS_AT_ONCE)
                    for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                        total += sum(map(_expanded, batch.columns))
                        check_expansion(path, total)
                        yield batch
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet ({first_line(error)}). Write it again.") from None


def _is_text(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY"


def _expanded(array: pa.Array) -> int:
    """Bytes of a column with every text in full."""
    if pa.types.is_dictionary(array.type) and _of_texts(array):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_expanded, array.flatten()))
    return _expanded(array.flatten()) if pa.types.is_list(array.type) else array.nbytes


def _of_texts(array: pa.DictionaryArray) -> bool:
    kind = array.type.value_type
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _longest(array: pa.Array) -> int:
    """Bytes of the longest text in the dictionaries of a column: of a few bytes of the file each row may be as long."""
    if pa.types.is_dictionary(array.type) and _of_texts(array):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return max(map(_longest, array.flatten()), default=0)
    return _longest(array.values) if pa.types.is_list(array.type) else 0
