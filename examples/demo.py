"""The whole pipeline on the embedded data: score, select, train five targets, evaluate; one table (`make demo`).

The table shows the results whether LP wins or not. All runs use the same recipe, so that the training cost is
proportional to the rows.
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

PCT = 25
# Name in the table -> overrides of `lpsel train`. LP_app runs before LP, whose three recorded epochs would do as well,
# so that its cost is that of one epoch.
RUNS = {
    "all rows": ["selection=full"],
    f"random {PCT}%": ["selection=random", f"pct={PCT}"],
    f"lp_app, hardest {PCT}%": ["selection=lp_app", f"pct={PCT}"],
    f"lp_app, easy third, {PCT}%": ["selection=lp_app", "selection.bucket=high", f"pct={PCT}"],
    f"lp, hardest {PCT}%": ["selection=lp", f"pct={PCT}"],
}
UNTRAINED = "tiny-target"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    started = time.monotonic()
    folder = Path("runs") / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    common = ["trainer=cpu", "tracker=csv"]
    trained: dict[str, dict[str, Any]] = {}
    for number, (name, overrides) in enumerate(RUNS.items(), 1):
        print(f"\n[{number}/{len(RUNS) + 1}] {name}", flush=True)
        trained[name] = run("train", [*overrides, *common], folder / f"train-{number}")
    print(f"\n[{len(RUNS) + 1}/{len(RUNS) + 1}] evaluation on held-out rows", flush=True)
    models = ",".join(str(Path(made["model"]).parent) for made in trained.values())
    evaluation = run("evaluate", [f"models=[{UNTRAINED},{models}]", *common], folder / "evaluate")

    console = Console(width=None if Console().is_terminal else 140)
    console.print(comparison(trained, evaluation))
    print("\n".join(against_known_difficulty(trained[f"lp, hardest {PCT}%"])))
    minutes = (time.monotonic() - started) / 60
    print(f"Total: {minutes:.1f} minutes.\n{report([str(folder)], folder / 'report')}")


def comparison(trained: dict[str, dict[str, Any]], evaluation: dict[str, Any]) -> Table:
    """Held-out quality and cost of every model."""
    table = Table(title="The same target, trained on all rows and on subsets of one size", title_justify="left")
    headings = ("rows", "exact match %", "NLL", "selection tokens", "and s", "training tokens", "and s")
    for heading in ("trained on", *headings):
        table.add_column(heading, justify="left" if heading == "trained on" else "right")
    for name, measured in zip(["nothing", *trained], evaluation["models"], strict=True):
        made = trained.get(name)
        match, nll = measured["metrics"]["exact_match"], measured["metrics"]["nll"]
        table.add_row(
            name,
            f"{made['training']['rows']:,}" if made else "0",
            f"{100 * match['value']:.1f} [{100 * match['low']:.1f}, {100 * match['high']:.1f}]",
            f"{nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]",
            *_cost(made["scoring"] if made else None),
            *_cost(made["training"] if made else None),
        )
    table.caption = f"{evaluation['n']} held-out rows, 95% bootstrap intervals over rows."
    return table


def _cost(spent: dict[str, Any] | None) -> tuple[str, str]:
    return (f"{spent['tokens']:,}", f"{spent['seconds']:.1f}") if spent else ("0", "0")


def against_known_difficulty(made: dict[str, Any]) -> list[str]:
    """LP and LP_app compared with the difficulty and the wrong answers that the generator knows."""
    import numpy as np
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    from lpsel.data.dataset import DatasetSpec, Source
    from lpsel.scoring.metrics import METRICS, learning_percentage
    from lpsel.scoring.read import read_scores

    table = read_scores(made["scores"])
    rows = [row.raw for row in Source(DatasetSpec("embedded", synthetic=_embedded()))]
    difficulty, wrong = np.array([r["difficulty"] for r in rows]), np.array([r["wrong"] for r in rows])
    task = np.array([r["task"] for r in rows])
    lines = ["Low LP is hard. Compared with the known difficulty and wrong answers:"]
    for metric in ("lp", "lp_app"):
        name, lp = METRICS[metric].title, learning_percentage(table, metric)
        ok = np.isfinite(lp)
        inside = [spearmanr(-lp[ok & (task == t)], difficulty[ok & (task == t)]).statistic for t in np.unique(task)]
        lines.append(
            f"  {name:<7} hardness and difficulty: Spearman {spearmanr(-lp[ok], difficulty[ok]).statistic:+.2f}"
            f" (within a task, on average {np.mean(inside):+.2f});"
            f" wrong answers rank as hard: AUC {roc_auc_score(wrong[ok], -lp[ok]):.2f}"
        )
    return lines


def _embedded() -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    from lpsel.config import build, config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return build(compose("select").dataset).synthetic


if __name__ == "__main__":
    main()
