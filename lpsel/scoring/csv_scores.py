"""Read CSV tables of scores, with a detected delimiter and empty lines in their two meanings."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from lpsel.data.formats import delimiter_of
from lpsel.data.text_files import lines


def read_csv(file: Path, rows: Callable[[], int]) -> pa.Table:
    """Read a CSV file of scores.

    An empty line in a file with a single column is a row without a value, unless it is at the end of the file and the
    dataset has fewer rows.

    Args:
        rows: returns the number of rows in the dataset, 0 if unknown; called for a single column with empty lines at
            its end.
    """
    header = next((line for _, line in lines(file) if line.strip()), b"").decode(errors="replace")
    delimiter = delimiter_of(header)
    single_column = delimiter not in header
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=not single_column)
    convert = csv.ConvertOptions(column_types={"id": pa.large_string()})
    table = csv.read_csv(file, parse_options=parse, convert_options=convert)
    n_empty = _empty_lines_at_end(file) if single_column else 0
    n_rows = rows() if n_empty else 0
    if n_rows == 0:
        return table
    return table.slice(0, max(n_rows, len(table) - n_empty))


def _empty_lines_at_end(file: Path) -> int:
    count = 0
    for _, line in lines(file):
        count = 0 if line.strip(b"\r\n") else count + 1
    return count
