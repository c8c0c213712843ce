"""Run the whole pipeline on embedded data: score, select, train, evaluate, and print one table (`make demo`).

The embedded rows are redundant: most belong to three easy tasks. A ranking that finds the other rows beats random
rows, and its inverse loses. The table shows all results, good or bad; demo.json contains the numbers.
"""

import argparse
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lpsel.cli import quiet_libraries
from lpsel.commands.job import run
from lpsel.commands.report import report
from lpsel.storage import write_json

PCT = 20
SEED = 1
RANDOM = "random"
# Name in the table -> overrides of `lpsel train`.
RUNS = {
    "all rows": ["selection=full"],
    RANDOM: ["selection=random"],
    "lp_app": ["selection=lp_app"],
    "lp_app_nll": ["selection=lp_app_nll"],
    "lp_app_nll without known rows": ["selection=lp_app_nll", "selection.known=drop"],
    "easy third of lp_app_nll": ["selection=lp_app_nll", "selection.bucket=high"],
    "inverted lp_app_nll": ["selection=combine", "selection.combine={lp_app_nll: -1}"],
}
UNTRAINED = "untrained"
SELECTING = [f"pct={PCT}", f"seed={SEED}"]
TARGET = ["model.recipe.epochs=4"]
COMMON = ["dataset.synthetic.rows=6000", "trainer=cpu", "tracker=csv"]
MEASURES = {"nll": "NLL", "exact_match": "Exact match"}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    started = time.monotonic()
    folder = Path("runs") / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for each process
    trained = {}
    with ProcessPoolExecutor(2, get_context("spawn"), quiet_libraries) as cores:
        # Compute the scores for all rules while the first target is trained
        cores.submit(run, "select", ["selection=lp_app", *SELECTING, *COMMON], folder / "select")
        training = {
            name: cores.submit(run, "train", [*overrides, *SELECTING, *TARGET, *COMMON], folder / f"train-{number}")
            for number, (name, overrides) in enumerate(RUNS.items(), 1)
        }
        for number, (name, job) in enumerate(training.items(), 1):
            trained[name] = job.result()
            print(f"[{number}/{len(RUNS) + 1}] trained on {name}", flush=True)
    print(f"[{len(RUNS) + 1}/{len(RUNS) + 1}] evaluation on held-out rows", flush=True)
    paths = {name: str(Path(result["model"]).parent) for name, result in trained.items()}
    paths = {RANDOM: paths[RANDOM], UNTRAINED: "tiny-target", **paths}  # the first is the baseline
    evaluating = [f"models=[{','.join(paths.values())}]", "evaluator.max_new_tokens=32"]
    evaluation = run("evaluate", [*evaluating, *COMMON], folder / "evaluate")

    measured = dict(zip(paths, evaluation["models"], strict=True))
    records = [record(name, trained.get(name), measured[name]) for name in (UNTRAINED, *RUNS)]
    write_json(folder / "demo.json", {"pct": PCT, "held_out_rows": evaluation["n"], "records": records})
    console = Console(width=None if Console().is_terminal else 140)
    console.print(comparison(records, evaluation["n"]))
    page = report([str(folder)], folder / "report")
    print(f"{conclusion(records)}\nTotal: {(time.monotonic() - started) / 60:.1f} minutes.\n{page}")


def record(name: str, result: dict[str, Any] | None, measured: dict[str, Any]) -> dict[str, Any]:
    """Describe one model: its training data, results with 95% bootstrap intervals over rows, and cost."""
    training, scoring = (result or {}).get("training"), (result or {}).get("scoring")
    return {
        "name": name,
        "seed": SEED if result else None,
        "rows": training["rows"] if training else 0,
        **{key: interval(measured["metrics"][key]) for key in MEASURES},
        "minus_random": {key: interval(measured["difference"][key]) for key in MEASURES if measured["difference"]},
        "training_tokens": training["tokens"] if training else 0,
        "training_seconds": training["seconds"] if training else 0,
        "selection_tokens": scoring["tokens"] if scoring else 0,
        "selection_seconds": scoring["seconds"] if scoring else 0,
    }


def interval(estimate: dict[str, Any]) -> dict[str, float]:
    return {end: estimate[end] for end in ("value", "low", "high")}


def comparison(records: list[dict[str, Any]], held_out_rows: int) -> Table:
    """Create the table of held-out quality and cost for all models."""
    table = Table(title="The same target, trained on all rows and on subsets of one size", title_justify="left")
    table.add_column("trained on")
    for heading in ("rows", "exact match %", "NLL", "selection tokens", "and s", "training tokens", "and s"):
        table.add_column(heading, justify="right")
    for each in records:
        match, nll = each["exact_match"], each["nll"]
        table.add_row(
            each["name"],
            f"{each['rows']:,}",
            f"{100 * match['value']:.1f} [{100 * match['low']:.1f}, {100 * match['high']:.1f}]",
            f"{nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]",
            f"{each['selection_tokens']:,}",
            f"{each['selection_seconds']:.1f}",
            f"{each['training_tokens']:,}",
            f"{each['training_seconds']:.1f}",
        )
    table.caption = f"{held_out_rows} held-out rows of all tasks alike, 95% bootstrap intervals over rows."
    return table


def conclusion(records: list[dict[str, Any]]) -> str:
    """Summarize in one line which selections beat or lose to random rows, by their paired intervals."""
    subsets = [each for each in records if each["rows"] and each["name"] != RANDOM]
    parts = []
    for key, title in MEASURES.items():
        lower = ", ".join(each["name"] for each in subsets if each["minus_random"][key]["high"] < 0) or "none"
        higher = ", ".join(each["name"] for each in subsets if each["minus_random"][key]["low"] > 0) or "none"
        better, worse = (lower, higher) if key == "nll" else (higher, lower)
        parts.append(f"{title}: better than random rows: {better}; worse: {worse}.")
    return " ".join(parts)


if __name__ == "__main__":
    main()
