"""Clusters of rows, so that a selection covers the kinds of instruction there are.

N rows, U different contents, D dimensions

Each class here is a choice in conf/cluster.
"""

import io
import logging
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from lpsel.clustering.embeddings import check_embedder, embed, embedder_fingerprint
from lpsel.console import Advance, track
from lpsel.data.content_ids import fingerprint
from lpsel.data.dataset import DatasetSpec, Row, Source
from lpsel.errors import UserError, is_int
from lpsel.integrity import Damaged, seal, unseal
from lpsel.scoring.table import ScoreTable
from lpsel.storage import digest, write_atomically

log = logging.getLogger(__name__)

FORMAT = 2  # of kept clusters: raised when the same rows would come out in others
MINIBATCH_ABOVE = 200_000  # rows; below, all of them are looked at in every round
INERTIA = re.compile(r"inertia:? (\d[\d.e+-]*\d)")
ROWS_PER_CLUSTER = 50


class Clusters(Protocol):
    """A way to cluster rows."""

    def check(self, dataset: DatasetSpec) -> None:
        """Raise UserError for what is known to fail before anything is scored or loaded; reads one row at most."""

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32] | None:
        """The cluster of every row of the source, int32 (N,), or None for no clusters."""


def brings_clusters(table: ScoreTable, clusters: Clusters) -> bool:
    """Whether the table's own clusters are used: for cluster=auto, where it has any."""
    return table.cluster is not None and isinstance(clusters, Auto)


def with_clusters(table: ScoreTable, clusters: Clusters, source: Source, cache_dir: Path, seed: int) -> ScoreTable:
    """The table with the clusters it came with, else those its rows have in the source; without for cluster=none."""
    if isinstance(clusters, NoClusters):
        return replace(table, cluster=None)
    if brings_clusters(table, clusters):
        return table
    cluster_N = clusters.assign(source, cache_dir, seed)
    return replace(table, cluster=None if cluster_N is None else cluster_N[table.index])


@dataclass(frozen=True)
class NoClusters:
    """The data set as one."""

    def check(self, dataset: DatasetSpec) -> None:
        pass

    def assign(self, source: Source, cache_dir: Path, seed: int) -> None:
        return None


@dataclass(frozen=True)
class Column:
    """A cluster for every value of a column of the source, numbered in sorted order.

    Attributes:
        column: its name; null for the one that the data set names.
    """

    column: str | None = None

    def check(self, dataset: DatasetSpec) -> None:
        name = self._name(dataset)
        self._value(next(iter(Source(dataset))), name)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        name = self._name(source.spec)
        seen: dict[Any, int] = {}  # value: its turn
        turn_N = np.fromiter((seen.setdefault(self._value(row, name), len(seen)) for row in source), np.int32)
        known = sorted(seen, key=lambda value: (type(value).__name__, value))
        code_by_turn = np.empty(len(known), np.int32)
        code_by_turn[[seen[value] for value in known]] = np.arange(len(known))
        return code_by_turn[turn_N]

    def _value(self, row: Row, name: str) -> Any:
        if name not in row.raw:
            found = ", ".join(map(str, row.raw))
            raise UserError(f"cluster.column={name}: row {row.index} has only {found}. Name a column of every row.")
        value = row.raw[name]
        if isinstance(value, list | dict):
            kind = type(value).__name__
            raise UserError(f"cluster.column={name}: row {row.index} holds a {kind}. Name a column of single values.")
        return value

    def _name(self, dataset: DatasetSpec) -> str:
        name = self.column if self.column is not None else dataset.cluster_column
        if name is None:
            raise UserError(f"cluster=column: data set {dataset.name} names no column for it. Say cluster.column=NAME.")
        return name


