"""Cluster the rows of a dataset, so that a selection covers all kinds of instructions.

N rows, U different contents, D dimensions

Each class that implements `Clusters` has a file in conf/cluster.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpsel.cache import Entry
from lpsel.clustering.embeddings import check_embedder, embed, embeddings_entry
from lpsel.clustering.k_means import k_means
from lpsel.data.content_ids import fingerprint
from lpsel.data.dataset import DatasetSpec, Row, Source
from lpsel.errors import UserError, check_int
from lpsel.scoring.table import ScoreTable
from lpsel.storage import write_atomically

log = logging.getLogger(__name__)

ROWS_PER_CLUSTER = 50
FILE = "clusters.npy"


class Clusters(Protocol):
    """A way to cluster rows."""

    def check(self, dataset: DatasetSpec) -> None:
        """Validate the settings before a model is loaded; raises a UserError if `assign` would fail."""

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32] | None:
        """Cluster of every row of the source, int32 (N,), -1 for unusable rows; None for no clusters."""


def brings_clusters(table: ScoreTable, clusters: Clusters) -> bool:
    """Whether the clusters in the table are used: with cluster=auto, if it has any."""
    return table.cluster is not None and isinstance(clusters, Auto)


def with_clusters(table: ScoreTable, clusters: Clusters, source: Source, cache_dir: Path, seed: int) -> ScoreTable:
    """Add clusters to the table: its own if it has any, else computed from the source; none for cluster=none."""
    if brings_clusters(table, clusters):
        return table
    cluster_N = clusters.assign(source, cache_dir, seed)
    return replace(table, cluster=None if cluster_N is None else cluster_N[table.index])


@dataclass(frozen=True)
class NoClusters:
    """No clusters: select from the dataset as a whole."""

    def check(self, dataset: DatasetSpec) -> None:
        pass

    def assign(self, source: Source, cache_dir: Path, seed: int) -> None:
        return None


@dataclass(frozen=True)
class Column:
    """One cluster per value of a column of the source, numbered in sorted order."""

    column: str | None = None  # null for the dataset's `cluster_column`

    def check(self, dataset: DatasetSpec) -> None:
        name = self._name(dataset)
        for row in Source(dataset):
            if row.unusable is None:
                self._value(row, name)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        name = self._name(source.spec)
        codes: dict[Any, int] = {}  # values numbered by their first occurrence
        code_N = np.fromiter((self._code(row, name, codes) for row in source), np.int32)
        values = sorted(codes, key=lambda value: (type(value).__name__, value))
        cluster_of_code = np.empty(len(values), np.int32)
        cluster_of_code[[codes[value] for value in values]] = np.arange(len(values))
        return _clusters_of_rows(cluster_of_code, code_N)

    def _code(self, row: Row, name: str, codes: dict[Any, int]) -> int:
        """Return the code of a row's value, -1 for an unusable row; add new values to `codes`."""
        return -1 if row.unusable is not None else codes.setdefault(self._value(row, name), len(codes))

    def _value(self, row: Row, name: str) -> Any:
        if name not in row.raw:
            problem = f"row {row.index} has only {', '.join(map(str, row.raw))}"
            raise UserError("cluster.column", name, problem, "name a column of every row")
        value = row.raw[name]
        if isinstance(value, list | dict):
            problem = f"row {row.index} holds a {type(value).__name__}"
            raise UserError("cluster.column", name, problem, "name a column of single values")
        return None if isinstance(value, float) and math.isnan(value) else value

    def _name(self, dataset: DatasetSpec) -> str:
        name = self.column if self.column is not None else dataset.cluster_column
        if name is None:
            problem = f"dataset {dataset.name} has no cluster_column"
            raise UserError("cluster", "column", problem, "set cluster.column=NAME")
        return str(name)  # may look like a number


@dataclass(frozen=True)
class KMeans:
    """k-means on sentence embeddings (Mekala, Nguyen, Shang 2024: all-MiniLM-L6-v2, seed 42).

    The result depends on the rows, the embedder and the seed, but not on the order of the rows. Repeated contents count
    repeatedly. Uses one k-means++ initialization (scikit-learn's default), and mini-batch k-means above 200,000
    different contents.
    """

    n_clusters: int | None = None  # null for one per 50 rows (`clusters_for`); at most the number of contents
    embedder: str = "sentence-transformers/all-MiniLM-L6-v2"  # a sentence-transformers folder or Hub id

    def __post_init__(self) -> None:
        if self.n_clusters is not None:
            check_int("cluster.n_clusters", self.n_clusters, 1, hint="set it to null for one per 50 rows")

    def check(self, dataset: DatasetSpec) -> None:
        check_embedder(self.embedder)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        ids_U, index_N = source.contents
        k = min(self.n_clusters or clusters_for(len(index_N)), len(ids_U))
        key = {
            "rows": fingerprint(ids_U.take(pa.array(np.sort(index_N[index_N >= 0])))),
            "embeddings": embeddings_entry(self.embedder, cache_dir).key,
            "clusters": k,
            "seed": seed,
        }
        entry = Entry.of(cache_dir, "clusters", key, label=f"kmeans-{k}")
        file = entry.folder / FILE
        with entry.locked():
            if entry.find():
                log.info("Clusters: %s, reused from %s", f"{k:,}", file)
                return _clusters_of_rows(np.load(file, allow_pickle=False), index_N)
            vectors_UD = embed(source, self.embedder, cache_dir)
            log.info("Clusters: k-means of %s rows into %s", f"{len(index_N):,}", f"{k:,}")
            cluster_U = k_means(vectors_UD, np.bincount(index_N[index_N >= 0]), k, seed)
            write_atomically(file, lambda opened: np.save(opened, cluster_U, allow_pickle=False))
            entry.commit([FILE])
        return _clusters_of_rows(cluster_U, index_N)


@dataclass(frozen=True)
class Auto(KMeans):
    """The dataset's `cluster_column` if it is set, else k-means."""

    def check(self, dataset: DatasetSpec) -> None:
        self._choice(dataset).check(dataset)

    def assign(self, source: Source, cache_dir: Path, seed: int) -> NDArray[np.int32]:
        return self._choice(source.spec).assign(source, cache_dir, seed)

    def _choice(self, dataset: DatasetSpec) -> "Column | KMeans":
        return KMeans(self.n_clusters, self.embedder) if dataset.cluster_column is None else Column()


def _clusters_of_rows(cluster_U: NDArray[np.int32], index_N: NDArray[np.int32]) -> NDArray[np.int32]:
    """Look up the cluster of every row's content, int32 (N,); an index of -1, an unusable row, stays -1."""
    return np.where(index_N >= 0, cluster_U[index_N], -1).astype(np.int32)


def clusters_for(rows: int) -> int:
    """One cluster per 50 rows, to one significant digit: 1,000 for 52,002 rows and 300 for 15,011, as in the paper."""
    return max(int(float(f"{rows / ROWS_PER_CLUSTER:.0e}")), 1)
