"""Show the gain of lp_app_nll over random rows by redundancy, size of the pool and percentage: figure and table.

lpsel train experiment=redundancy-tiny
python benchmarks/redundancy_map.py collect FOLDER...   # docs/results/data/redundancy-tiny.json from its folders
python benchmarks/redundancy_map.py draw                # docs/figures/redundancy.svg and the table from this file
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_small import RESULTS, between_marks, markdown

from lpsel.evaluation.statistics import t_interval, with_interval
from lpsel.report.drawing import MUTED, SERIES, legend, new_axes, styled, svg
from lpsel.report.runs import Run, find_runs
from lpsel.run_config import RUN_CONFIG
from lpsel.storage import read_dict, write_atomically

DATA = RESULTS / "data" / "redundancy-tiny.json"
PAGE = RESULTS / "tiny-experiments.md"
FIGURE = RESULTS.parent / "figures" / "redundancy.svg"
RULE = "lp_app_nll"

Setting = tuple[float, int, float]  # redundancy, rows in the pool, percentage


def collect(folders: Sequence[str]) -> dict[str, Any]:
    """Collect one record for each evaluated model."""
    runs = find_runs(folders)
    trained = {Path(run.get("model")).resolve(): run for run in runs.by_command("train")}
    records = []
    for evaluation in runs.by_command("evaluate"):
        for entry in evaluation.models:
            run = trained.get(Path(entry["model"]).resolve())
            if run is not None:
                measured = {name: round(entry["metrics"][name]["value"], 4) for name in ("nll", "exact_match")}
                records.append(_described(run) | measured)
    return {
        "experiment": "redundancy-tiny",
        "records": sorted(records, key=lambda record: [*map(str, record.values())]),
    }


def _described(run: Run) -> dict[str, Any]:
    synthetic = read_dict(run.folder / RUN_CONFIG)["config"]["dataset"]["synthetic"]
    of_run = {"rule": run.rule, "redundancy": synthetic["redundancy"], "rows": synthetic["rows"], "pct": run.pct}
    return of_run | {"seed": run.get("seed")}


def gains(records: Sequence[dict[str, Any]], metric: str) -> dict[Setting, list[float]]:
    """Compute the metric of RULE minus that of random rows, one value for each seed that has both."""
    by_rule: dict[str, dict[tuple[Setting, int], float]] = {"random": {}, RULE: {}}
    for record in records:
        setting = record["redundancy"], record["rows"], record["pct"]
        by_rule[record["rule"]][setting, record["seed"]] = record[metric]
    differences: dict[Setting, list[float]] = {}
    for (setting, seed), value in sorted(by_rule[RULE].items()):
        if (setting, seed) in by_rule["random"]:
            differences.setdefault(setting, []).append(value - by_rule["random"][setting, seed])
    return differences


@styled
def figure(records: Sequence[dict[str, Any]]) -> Any:
    """Plot NLL minus that of random rows over redundancy: a line per pool and percentage, a dot per seed."""
    drawing, axes = new_axes()
    differences = gains(records, "nll")
    lines = sorted({(rows, pct) for _, rows, pct in differences})
    for (rows, pct), color in zip(lines, SERIES, strict=False):
        points = [(100 * s[0], values) for s, values in differences.items() if s[1:] == (rows, pct)]
        label = f"{pct:g}% of {rows:,}"
        axes.plot([x for x, _ in points], [np.mean(values) for _, values in points], color=color, label=label)
        for x, values in points:
            axes.plot([x] * len(values), values, "o", color=color, markersize=3, alpha=0.6)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("redundant rows, %")
    axes.set_ylabel("NLL minus random rows\n(lower is better)")
    legend(axes)
    return drawing


def table(records: Sequence[dict[str, Any]]) -> str:
    """Format the mean differences over seeds with 95% t intervals in Markdown."""
    nll, exact = gains(records, "nll"), gains(records, "exact_match")
    lines = []
    for (redundancy, rows, pct), values in nll.items():
        points = [100 * value for value in exact[redundancy, rows, pct]]
        cells = [
            with_interval(*t_interval(values), form="+.2f"),
            with_interval(*t_interval(points), form="+.1f"),
        ]
        lines.append([f"{redundancy:.0%}", f"{rows:,}", f"{pct:g}%", *cells])
    head = ["redundant", "rows", "selected", "NLL minus random", "exact match minus random, points"]
    return "\n".join(markdown(head, lines))


def main(argv: Sequence[str]) -> None:
    match argv:
        case ["collect", *folders] if folders:
            DATA.write_text(json.dumps(collect(folders), indent=1) + "\n")
        case ["draw"]:
            records = json.loads(DATA.read_text())["records"]
            content = svg(
                figure(records), f"NLL of rows selected by {RULE} minus that of random rows, by redundancy"
            ).encode()
            write_atomically(FIGURE, lambda file: file.write(content))
            PAGE.write_text(between_marks(PAGE.read_text(), "redundancy-tiny", table(records)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
