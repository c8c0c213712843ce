"""Scores folders and their place in the cache: records during passes, then scores.parquet and finally manifest.json."""

import logging
import shutil
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from lpsel.cache import FORMATS, Entry
from lpsel.data.content_ids import counts
from lpsel.data.dataset import Source
from lpsel.errors import UserError, first_line
from lpsel.integrity import Damaged, seal
from lpsel.model.spec import ScorerSpec
from lpsel.scoring.table import as_records, to_arrow
from lpsel.storage import read_json, write_atomically

if TYPE_CHECKING:  # tables of scores are read without torch
    from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)

SCORES = "scores.parquet"
MANIFEST = "manifest.json"
FORMAT = FORMATS["scores"]


@dataclass(frozen=True)
class Scores:
    """A scores folder, and whether it was created by an earlier run."""

    folder: Path
    reused: bool

    @property
    def table(self) -> Path:
        return self.folder / SCORES

    def manifest(self) -> dict[str, Any]:
        return read_json(self.folder / MANIFEST)


def scores_entry(
    setup: "TrainingSetup",
    scorer: ScorerSpec,
    source: Source,
    epochs: int,
    weights: str,
    precision: str,
    trained_on: Source | None = None,
) -> Entry:
    """Return the cache entry of scores; its key is everything they depend on except the recorded epochs and columns.

    The entry's folder holds the records of unfinished passes; finished scores are stored next to it (`scores_folder`).

    Args:
        epochs: recorded epochs; with 0, nothing is trained, so the key ignores `train_fraction` and `stop`.
        weights: fingerprint of the scorer's files.
        precision: resolved precision of the passes, not `auto`.
        trained_on: rows that the scorer is trained on instead of those of `source`.
    """
    key = {
        "dataset_fingerprint": source.fingerprint,
        "tokens_format": FORMATS["tokens"],
        "scorer_identity": weights,
        "template": scorer.template,
        "max_length": scorer.max_length,
        "recipe": asdict(scorer.recipe),
        "optimizer": setup.optimizer,
        "precision": precision,
        **(scorer.less_training() if epochs else {}),
        **({"trained_on": trained_on.fingerprint} if trained_on else {}),
    }
    return Entry.of(setup.cache_dir, "scores", key, label=f"{scorer.name}-{source.spec.name}")


def recording_name(epochs: int, columns: Collection[str]) -> str:
    """Return the suffix of a folder name that encodes the recorded epochs and columns."""
    return "+".join([f"e{epochs}", *sorted(columns)])


def scores_folder(entry: Entry, epochs: int, columns: Collection[str]) -> Path:
    return entry.folder.with_name(f"{entry.folder.name}-{recording_name(epochs, columns)}")


def find_scores(entry: Entry, epochs: int, columns: Collection[str] = ()) -> Path | None:
    """Find the complete scores folder with `columns` and the fewest epochs that are at least `epochs`, or None.

    Raises:
        UserError: a folder is damaged, or has another format or key. Scores are expensive, so the user decides whether
            to compute them again.
    """
    complete = []
    for file in sorted(entry.folder.parent.glob(f"*{entry.digest}-e*/{MANIFEST}")):
        try:
            manifest = replace(entry, folder=file.parent).manifest()
            if any(manifest.get(name) != value for name, value in entry.key.items()):
                raise Damaged(file, problem="is the manifest of other scores")
            recorded, extra = manifest.get("epochs"), manifest.get("columns", [])
            if not isinstance(recorded, int) or not isinstance(extra, list):
                raise Damaged(file, problem="does not name its epochs and columns")
        except Damaged as damage:
            raise damage.with_hint(f"delete {file.parent} to compute these scores again") from None
        if recorded >= epochs and set(columns) <= set(extra):
            complete.append((recorded, file.parent))
    return min(complete)[1] if complete else None


