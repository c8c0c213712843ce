"""Time the whole command `lpsel select scores=FILE` on many rows, compared with the same selection in pandas.

    python benchmarks/selection.py                          # 10,000,000 rows in 200,000 clusters
    python benchmarks/selection.py --rows 52002 --clusters 1000

Data set and scores are made up: Parquet, an instruction and an answer of some thirty characters each, LP_app from two
recorded losses. The command reads both, makes content ids, chooses 10% exactly, and writes selection.parquet and
subset.parquet. pandas does less: it reads scores alone, sorts them by cluster and score, and takes the same number of
every cluster with groupby; it has neither ids nor a subset to write. Both chosen sets must be the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS_AT_ONCE = 1_000_000
PCT = 10
PANDAS = """
import sys
import numpy as np, pandas as pd
scores, shares, out = sys.argv[1:]
table = pd.read_parquet(scores)
p0, p1 = np.exp(table["nll_0"]), np.exp(table["nll_1"])
table["score"] = (p0 - p1) / p0
place = table.sort_values(["cluster", "score"], kind="stable").groupby("cluster").cumcount()
take = pd.Series(np.load(shares))
np.save(out, np.sort(place.index[place.to_numpy() < take.loc[table["cluster"].loc[place.index]].to_numpy()]))
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=200_000)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.rows, asked.clusters)
        print(f"{asked.rows:,} rows, {asked.clusters:,} clusters, {PCT}%, exact budget; {os.cpu_count()} cores")
        command = [
            sys.executable, "-m", "lpsel", "select", f"dataset.path={folder}/rows.parquet", "selection=lp_app",
            f"scores={folder}/scores.parquet", f"pct={PCT}", "tracker=none", f"hydra.run.dir={folder}/run",
            f"cache_dir={folder}/cache",
        ]  # fmt: skip
        ours, spent, memory = measured(command)
        print(f"lpsel select        {ours:7.1f} s  {spent:7.1f} s of CPU  {memory / 2**30:5.2f} GiB at most")

        table = pq.read_table(folder / "run" / "selection.parquet", columns=["cluster", "selected"])
        cluster, selected = (table[column].to_numpy() for column in ("cluster", "selected"))
        np.save(folder / "shares.npy", np.bincount(cluster[selected], minlength=asked.clusters))
        theirs, spent, memory = measured(
            [sys.executable, "-c", PANDAS, *(str(folder / n) for n in ("scores.parquet", "shares.npy", "pandas.npy"))]
        )
        print(f"pandas, choice only {theirs:7.1f} s  {spent:7.1f} s of CPU  {memory / 2**30:5.2f} GiB at most")
        assert (np.load(folder / "pandas.npy") == np.flatnonzero(selected)).all(), "other rows than pandas chooses"
        chosen = json.loads((folder / "run" / "result.json").read_text())["n_selected"]
        print(f"the same {chosen:,} rows; lpsel takes {ours / theirs:.2f} times as long")


def make(folder: Path, rows: int, clusters: int) -> None:
    rng = np.random.default_rng(0)
    schema = pa.schema([("instruction", pa.string()), ("output", pa.string())])
    with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            number = pa.array(np.arange(start, min(start + ROWS_AT_ONCE, rows))).cast(pa.string())
            texts = (f"{text} " for text in ("What is the name of number", "It is known by the name of"))
            columns = [pc.binary_join_element_wise(text, number, "") for text in texts]
            writer.write_table(pa.table(columns, schema=schema))
    before = np.abs(rng.normal(2, 0.5, rows))
    after = before * rng.uniform(0.5, 1.05, rows)
    cluster = rng.integers(0, clusters, rows).astype(np.int32)
    pq.write_table(pa.table({"nll_0": before, "nll_1": after, "cluster": cluster}), folder / "scores.parquet")


def measured(command: list[str]) -> tuple[float, float, int]:
    """Run a command; return seconds, CPU seconds of all its processes, and the peak resident bytes of one process."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"{' '.join(command[:4])} failed:\n{said}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
