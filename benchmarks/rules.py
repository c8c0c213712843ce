"""Measure time and memory of selection=rds or s2l on synthetic rows, compared with a simpler computation.

    python benchmarks/rules.py rds                              # 200,000 rows
    python benchmarks/rules.py s2l                              # 1,000,000 rows
    python benchmarks/rules.py s2l --rows 10000000 --alone

rds: rows and examples are points around common centers. The alternative sorts all rows for every example with NumPy, 10
examples at a time, and keeps as many of each as its turns need if examples never want the same row; it picks nothing.

s2l: clusters 200,000 trajectories of four recorded losses and assigns the others to these clusters. The alternative,
scikit-learn's MiniBatchKMeans with the settings of cluster=kmeans, visits all of them; it selects nothing.
"""

import argparse
import resource
import sys
import time

import numpy as np

from lpsel.data.content_ids import id_array
from lpsel.scoring.table import ScoreTable
from lpsel.selection.nearest import rds
from lpsel.selection.select import select
from lpsel.selection.spec import selection
from lpsel.selection.trajectories import s2l

PCT = 10
CENTERS, AT_ONCE = 50, 10
EPOCHS, CLUSTERS = 3, 100


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rule", choices=("rds", "s2l"))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--examples", type=int, default=1_000, help="for rds")
    parser.add_argument("--dimensions", type=int, default=64, help="for rds")
    parser.add_argument("--alone", action="store_true", help="without the comparison")
    options = parser.parse_args(argv)
    if options.rule == "rds":
        table = with_vectors(options.rows or 200_000, options.examples, options.dimensions)
        spec = selection(name="rds", rule=rds, clusters="none", embedder="synthetic")
        alternative, name = sort_similarities, "sorting all similarities"
    else:
        table = with_losses(options.rows or 1_000_000)
        spec = selection(name="s2l", rule=s2l, epochs=EPOCHS, clusters="none", trajectory_clusters=CLUSTERS)
        alternative, name = cluster_in_mini_batches, "MiniBatchKMeans of all trajectories"
    started, cpu = time.perf_counter(), time.process_time()
    n = select(table, spec, PCT, seed=42).n_selected
    ours, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{len(table):,} rows: {spec.name} selects {n:,} in {ours:.1f} s, {cpu:.1f} s of CPU, ", end="")
    print(f"{peak / 2**30:.2f} GiB at most")
    if not options.alone:
        started = time.perf_counter()
        alternative(table, n)
        theirs = time.perf_counter() - started
        print(f"{name} takes {theirs:.1f} s; {spec.name} takes {ours / theirs:.2f} times as long")


def with_vectors(rows: int, examples: int, dimensions: int) -> ScoreTable:
    rng = np.random.default_rng(0)
    center_CD = rng.normal(size=(CENTERS, dimensions)).astype(np.float32)

    def around_centers(n: int) -> np.ndarray:
        vectors_ND = rng.standard_normal((n, dimensions), np.float32)
        for start in range(0, n, 100_000):
            part = vectors_ND[start : start + 100_000]
            part += center_CD[rng.integers(CENTERS, size=len(part))]
        return vectors_ND

    vectors = {"vectors": around_centers(rows), "query_vectors": around_centers(examples)}
    return _table(np.empty((0, rows)), rng, **vectors)


def with_losses(rows: int) -> ScoreTable:
    """Create losses that fall by up to 50% or rise by up to 5% in every epoch."""
    rng = np.random.default_rng(0)
    nll = [np.abs(rng.normal(2, 0.5, rows))]
    for _ in range(EPOCHS):
        nll.append(nll[-1] * rng.uniform(0.5, 1.05, rows))
    return _table(np.array(nll), rng)


def _table(nll_EN: np.ndarray, rng: np.random.Generator, **vectors: np.ndarray) -> ScoreTable:
    rows = nll_EN.shape[1]
    tokens, ids = np.full(rows, 20, np.int32), id_array([rng.bytes(16 * rows)])
    return ScoreTable(np.arange(rows), ids, tokens, tokens, np.zeros(rows, np.bool_), nll_EN, **vectors)


def sort_similarities(table: ScoreTable, n: int) -> None:
    assert table.vectors is not None
    assert table.query_vectors is not None
    unit_ND, unit_QD = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (table.vectors, table.query_vectors))
    turns = -(-n // len(unit_QD))
    nearest = [
        np.argsort(-(unit_QD[q : q + AT_ONCE] @ unit_ND.T), axis=1)[:, :turns] for q in range(0, len(unit_QD), AT_ONCE)
    ]
    assert sum(map(len, nearest)) == len(unit_QD)


def cluster_in_mini_batches(table: ScoreTable, n: int) -> None:
    from sklearn.cluster import MiniBatchKMeans

    vectors = table.nll.T.astype(np.float32)
    MiniBatchKMeans(n_clusters=CLUSTERS, n_init=1, random_state=42, batch_size=1024).fit(vectors)


if __name__ == "__main__":
    main()
