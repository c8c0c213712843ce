"""Chosen rows as the source has them: JSON lines, or Parquet where the source is Parquet."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.source import Example, Source
from lpsel.files import json_line, write_atomically

NAMES = {False: "subset.jsonl", True: "subset.parquet"}  # by whether the source is a Parquet file


def write_subset(
    source: Source, selected: NDArray[np.bool_], folder: Path, wanted: Collection[int]
) -> tuple[Path, dict[int, Example]]:
    """Write the selected rows in source order, in one pass.

    Args:
        selected: bool (N,).
        folder: gets subset.jsonl, or subset.parquet with the columns and types of a Parquet source.
        wanted: numbers of rows to return on the way, selected or not.

    Returns:
        The file, and the wanted rows by number.
    """
    path = folder / NAMES[source.is_parquet]
    found: dict[int, Example] = {}
    write = _write_parquet if source.is_parquet else _write_lines
    write_atomically(path, lambda file: write(file, source, selected, set(wanted), found))
    return path, found


def _write_lines(
    file: IO[bytes], source: Source, selected: NDArray[np.bool_], wanted: set[int], found: dict[int, Example]
) -> None:
    def lines() -> Iterator[bytes]:
        for row, (raw, chosen) in enumerate(zip(source.raw_rows(), selected.tolist(), strict=True)):
            if row in wanted:
                found[row] = source.example(raw)
            if chosen:
                yield json_line(raw)

    file.writelines(lines())


def _write_parquet(
    file: IO[bytes], source: Source, selected: NDArray[np.bool_], wanted: set[int], found: dict[int, Example]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lpsel.data.parquet import batches

    spec = source.spec
    assert spec.path is not None
    first, last = spec.skip, spec.skip + len(selected)
    start = 0
    path = Path(spec.path).expanduser()
    with pq.ParquetWriter(file, pq.read_schema(path)) as writer:
        for batch in batches(path):
            end = start + len(batch)
            if taken := range(max(first, start), min(last, end)):
                part = batch.slice(taken[0] - start, len(taken))
                chosen = part.filter(pa.array(selected[taken[0] - first : taken[-1] + 1 - first]))
                if len(chosen):
                    writer.write_batch(chosen)
                for row in wanted.intersection(range(taken[0] - first, taken[-1] + 1 - first)):
                    raw: dict[str, Any] = part.slice(row - (taken[0] - first), 1).to_pylist()[0]
                    found[row] = source.example(raw)
            start = end
            if start >= last:
                break
