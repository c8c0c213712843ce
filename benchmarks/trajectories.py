"""Measure time and memory of selection=s2l on synthetic loss trajectories, compared with mini-batch k-means of all.

    python benchmarks/trajectories.py                       # 1,000,000 rows
    python benchmarks/trajectories.py --rows 10000000 --alone

s2l clusters 200,000 trajectories of four recorded losses and assigns the others to these clusters. scikit-learn's
MiniBatchKMeans, with the settings of cluster=kmeans, visits all of them; it selects nothing.
"""

import argparse
import resource
import sys
import time

import numpy as np

from lpsel.data.content_ids import id_array
from lpsel.scoring.table import ScoreTable
from lpsel.selection.select import select
from lpsel.selection.spec import selection
from lpsel.selection.trajectories import s2l

EPOCHS, CLUSTERS, PCT = 3, 100, 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--alone", action="store_true", help="without the comparison")
    asked = parser.parse_args(argv)
    table = made_up(asked.rows)
    spec = selection(name="s2l", rule=s2l, epochs=EPOCHS, clusters="none", trajectory_clusters=CLUSTERS)
    started, computed = time.perf_counter(), time.process_time()
    chosen = select(table, spec, PCT, seed=42)
    ours, computed = time.perf_counter() - started, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{asked.rows:,} rows: s2l selects {chosen.n_selected:,} in {ours:.1f} s, ", end="")
    print(f"{computed:.1f} s of CPU, {peak / 2**30:.2f} GiB at most")
    if not asked.alone:
        theirs = mini_batches(table.nll.T.astype(np.float32))
        print(f"MiniBatchKMeans of all trajectories {theirs:.1f} s; s2l takes {ours / theirs:.2f} times as long")


def made_up(rows: int) -> ScoreTable:
    """Create losses that fall by up to 50% or rise by up to 5% in every epoch."""
    rng = np.random.default_rng(0)
    nll = [np.abs(rng.normal(2, 0.5, rows))]
    for _ in range(EPOCHS):
        nll.append(nll[-1] * rng.uniform(0.5, 1.05, rows))
    tokens, ids = np.full(rows, 20, np.int32), id_array([rng.bytes(16 * rows)])
    return ScoreTable(np.arange(rows), ids, tokens, tokens, np.zeros(rows, np.bool_), np.array(nll))


def mini_batches(vectors: np.ndarray) -> float:
    """Time mini-batch k-means of vectors (rows, epochs), in seconds."""
    from sklearn.cluster import MiniBatchKMeans

    started = time.perf_counter()
    MiniBatchKMeans(n_clusters=CLUSTERS, n_init=1, random_state=42, batch_size=1024).fit(vectors)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
