"""Chosen rows as the source has them: JSON lines, or Parquet where the source is Parquet."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.dataset import Example, Source
from lpsel.storage import json_line, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = {False: "subset.jsonl", True: "subset.parquet"}  # by whether the source is a Parquet file
SIDES = {"prompt": ("instruction", "input", "prompt"), "response": ("output", "completion")}  # fields of each


@dataclass
class Seen:
    """What was seen of the rows while the chosen ones were written.

    Attributes:
        rows: those that were asked for, by number.
        selected, all: characters of prompts and of responses, added up over the selected rows and over all.
    """

    rows: dict[int, Example] = field(default_factory=dict)
    selected: tuple[int, int] = (0, 0)
    all: tuple[int, int] = (0, 0)

    def mean_characters(self, n_selected: int, n_total: int) -> dict[str, dict[str, float]]:
        """Of `prompt` and `response`, each of the `selected` rows and of `all`."""
        return {
            side: {"selected": selected / n_selected, "all": total / n_total}
            for side, selected, total in zip(SIDES, self.selected, self.all, strict=True)
        }


def write_subset(
    source: Source, selected: NDArray[np.bool_], folder: Path, wanted: Collection[int]
) -> tuple[Path, Seen]:
    """Write the selected rows in source order, in one pass.

    Args:
        selected: bool (N,).
        folder: gets subset.jsonl, or subset.parquet with the columns and types of a Parquet source.
        wanted: numbers of rows to return on the way, selected or not.
    """
    path = folder / NAMES[source.is_parquet]
    seen = Seen()
    write = _write_parquet if source.is_parquet else _write_lines
    write_atomically(path, lambda file: write(file, source, selected, set(wanted), seen))
    return path, seen


def _write_lines(file: IO[bytes], source: Source, selected: NDArray[np.bool_], wanted: set[int], seen: Seen) -> None:
    def lines() -> Iterator[bytes]:
        prompts = responses = 0
        for (index, raw, example), chosen in zip(source, selected.tolist(), strict=True):
            prompt, response = example.characters()
            prompts, responses = prompts + prompt, responses + response
            if index in wanted:
                seen.rows[index] = example
            if chosen:
                seen.selected = _sum(seen.selected, (prompt, response))
                yield json_line(raw)
        seen.all = prompts, responses

    file.writelines(lines())


def _write_parquet(file: IO[bytes], source: Source, selected: NDArray[np.bool_], wanted: set[int], seen: Seen) -> None:
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
                seen.all = _sum(seen.all, _characters(source, part))
                if len(chosen):
                    seen.selected = _sum(seen.selected, _characters(source, chosen))
                    writer.write_batch(chosen)
                for row in wanted:
                    if row + first in taken:
                        raw: dict[str, Any] = part.slice(row + first - taken[0], 1).to_pylist()[0]
                        seen.rows[row] = source.example(raw)
            start = end
            if start >= last:
                break


def _characters(source: Source, batch: "pa.RecordBatch") -> tuple[int, int]:
    """Characters of all prompts and of all responses of some rows, by column where these hold texts."""
    import pyarrow.compute as pc

    from lpsel.data.content_ids import text_columns

    columns = text_columns(source, batch.schema)
    if columns is None:
        lengths = np.array([source.example(raw).characters() for raw in batch.to_pylist()])
        return int(lengths[:, 0].sum()), int(lengths[:, 1].sum())

    def length(side: str) -> int:
        texts = [batch.column(columns[name]) for name in SIDES[side] if name in columns]
        return sum(pc.sum(pc.utf8_length(text)).as_py() or 0 for text in texts)

    return length("prompt"), length("response")


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
