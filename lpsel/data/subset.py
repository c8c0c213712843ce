"""Write the selected rows as in the source: to JSON lines, or to Parquet if the source is Parquet."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpsel.data.content_ids import text_form
from lpsel.data.dataset import Source
from lpsel.data.example import Example
from lpsel.data.parquet import batches, dictionaries
from lpsel.storage import json_line, write_atomically

ENDS = 2_000  # characters to compare at each end of a longer text


@dataclass
class Seen:
    """Data collected while writing the subset."""

    characters: NDArray[np.int32]  # lengths of the prompt and the response of every row, (2, N)
    returned: frozenset[int]  # numbers of the rows to return in `rows`, selected or not
    compared: frozenset[int]  # numbers of the rows to return in `texts`
    rows: dict[int, Example] = field(default_factory=dict)  # by number
    texts: dict[str, str] = field(default_factory=dict)  # both ends of `Example.embedding_text`, by content id

    def keep(self, number: int, example: Example) -> None:
        """Add a row to `rows` and `texts` if it was requested."""
        if number in self.returned:
            self.rows[number] = example
        if number in self.compared:
            text = example.embedding_text()
            self.texts[example.content_id()] = text if len(text) <= 2 * ENDS else f"{text[:ENDS]} {text[-ENDS:]}"

    def mean_characters(self, selected: NDArray[np.bool_], usable: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
        """Compute mean characters of `prompt` and `response` per row, for `selected` rows and for `all` usable rows."""
        return {
            side: {"selected": float(characters_N[selected].mean()), "all": float(characters_N[usable].mean())}
            for side, characters_N in zip(("prompt", "response"), self.characters, strict=True)
        }


def write_subset(
    source: Source, selected: NDArray[np.bool_], folder: Path, returned: Iterable[int], compared: Iterable[int] = ()
) -> tuple[Path, Seen]:
    """Write the selected rows in source order, in one pass.

    Args:
        selected: bool (N,).
        folder: folder for subset.jsonl, or for subset.parquet if the source is Parquet files with the same schema.
        returned, compared: numbers of rows to return in `Seen.rows` and in `Seen.texts`.
    """
    is_parquet = _is_parquet(source)
    path = folder / ("subset.parquet" if is_parquet else "subset.jsonl")
    write = _write_parquet if is_parquet else _write_lines
    seen = Seen(np.zeros((2, len(selected)), np.int32), frozenset(returned), frozenset(compared))
    write_atomically(path, lambda file: write(file, source, selected, seen))
    return path, seen


def _is_parquet(source: Source) -> bool:
    """Return whether the source is Parquet files with the same schema, which Arrow can filter (no string views)."""
    schemas = {pq.read_schema(file).remove_metadata() for file in source.parquet_files}
    return len(schemas) == 1 and "_view" not in str(schemas.pop().types)


def _write_lines(file: IO[bytes], source: Source, selected: NDArray[np.bool_], seen: Seen) -> None:
    for row, is_selected in zip(source, selected.tolist(), strict=True):
        seen.characters[:, row.index] = row.example.characters()
        seen.keep(row.index, row.example)
        if is_selected:
            file.write(json_line(row.raw))


def _write_parquet(file: IO[bytes], source: Source, selected: NDArray[np.bool_], seen: Seen) -> None:
    requested = seen.returned | seen.compared
    offset = -source.spec.skip  # row number of the first row of a batch; negative before the first row of the source
    with pq.ParquetWriter(file, pq.read_schema(source.parquet_files[0])) as writer:
        for batch in chain.from_iterable(map(batches, source.parquet_files)):
            start, stop = max(offset, 0), min(offset + len(batch), len(selected))
            if start < stop:
                part = batch.slice(start - offset, stop - start)
                seen.characters[:, start:stop] = _characters(source, part)
                selected_part = part.filter(pa.array(selected[start:stop]))
                if len(selected_part):
                    writer.write_batch(selected_part)
                for row in requested:
                    if start <= row < stop:
                        raw = dictionaries(part.slice(row - start, 1))[0]
                        seen.keep(row, source.example(raw))
            offset += len(batch)
            if offset >= len(selected):
                break


def _characters(source: Source, batch: pa.RecordBatch) -> NDArray[np.int32]:
    """Count the characters of prompts and responses, int32 (2, rows), by column if all columns are text."""
    form = text_form(source, batch.schema)
    if form is None:
        return np.array([source.example(raw).characters() for raw in dictionaries(batch)], np.int32).T
    characters = np.zeros((2, len(batch)), np.int32)
    for text in form.fields:
        length = pc.utf8_length(batch.column(text.column)).fill_null(0)
        characters[int(text.role == "assistant")] += length.to_numpy(zero_copy_only=False).astype(np.int32)
    return characters
