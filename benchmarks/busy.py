"""Measure scoring speed next to busy processes: how much of its fair share of the CPU does lpsel use?

    python benchmarks/busy.py --busy 1

With fair scheduling, a run with T threads on C cores next to B busy processes gets C / (T + B) cores per thread. The
table compares tokens per second with the same run alone, and this ratio with the fair one. Contestants: lpsel with its
defaults (fewer threads while cores are busy), a fixed number of threads that spin while they wait (libgomp's default)
or sleep, and one thread. Rates are for the scorer's training and recording passes, after the model is loaded.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from harness import HERE, Run, arguments, in_words, interleave, ratios, run_command, show, spread, write
from material import add_options, from_options
from whole_run import parameters

from lpsel.model.threads import SMALL_MODEL

LPSEL, SPINNING, SLEEPING, ONE_THREAD = "lpsel", "spinning threads", "sleeping threads", "one thread"
SET_BY_USERS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def main(argv: list[str] | None = None) -> Path:
    parser = arguments(__doc__)
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    add_options(parser, rows=60)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows, data, model = from_options(options, Path(folder))
        threads = 1 if parameters(model) < SMALL_MODEL else torch.get_num_threads()
        environments = {
            LPSEL: {},
            SPINNING: {"OMP_NUM_THREADS": str(threads)},
            SLEEPING: {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
            ONE_THREAD: {"OMP_NUM_THREADS": "1"},
        }
        sides = {}
        for name, environment in environments.items():
            sides[f"{name}, alone"] = partial(score, model, rows, environment, busy=0)
            sides[f"{name}, next to others"] = partial(score, model, rows, environment, busy=options.busy)
        runs = interleave(sides, options.rounds)
    table, shares = [], {}
    for name in environments:
        used = 1 if name == ONE_THREAD else threads
        fair = fair_share(used, options.busy, os.cpu_count() or 1)
        alone, next_to = ([run.rate for run in runs[f"{name}, {where}"]] for where in ("alone", "next to others"))
        share = ratios(next_to, alone)
        shares[name] = {"threads": used, "fair": fair, "share": share}
        medians = (f"{spread(rates)['median']:.0f}" for rates in (alone, next_to))
        table.append([name, str(used), *medians, in_words(share), f"{fair:.2f}", f"{share['median'] / fair:.0%}"])
    title = f"lpsel select, rows of {data}, {model.name}, alone and next to {options.busy} busy processes: medians"
    heads = ["", "threads", "tokens/s alone", "next to others", "ratio", "fair", "of the fair share"]
    show(title, heads, table)
    figures = {"data": data, "model": model.name, "runs": runs, "shares": shares}
    return write(options.out, "busy", options, "cpu", figures)


def fair_share(threads: int, busy: int, cores: int) -> float:
    """Compute the fair CPU time of each of `threads` next to `busy` others, as a fraction of that without them."""
    return min(1, cores / (threads + busy)) / min(1, cores / threads)


def score(model: Path, rows: Path, environment: dict[str, str], busy: int) -> Run:
    unset = {name: value for name, value in os.environ.items() if name not in SET_BY_USERS}
    with tempfile.TemporaryDirectory() as folder, busy_processes(busy):
        command = ["select.py", "scorer=smollm2-135m", f"scorer.path={model}", "dataset=alpaca"]
        command += [f"dataset.path={rows}", "cluster=none", "selection=lp_app", "pct=10", "tracker=none"]
        command += [f"hydra.run.dir={folder}/run", f"cache_dir={folder}/cache"]
        run_command(command, unset | {"PYTHONPATH": str(HERE.parent)} | environment)
        cost = json.loads(Path(folder, "run", "result.json").read_text())["scoring"]
    return Run(cost["seconds"], cost["tokens"], nll=torch.empty(0).numpy())


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run single-threaded processes that are always busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