class Parts:
    """Stores recorded losses until scores.parquet is written: a small Parquet file per rank and few dozen batches.

    A thread writes the files while the pass runs; `wait` raises its errors. A resumed process reads the files of
    earlier processes and adds its own.
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
        """Queue rows for writing: `index` has row numbers (-1 is ignored), `nll` is in nats per supervised token."""
        path = self.folder / f"epoch{epoch:03d}-rank{rank:05d}-{self.process}-{self.written:06d}.parquet"
        self.written += 1
        rows = np.asarray(index, dtype=np.int64)
        table = pa.table({"index": rows[rows >= 0], "nll": as_records(nll)[rows >= 0]})
        write = partial(pq.write_table, table, write_page_checksum=True)
        self.pending.append(self.writer.submit(write_atomically, path, write))

    def wait(self) -> None:
        """Wait until all queued rows are on disk, and raise any errors from writing them."""
        pending, self.pending = self.pending, []
        for write in pending:
            write.result()

    def discard_after(self, epoch: int) -> None:
        """Delete the records of later epochs."""
        kept = {path for earlier in range(epoch + 1) for path in self._of(earlier)}
        for path in {*self.folder.glob("epoch*.parquet")} - kept:
            path.unlink()

    def of_epoch(self, epoch: int, rows: int) -> NDArray[np.float64]:
        """Read an epoch's records, shape (rows,), NaN where missing. Damaged files are skipped with a warning."""
        nll_N = np.full(rows, np.nan)
        # In reverse, so that the first result counts if a row was computed twice to keep ranks in step.
        for path in reversed(self._of(epoch)):
            try:
                part = pq.read_table(path, page_checksum_verification=True)
            except (OSError, pa.ArrowException, KeyError) as error:
                log.warning("Records %s are damaged (%s) and not used", path, first_line(error))
                continue
            nll_N[part["index"].to_numpy()] = part["nll"].to_numpy()
        return nll_N

    def collect(self, epochs: int, rows: int) -> NDArray[np.float64]:
        """Read all records by epoch and row, shape (epochs + 1, rows), NaN where missing."""
        return np.stack([self.of_epoch(epoch, rows) for epoch in range(epochs + 1)])

    def _of(self, epoch: int) -> list[Path]:
        return sorted(self.folder.glob(f"epoch{epoch:03d}-*.parquet"))


def write_scores(
    folder: Path,
    rows: Any,
    nll_EN: NDArray[np.float64],
    manifest: dict[str, Any],
    columns: Mapping[str, NDArray[np.float64]] | None = None,
    records: Path | None = None,
) -> Path:
    """Write a scores folder (docs/reference/files.md) and return the path of its scores.parquet.

    Args:
        rows: N rows with `ids`, `prompt_tokens`, `response_tokens`, `truncated` and `unusable`, such as
            `lpsel.data.tokens.Tokens`.
        nll_EN: mean NLL per supervised token in nats, before training and after each epoch.
        manifest: what the scores depend on and what they cost. The format, the number of rows with a non-finite record,
            the numbers of unusable rows by kind, and the file's SHA-256 are added.
        columns: additional columns, (N,) each.
        records: the `Parts` folder that the NLLs come from, for error messages.

    Raises:
        UserError: a row with supervised tokens has no record.
    """
    missing = np.isnan(nll_EN) & (rows.response_tokens > 0)
    if missing.any():
        epoch, row = np.argwhere(missing)[0]
        problem = f"{int(missing.sum())} records are missing or damaged, the first of row {row} after epoch {epoch}"
        hint = "delete it to score again; with several machines, set cache_dir to a folder that all of them see"
        raise UserError(records or folder, None, problem, hint)
    table: dict[str, Any] = {
        "index": pa.array(np.arange(len(rows.ids)), pa.int64()),
        "id": pa.array(rows.ids, pa.string()),
        "prompt_tokens": pa.array(rows.prompt_tokens, pa.int32()),
        "response_tokens": pa.array(rows.response_tokens, pa.int32()),
        "truncated": pa.array(rows.truncated, pa.bool_()),
        **({} if rows.unusable is None else {"unusable": rows.unusable.cast(pa.string())}),
        **{f"nll_{epoch}": to_arrow(nll_N) for epoch, nll_N in enumerate(nll_EN)},
        **{name: to_arrow(column) for name, column in (columns or {}).items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SCORES
    write_atomically(path, lambda file: pq.write_table(pa.table(table), file))
    not_finite = int(np.isinf(nll_EN).any(axis=0).sum())
    counted = {"rows_not_finite": not_finite, "rows_unusable": counts(rows.unusable)}
    seal(folder / MANIFEST, [SCORES], {"format": FORMAT, **manifest, **counted})
    return path
