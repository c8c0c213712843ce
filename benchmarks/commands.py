"""Time whole commands as run from a shell: select.py scores=FILE and train.py --help (part of `make bench`).

    python benchmarks/commands.py                                      # 52,002 rows in 1,000 clusters
    python benchmarks/commands.py --rows 10000000 --clusters 200000

Dataset and scores are synthetic Parquet files: an instruction and an answer of about thirty characters per row, and two
recorded losses. select.py reads both, computes content ids, selects 10% by LP_app with an exact budget, and writes
selection.parquet and subset.parquet. pandas does less: it reads only the scores, sorts them by cluster and score, and
takes the same number of rows from every cluster; it has no ids and writes no subset. Both must select the same rows.
`train.py --help` is compared with `import torch` alone.
"""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from harness import arguments, in_words, interleave, ratios, run_command, show, spread, write
from material import ALPACA_ROWS

ROWS_AT_ONCE = 1_000_000
PCT = 10
PANDAS = """
import sys
import numpy as np, pandas as pd
scores, shares, out = sys.argv[1:]
table = pd.read_parquet(scores)
p0, p1 = np.exp(table["nll_0"]), np.exp(table["nll_1"])
table["score"] = (p0 - p1) / p0
rank = table.sort_values(["cluster", "score"], kind="stable").groupby("cluster").cumcount()
take = pd.Series(np.load(shares))
np.save(out, np.sort(rank.index[rank.to_numpy() < take.loc[table["cluster"].loc[rank.index]].to_numpy()]))
"""


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=ALPACA_ROWS)
    parser.add_argument("--clusters", type=int, default=1_000)
    options = parser.parse_args(argv)
    rows, clusters = (200, 5) if options.tiny else (options.rows, options.clusters)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_files(work, rows, clusters)
        select = f"select.py on {rows:,} rows, {clusters:,} clusters"
        pairs = [
            {select: partial(select_by_lpsel, work), "selection in pandas": partial(select_by_pandas, work)},
            {
                "train.py --help": partial(run_command, ["train.py", "--help"]),
                "import torch": partial(run_command, ["-c", "import torch"]),
            },
        ]
        comparisons, table = [], []
        for pair in pairs:
            runs = interleave(pair, options.rounds)
            ratio = ratios(*([run["seconds"] for run in of_side] for of_side in runs.values()))
            command, alternative = pair
            comparisons.append({"command": command, "alternative": alternative, "ratio": ratio, "runs": runs})
            for name, of_side in runs.items():
                seconds, cpu, peak = (spread([run[what] for run in of_side])["median"] for what in of_side[0])
                cells = [name, f"{seconds:.2f}", f"{cpu:.2f}", f"{peak / 2**30:.2f}"]
                table.append([*cells, in_words(ratio) if name == command else ""])
    show("Commands, medians", ["", "s", "CPU seconds", "peak GiB", "command/alternative, s"], table)
    return write(options.out, "commands", options, "cpu", {"comparisons": comparisons})


def select_by_lpsel(work: Path) -> dict[str, float]:
    """Run select.py, and save the number of rows that it selects from every cluster."""
    for folder in ("run", "cache"):
        shutil.rmtree(work / folder, ignore_errors=True)
    settings = [f"dataset.path={work}/rows.parquet", f"scores={work}/scores.parquet", "selection=lp_app", f"pct={PCT}"]
    folders = [f"hydra.run.dir={work}/run", f"cache_dir={work}/cache"]
    measured = run_command(["select.py", *settings, *folders, "tracker=none"])
    table = pq.read_table(work / "run" / "selection.parquet", columns=["cluster", "selected"])
    cluster, selected = (column.to_numpy() for column in table.columns)
    np.save(work / "shares.npy", np.bincount(cluster[selected], minlength=cluster.max() + 1))
    np.save(work / "selected.npy", np.flatnonzero(selected))
    return measured


def select_by_pandas(work: Path) -> dict[str, float]:
    """Select in pandas, and check that lpsel selected the same rows before."""
    files = (str(work / name) for name in ("scores.parquet", "shares.npy", "pandas.npy"))
    measured = run_command(["-c", PANDAS, *files])
    if not np.array_equal(np.load(work / "pandas.npy"), np.load(work / "selected.npy")):
        raise SystemExit("select.py and pandas select different rows; nothing compared")
    return measured


def write_files(folder: Path, rows: int, clusters: int) -> None:
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


if __name__ == "__main__":
    main()
