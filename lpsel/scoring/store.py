"""The scores folder: parts while passes run, then scores.parquet, and manifest.json last."""

import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from lpsel.errors import UserError, first_line
from lpsel.integrity import Damaged, seal, unseal
from lpsel.storage import digest, write_atomically

log = logging.getLogger(__name__)

SCORES = "scores.parquet"
MANIFEST = "manifest.json"
FORMAT = 1  # of the folder and its records: raised when the same recipe would give other numbers


class Parts:
    """Recorded losses on their way into scores.parquet: one small Parquet file per rank and few dozen batches.

    Files are written by a thread, so that the pass goes on meanwhile. Called off-thread errors surface in `wait`. What
    a process leaves is there for the next one, which writes files of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.pending: list[Future[None]] = []
        self.written = 0
        self.process = f"{time.time_ns():020d}"

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def add(self, epoch: int, rank: int, index: ArrayLike, nll: ArrayLike) -> None:
        """Queue rows for writing: `index` their row numbers (-1: not a row), `nll` in nats per supervised token.

        What is not a finite number is kept as infinity.
        """
        path = self.folder / f"epoch{epoch:03d}-rank{rank:05d}-{self.process}-{self.written:06d}.parquet"
        self.written += 1
        rows, values = np.asarray(index, dtype=np.int64), np.asarray(nll, dtype=np.float64)
        values = np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=np.inf)  # NaN stands for no record
        kept = rows >= 0
        table = pa.table({"index": rows[kept], "nll": values[kept]})
        self.pending.append(self.writer.submit(write_atomically, path, lambda file: _write(table, file)))

    def wait(self) -> None:
        """Return when all queued rows are on disk; raise what writing raised."""
        pending, self.pending = self.pending, []
        for write in pending:
            write.result()

    def recorded(self, epoch: int) -> bool:
        """Whether there are records of an epoch."""
        return any(self._of(epoch))

    def of_epoch(self, epoch: int, rows: int) -> NDArray[np.float64]:
        """What is recorded of an epoch, shape (rows,), NaN elsewhere. A damaged part is left out with a warning."""
        nll_N = np.full(rows, np.nan)
        # Reversed, so that of a row computed twice to keep ranks in step the first result stays.
        for path in reversed(self._of(epoch)):
            try:
                part = pq.read_table(path, page_checksum_verification=True)
            except (OSError, pa.ArrowException, KeyError) as error:
                log.warning("Records %s are damaged (%s): computed again", path, first_line(error))
                continue
            nll_N[part["index"].to_numpy()] = part["nll"].to_numpy()
        return nll_N

    def collect(self, epochs: int, rows: int) -> NDArray[np.float64]:
        """Everything recorded, by epoch and row, shape (epochs + 1, rows); NaN where nothing was."""
        return np.stack([self.of_epoch(epoch, rows) for epoch in range(epochs + 1)])

    def _of(self, epoch: int) -> list[Path]:
        return sorted(self.folder.glob(f"epoch{epoch:03d}-*.parquet"))


def _write(table: pa.Table, file: Any) -> None:
    pq.write_table(table, file, write_page_checksum=True)


class Rows(Protocol):
    """What is known of N rows beside their losses; `lpsel.data.tokens.Tokens` has it."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def prompt_tokens(self) -> NDArray[np.int32]: ...
    @property
    def response_tokens(self) -> NDArray[np.int32]: ...
    @property
    def truncated(self) -> NDArray[np.bool_]: ...
    def __len__(self) -> int: ...


def write_scores(
    folder: Path,
    tokens: Rows,
    nll_EN: NDArray[np.float64],
    manifest: dict[str, Any],
    further: Mapping[str, NDArray[np.float64]] | None = None,
) -> Path:
    """Write the scores folder of the contract and return the path of its scores.parquet.

    Args:
        tokens: of the data set, N rows.
        nll_EN: mean NLL per supervised token in nats, before training and after each epoch; infinite where it was
            recorded and was not a finite number, NaN where there is no record.
        manifest: what the scores came from; the format, how many rows have a record that is not finite, and the
            SHA-256 of the file are added.
        further: more columns, (N,) each; NaN where a row has none.

    Raises:
        UserError: a row with supervised tokens has no record.
    """
    missing = np.isnan(nll_EN) & (tokens.response_tokens > 0)
    if missing.any():
        epoch, row = np.argwhere(missing)[0]
        raise UserError(
            f"{int(missing.sum())} records are missing, the first of row {row} after epoch {epoch}: give a cache_dir "
            "that all ranks see."
        )
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(len(tokens)), pa.int64()),
        "id": pa.array(tokens.ids, pa.string()),
        "prompt_tokens": pa.array(tokens.prompt_tokens, pa.int32()),
        "response_tokens": pa.array(tokens.response_tokens, pa.int32()),
        "truncated": pa.array(tokens.truncated, pa.bool_()),
    }
    for epoch, nll_N in enumerate(nll_EN):
        columns[f"nll_{epoch}"] = pa.array(nll_N, pa.float64(), mask=np.isnan(nll_N))
    for name, column in (further or {}).items():
        columns[name] = pa.array(column, pa.float64(), mask=np.isnan(column))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SCORES
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))
    not_finite = int(np.isinf(nll_EN).any(axis=0).sum())
    seal(folder / MANIFEST, [SCORES], {"format": FORMAT, **manifest, "rows_not_finite": not_finite})
    return path


def find_scores(
    cache_dir: Path, key: str, epochs: int, columns: Collection[str] = (), described: Collection[str] = ()
) -> Path | None:
    """The complete scores folder for `key` with `columns` and at least `epochs` epochs, the shortest, if any.

    Args:
        described: names in the manifest whose values `key` is made of (`scores_key`).

    Raises:
        UserError: a folder that would do and is damaged, of another format or of other data. Scores are dear: whether
            to make them again is the user's decision.
    """
    found = []
    for file in sorted((cache_dir / "scores").glob(f"*-{key}-e*/{MANIFEST}")):
        try:
            manifest = unseal(file, FORMAT)
            if described and scores_key({name: manifest.get(name) for name in described}) != key:
                raise Damaged(file, problem="is the manifest of other scores")
            epochs_there, columns_there = manifest.get("epochs"), manifest.get("columns", [])
            if not isinstance(epochs_there, int) or not isinstance(columns_there, list):
                raise Damaged(file, problem="does not name its epochs and columns")
        except Damaged as damage:
            raise damage.with_hint(f"delete {file.parent} to compute these scores again") from None
        if epochs_there >= epochs and set(columns) <= set(columns_there):
            found.append((epochs_there, file.parent))
    return min(found)[1] if found else None


def scores_key(described: Mapping[str, Any]) -> str:
    """Names scores by all that they depend on."""
    return digest(described)[:16]
