"""Time whole commands as run from a shell: select.py on 52,002 rows, train.py --help (part of `make bench`).

    python benchmarks/commands.py

`select.py scores=FILE` takes a Parquet table of perplexities with 1,000 clusters and a data set of 52,002 made-up rows,
and is compared with a pandas script that reads the same two files, ranks within clusters and writes the subset.
`train.py --help` is compared with `import torch` alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import HERE, arguments, in_words, interleave, ratios, show, spread, write
from material import ALPACA_ROWS, alpaca_lengths

ROOT = HERE.parent
CHARACTERS_A_TOKEN = 4
PANDAS = """
import sys
import pandas
rows = pandas.read_json(sys.argv[1], lines=True)
scores = pandas.read_parquet(sys.argv[2])
score = (scores.ppl_0 - scores.ppl_1) / scores.ppl_0
ranked = scores.assign(score=score).sort_values("score").groupby("cluster", group_keys=False)
chosen = ranked.apply(lambda cluster: cluster.head(round(len(cluster) / 10))).index.sort_values()
rows.loc[chosen].to_json(sys.argv[3], orient="records", lines=True, force_ascii=False)
"""


def main(argv: list[str] | None = None) -> Path:
    options = arguments(__doc__).parse_args(argv)
    rows, clusters = (200, 5) if options.tiny else (ALPACA_ROWS, 1_000)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, scores = _data(work, rows), _scores(work, rows, clusters)
        select = ["select.py", f"dataset.path={data}", f"scores={scores}", "tracker=none", f"hydra.run.dir={work}/run"]
        pairs = {
            f"select.py on {rows:,} rows, {clusters:,} clusters": (
                select,
                "the same in pandas",
                ["-c", PANDAS, str(data), str(scores), f"{work}/subset.jsonl"],
            ),
            "train.py --help": (["train.py", "--help"], "import torch", ["-c", "import torch"]),
        }
        figures, table = [], []
        for name, (command, other_name, other) in pairs.items():
            measured = interleave(
                {name: partial(_seconds, command, work), other_name: partial(_seconds, other, work)},
                options.rounds,
            )
            ratio = ratios(measured[name], measured[other_name])
            figures.append({"command": name, "alternative": other_name, "ratio": ratio, "seconds": measured})
            medians = [f"{spread(measured[which])['median']:.2f}" for which in (name, other_name)]
            table.append([name, medians[0], f"{other_name}: {medians[1]}", in_words(ratio)])
    show("Commands, median seconds", ["", "s", "alternative, s", "command/alternative"], table)
    return write(options.out, "commands", options, "cpu", {"comparisons": figures})


def _seconds(command: list[str], work: Path) -> float:
    environment = {**os.environ, "LPSEL_CACHE": str(work / "cache")}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return seconds


def _data(work: Path, rows: int) -> Path:
    """Write unique synthetic instructions and answers with Alpaca's lengths."""
    prompt, response = alpaca_lengths(rows)
    shortest = int(prompt.min())
    path = work / "rows.jsonl"
    with path.open("w") as file:
        for number, (asked, said) in enumerate(zip(prompt.tolist(), response.tolist(), strict=True)):
            words = f"row {number} says " * (CHARACTERS_A_TOKEN * (asked + said) // 14 + 1)
            cut = CHARACTERS_A_TOKEN * (asked - shortest) + 16
            row = {"instruction": words[:cut], "input": "", "output": words[: CHARACTERS_A_TOKEN * said]}
            file.write(json.dumps(row) + "\n")
    return path


def _scores(work: Path, rows: int, clusters: int) -> Path:
    draw = np.random.default_rng(0)
    before = np.exp(draw.normal(2.0, 0.5, rows))
    columns = {
        "ppl_0": 1 + before,
        "ppl_1": 1 + before * draw.uniform(0.3, 1.0, rows),
        "cluster": draw.integers(clusters, size=rows).astype(np.int32),
    }
    path = work / "scores.parquet"
    pq.write_table(pa.table(columns), path)
    return path


if __name__ == "__main__":
    main()
