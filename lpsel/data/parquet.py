"""Read Parquet files in batches of bounded size, even if a small file expands to a large table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lpsel.data.size_limits import MIB, check_expansion
from lpsel.errors import UserError, first_line

MAX_ROWS = 65_536
BATCH_BYTES = 64 * MIB


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Convert Arrow errors to a UserError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"not readable as Parquet ({first_line(error)})"
        raise UserError(path, None, problem, "write the file again") from None


def batches(
    path: Path, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield record batches in order, of at most MAX_ROWS rows and about BATCH_BYTES, unless a single row is larger.

    Args:
        columns: names of the columns to read; None for all.
        groups: numbers of the row groups to read; None for all.

    Raises:
        UserError: the file is damaged or a decompression bomb.
    """
    total = 0
    with parquet_errors(path), pq.ParquetFile(path) as file:
        columns_of_file = map(file.schema.column, range(len(file.schema)))
        texts = [column.path for column in columns_of_file if column.physical_type == "BYTE_ARRAY"]
        # Reading the texts of one row as a dictionary reveals how long those of other rows can be.
        with pq.ParquetFile(path, read_dictionary=texts) as with_dictionaries:
            for group in range(file.num_row_groups) if groups is None else groups:
                first_row = next(with_dictionaries.iter_batches(1, row_groups=[group], columns=columns), None)
                if first_row is None:
                    continue
                metadata = file.metadata.row_group(group)
                mean_bytes = metadata.total_byte_size // metadata.num_rows
                row_bytes = max(mean_bytes, *map(_longest, first_row.columns), 1)
                rows = min(max(BATCH_BYTES // row_bytes, 1), MAX_ROWS)
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                    total += sum(map(_expanded, batch.columns))
                    check_expansion(path, total)
                    yield batch


def dictionaries(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Convert the rows, and maps in them, to dictionaries; the last value of a repeated key counts, as in JSON."""
    if "map<" in str(batch.schema.types):  # several times slower
        return batch.to_pylist(maps_as_pydicts="lossy")
    return batch.to_pylist()


def _expanded(array: pa.Array) -> int:
    """Estimate the bytes of a column after expanding dictionary-encoded texts."""
    if _is_text_dictionary(array.type):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(array.type):
        return sum(map(_expanded, array.flatten()))
    is_list = pa.types.is_nested(array.type) and not pa.types.is_map(array.type)  # a map cannot be flattened
    return _expanded(array.flatten()) if is_list else array.nbytes


def _longest(array: pa.Array) -> int:
    """Return the bytes of the longest text in a column's dictionaries, which a row can reference in a few bytes."""
    if _is_text_dictionary(array.type):
        return pc.max(pc.binary_length(array.dictionary)).as_py() or 0
    if pa.types.is_struct(array.type):
        return max(map(_longest, array.flatten()), default=0)
    return _longest(array.values) if pa.types.is_nested(array.type) else 0


def _is_text_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and kind.value_type in (pa.string(), pa.large_string(), pa.binary())