@dataclass(frozen=True)
class KMeans:
    """k-means on sentence embeddings (Mekala, Nguyen, Shang 2024: all-MiniLM-L6-v2, seed 42).

    The same rows, embedder and seed give the same clusters in whatever order the rows stand, and a content that is
    there twice weighs twice. One start by k-means++ (scikit-learn's own choice for it). Above 200,000 different
    contents, k-means by mini-batches.

    Attributes:
        n_clusters: null for one per 50 rows (`clusters_for`); never more than there are contents.
        embedder: a sentence-transformers folder or Hub id.
    """

    n_clusters: int | None = None
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"

    def __post_init__(self) -> None:
        if self.n_clusters is not None and (not is_int(self.n_clusters) or self.n_clusters < 1):
            raise UserError(f"cluster.n_clusters={self.n_clusters}: must be at least 1, or null for one per 50 rows.")

    def check(self, dataset: DatasetSpec) -> None:
        check_embedder(self.embedder)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        ids_U, place_N = source.contents
        count_U = np.bincount(place_N)
        wanted = clusters_for(len(place_N)) if self.n_clusters is None else self.n_clusters
        k = min(wanted, len(ids_U))
        described = {
            "format": FORMAT,
            "rows": fingerprint(ids_U.take(pa.array(np.sort(place_N)))),
            "embedder": embedder_fingerprint(self.embedder, cache_dir),
            "clusters": k,
            "seed": seed,
        }
        file = cache_dir / "clusters" / f"kmeans-{k}-{digest(described)[:16]}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if _whole(file, described):
                log.info("Clusters: %s, reused from %s", f"{k:,}", file)
                return np.load(file, allow_pickle=False)[place_N]
            vectors_UD = embed(source, self.embedder, cache_dir)
            log.info("Clusters: k-means of %s rows into %s", f"{len(place_N):,}", f"{k:,}")
            cluster_U = k_means(vectors_UD, count_U, k, seed)
            write_atomically(file, lambda opened: np.save(opened, cluster_U, allow_pickle=False))
            seal(file.with_suffix(".json"), [file.name], described)
        return cluster_U[place_N]


def _whole(file: Path, described: dict[str, Any]) -> bool:
    """Whether the manifest, written last, is there, is that of these clusters, and their file is as it says."""
    manifest = file.with_suffix(".json")
    if not manifest.exists():
        return False
    try:
        said = unseal(manifest, FORMAT)
        if {name: said.get(name) for name in described} != described:
            raise Damaged(manifest, problem="is the manifest of other clusters")
    except Damaged as damage:
        log.warning("%s Clustering again.", damage)
        return False
    return True


@dataclass(frozen=True)
class Auto(KMeans):
    """The data set's own cluster column where it names one, else k-means."""

    def check(self, dataset: DatasetSpec) -> None:
        self._choice(dataset).check(dataset)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        cluster_N = self._choice(source.spec).assign(source, cache_dir, seed)
        assert cluster_N is not None
        return cluster_N

    def _choice(self, dataset: DatasetSpec) -> Clusters:
        return KMeans(self.n_clusters, self.embedder) if dataset.cluster_column is None else Column()


def clusters_for(rows: int) -> int:
    """One cluster per 50 rows, to one significant digit: the paper's 1,000 for 52,002 rows and 300 for 15,011."""
    return max(int(float(f"{rows / ROWS_PER_CLUSTER:.0e}")), 1)


def k_means(vectors_UD: NDArray[np.float32], count_U: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int32]:
    """k-means of vectors that are there count_U times each: their clusters, int32 (U,), numbered from 0.

    Above MINIBATCH_ABOVE vectors by mini-batches (Sculley 2010), which sees a sample of them in every round.
    """
    from sklearn.cluster import KMeans as Lloyd
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(vectors_UD) > MINIBATCH_ABOVE:
        log.info("Clusters: more than %s rows, so k-means by mini-batches", f"{MINIBATCH_ABOVE:,}")
        batch = max(4 * k, 1024)
        fitting = MiniBatchKMeans(n_clusters=k, n_init=1, random_state=seed, batch_size=batch, verbose=1)
        rounds = fitting.max_iter * len(vectors_UD) // min(batch, len(vectors_UD))
    else:
        # In float64, so that the order in which threads add up their sums does not decide where a row goes.
        fitting = Lloyd(n_clusters=k, n_init=1, random_state=seed, verbose=1)
        rounds = fitting.max_iter
        vectors_UD = vectors_UD.astype(np.float64)
    with warnings.catch_warnings(), track("k-means", total=rounds, unit="rounds") as advance:
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        with redirect_stdout(_Rounds(advance)):
            fitted = fitting.fit(vectors_UD, sample_weight=count_U)
    return fitted.labels_.astype(np.int32)


class _Rounds(io.StringIO):
    """Takes what scikit-learn prints of its rounds, the only sign of life it gives, and moves a progress bar."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self.advance = advance

    def write(self, text: str) -> int:
        if text.startswith(("Iteration", "Minibatch step")):
            inertia = INERTIA.search(text)
            self.advance(1, note=f"inertia {float(inertia[1]):.4g}" if inertia else "")
        return len(text)
