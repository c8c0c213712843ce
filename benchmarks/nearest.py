"""Measure time and memory of selection=rds on synthetic vectors, compared with sorting all similarities per example.

    python benchmarks/nearest.py                            # 200,000 rows
    python benchmarks/nearest.py --rows 10000000 --alone

Rows and examples are points around common centers. Sorting ranks all rows for every example with NumPy, 10 examples at
a time, and keeps as many of each as its turns need if examples never want the same row; it picks nothing.
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

CENTERS, PCT, AT_ONCE = 50, 10, 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--examples", type=int, default=1_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help="without the comparison")
    asked = parser.parse_args(argv)
    table = made_up(asked.rows, asked.examples, asked.dimensions)
    spec = selection(name="rds", rule=rds, clusters="none", embedder="made up")
    started, computed = time.perf_counter(), time.process_time()
    chosen = select(table, spec, PCT, seed=42)
    ours, computed = time.perf_counter() - started, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{asked.rows:,} rows x {asked.dimensions}, {asked.examples:,} examples: ", end="")
    print(f"rds selects {chosen.n_selected:,} in {ours:.1f} s, {computed:.1f} s of CPU, {peak / 2**30:.2f} GiB at most")
    if not asked.alone:
        theirs = sorting(table, chosen.n_selected)
        print(f"sorting all similarities {theirs:.1f} s; rds takes {ours / theirs:.2f} times as long")


def made_up(rows: int, examples: int, dimensions: int) -> ScoreTable:
    rng = np.random.default_rng(0)
    center_CD = rng.normal(size=(CENTERS, dimensions)).astype(np.float32)

    def around(n: int) -> np.ndarray:
        vectors_ND = rng.standard_normal((n, dimensions), np.float32)
        for start in range(0, n, 100_000):
            part = vectors_ND[start : start + 100_000]
            part += center_CD[rng.integers(CENTERS, size=len(part))]
        return vectors_ND

    tokens, ids = np.full(rows, 20, np.int32), id_array([rng.bytes(16 * rows)])
    nll, cut = np.empty((0, rows)), np.zeros(rows, np.bool_)
    vectors, query = around(rows), around(examples)
    return ScoreTable(np.arange(rows), ids, tokens, tokens, cut, nll, vectors=vectors, query_vectors=query)


def sorting(table: ScoreTable, n: int) -> float:
    """Time sorting all rows by similarity for every example, in seconds."""
    assert table.vectors is not None
    assert table.query_vectors is not None
    started = time.perf_counter()
    unit_ND, unit_QD = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (table.vectors, table.query_vectors))
    turns = -(-n // len(unit_QD))
    nearest = [
        np.argsort(-(unit_QD[q : q + AT_ONCE] @ unit_ND.T), axis=1)[:, :turns] for q in range(0, len(unit_QD), AT_ONCE)
    ]
    assert sum(map(len, nearest)) == len(unit_QD)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
