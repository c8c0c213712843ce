"""The whole pipeline on embedded data: score, select, train, evaluate; one table (`make demo`).

The rows are redundant: most repeat three easy tasks. A ranking that finds the others beats random rows, its
inverse loses. The table shows the results whichever way they come out, and demo.json has its numbers.
"""

import logging
import time
from datetime import datetime
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
    "lp_app_nll, known rows dropped": ["selection=lp_app_nll", "selection.known=drop"],
    "lp_app_nll, easy third": ["selection=lp_app_nll", "selection.bucket=high"],
    "lp_app_nll, inverted": ["selection=combine", "selection.combine={lp_app_nll: -1}"],
}
UNTRAINED = "tiny-target"
COMMON = ["dataset=embedded-redundant", "trainer=cpu", "tracker=csv"]
MEASURES = ("nll", "exact_match")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    started = time.monotonic()
    folder = Path("runs") / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    trained = []
    for number, (name, overrides) in enumerate(RUNS.items(), 1):
        print(f"\n[{number}/{len(RUNS) + 1}] {name}", flush=True)
        trained.append(run("train", [*overrides, f"pct={PCT}", f"seed={SEED}", *COMMON], folder / f"train-{number}"))
    print(f"\n[{len(RUNS) + 1}/{len(RUNS) + 1}] evaluation on held-out rows", flush=True)
    models = ",".join(str(Path(result["model"]).parent) for result in trained)
    held_out = [f"models=[{UNTRAINED},{models}]", "dataset.split=held_out"]
    evaluation = run("evaluate", [*held_out, *COMMON], folder / "evaluate")

    results = zip(("untrained", *RUNS), (None, *trained), evaluation["models"], strict=True)
    records = [record(name, result, measured) for name, result, measured in results]
    write_json(folder / "demo.json", {"pct": PCT, "held_out_rows": evaluation["n"], "records": records})
    console = Console(width=None if Console().is_terminal else 140)
    console.print(comparison(records, evaluation["n"]))
    page = report([str(folder)], folder / "report")
    print(f"{conclusion(records)}\nTotal: {(time.monotonic() - started) / 60:.1f} minutes.\n{page}")


def record(name: str, result: dict[str, Any] | None, measured: dict[str, Any]) -> dict[str, Any]:
    """One model: what it was trained on, its results with 95% bootstrap intervals over rows, and its cost."""
    training, scoring = (result or {}).get("training"), (result or {}).get("scoring")
    return {
        "name": name,
        "seed": SEED if result else None,
        "rows": training["rows"] if training else 0,
        **{key: {end: measured["metrics"][key][end] for end in ("value", "low", "high")} for key in MEASURES},
        "training_tokens": training["tokens"] if training else 0,
        "training_seconds": training["seconds"] if training else 0,
        "selection_tokens": scoring["tokens"] if scoring else 0,
        "selection_seconds": scoring["seconds"] if scoring else 0,
    }


def comparison(records: list[dict[str, Any]], held_out_rows: int) -> Table:
    """Held-out quality and cost of every model."""
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
    """One line: the selections whose NLL interval lies below that of random rows, and above it."""
    nll = {each["name"]: each["nll"] for each in records}
    random, subsets = nll[RANDOM], [name for name in RUNS if name.startswith("lp")]
    better = "; ".join(name for name in subsets if nll[name]["high"] < random["low"])
    worse = "; ".join(name for name in subsets if nll[name]["low"] > random["high"])
    return f"Lower NLL than random rows (intervals apart): {better or 'none'}. Higher: {worse or 'none'}."


if __name__ == "__main__":
    main()
