"""`lpsel runs`: list run folders with their settings, key figures and costs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lpsel import console
from lpsel.commands.arguments import OneLineParser
from lpsel.errors import UserError
from lpsel.evaluation.statistics import with_interval
from lpsel.evaluation.tables import NO_INFORMATION
from lpsel.report.points import Measure, measures, points
from lpsel.report.runs import Run, Runs, find_runs, number
from lpsel.report.tables import find_readable
from lpsel.run_config import RESULT
from lpsel.storage import finite

DEFAULT = ("runs", "multirun")
COLUMNS = ("run", "rows", "target", "figures", "cost", "folder")
WIDE_COLUMNS = ("target", "cost")  # omitted on terminals narrower than WIDTH characters
WIDTH = 130
LABELS = {"win_rate": "win rate", "nll": "NLL", "spearman": "Spearman"}

Entry = tuple[Path, Run | str, list[Measure]]  # for a skipped folder, the reason instead of the run


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(prog="lpsel runs", description="List run folders with their key figures, the latest last.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="folders that contain runs (runs and multirun)")
    parser.add_argument("--json", action="store_true", help="print a JSON object per run, one per line")
    options = parser.parse_args(arguments)
    folders = options.folders or [name for name in DEFAULT if Path(name).is_dir()]
    entries = _entries(find_readable(folders))
    if not entries:
        name = " ".join(folders) or " and ".join(DEFAULT)
        problem = "contains no run" if folders else "no such folder here"
        raise UserError(name, problem=problem, hint="name folders that contain runs")
    if options.json:
        for entry in entries:
            print(json.dumps(finite(as_json(*entry)), ensure_ascii=False))
    else:
        terminal = Console()
        narrow = terminal.is_terminal and terminal.width < WIDTH
        listing = table(entries, [column for column in COLUMNS if not (narrow and column in WIDE_COLUMNS)])
        folder_column = listing.columns[-1]
        folder_column.no_wrap = max(len(str(cell)) for cell in folder_column.cells) <= terminal.width // 2
        console.show(listing)


def key_figures(folder: Path) -> tuple[str, str]:
    """Number of rows that a finished run used, and its key figure; for a training run, the final loss."""
    (run,) = find_runs([folder]).finished
    cells = _cells(run, [] if run.command == "train" else measures(run))
    loss = number(run.get("training", "last_step_nll"))
    return cells["rows"], cells["figures"] if loss is None else f"NLL of the last step {loss:.3f}"


def _entries(runs: Runs) -> list[Entry]:
    """All run folders with the measurements in them or of their models, latest last."""

    def written(entry: Entry) -> tuple[float, str]:
        result = entry[0] / RESULT
        return (result if result.is_file() else entry[0]).stat().st_mtime, str(entry[0])

    measured = points(runs)
    entries: list[Entry] = [(folder, reason, []) for folder, reason in runs.skipped]
    for run in runs.finished:
        evaluated = [p for p in measured if p.run is run] if run.command == "train" else measures(run)
        entries.append((run.folder, run, list(evaluated)))
    return sorted(entries, key=written)


def as_json(folder: Path, run: Run | str, measured: list[Measure]) -> dict[str, Any]:
    """Describe a run for scripts, with a `reason` if it has no result."""
    if isinstance(run, str):
        return {"folder": str(folder), "reason": run}
    names = ("model", "metric", "value", "low", "high")
    return {
        "folder": str(folder),
        "command": run.command,
        "rule": run.get("rule"),
        "pct": run.pct,
        "pct_of": run.pct_of,
        "bucket": run.bucket,
        "seed": run.get("seed"),
        "rows": run.get("n_selected") or run.get("n"),
        "target": run.get("base_model", "name"),
        "scorer": run.get("scorer", "name"),
        "figures": [{name: getattr(m, name) for name in names} for m in measured],
        "flops": run.flops,
        "device_seconds": run.seconds,
    }


def table(entries: Sequence[Entry], columns: Sequence[str]) -> Table:
    """Table with a row for every run, and for every skipped folder with the reason."""
    listing = console.table(columns, right=["rows"])
    several_seeds = len({run.get("seed") for _, run, _ in entries if isinstance(run, Run)} - {None}) > 1
    for folder, run, measured in entries:
        if isinstance(run, Run):
            cells = _cells(run, measured)
            if several_seeds and run.get("seed") is not None:
                cells["run"] += f" seed {run.get('seed')}"
        else:
            cells = {"run": next((log.stem for log in folder.glob("*.log")), ""), "figures": run}
        cells["folder"] = str(folder if folder == Path.cwd().resolve() else console.relative(folder))
        listing.add_row(*(Text(cells.get(column, "")) for column in columns))
    return listing


def _cells(run: Run, measured: list[Measure]) -> dict[str, str]:
    parts: list[Any] = [run.command, run.get("evaluator")]
    if run.command in ("train", "select"):
        unit = " of the tokens" if run.pct_of == "tokens" else ""
        pct = None if run.pct is None or run.rule == "full" else f"{run.pct:g}%{unit}"
        parts = [run.command, run.rule, run.bucket, pct]
    counts = [n for n in (run.get("n_selected"), run.get("n"), run.get("n_total")) if isinstance(n, int)]
    flops = f"{run.flops:.2g} FLOPs" if run.flops else ""
    seconds = f"{run.seconds:,.{1 if run.seconds < 10 else 0}f} s" if run.seconds else ""
    return {
        "run": " ".join(str(part) for part in parts if part),
        "rows": f"{counts[0]:,}" if counts else "",
        "target": run.target if run.command == "train" else _evaluated(run),
        "figures": _figures(run, measured),
        "cost": ", ".join(part for part in (flops, seconds) if part),
    }


def _figures(run: Run, measured: list[Measure]) -> str:
    """Key figures of a run, or why it has none."""
    if run.command == "train":
        return _figure(measured[-1]) if measured else "not evaluated"
    if run.command == "validate":
        return _key_figure(measured, "scores") if measured else "Spearman not defined"
    if any(model.get("informative") is False for model in run.models) and not measured:
        return NO_INFORMATION
    if run.command == "evaluate" and run.get("page"):
        return "voting page"
    if run.command == "agreement":
        scorers = run.get("scorers")
        return f"{len(scorers) if isinstance(scorers, list) else 0} scorers"
    return _key_figure(measured, "models")


def _evaluated(run: Run) -> str:
    names = [str(model["name"]) for model in run.entries("models") if "name" in model]
    name = names[0] if names else run.get("name") or run.get("model") or ""
    return f"{len(names)} models" if len(names) > 1 else str(name)


def _key_figure(measured: list[Measure], unit: str) -> str:
    """The first metric: its value for the evaluated (last) model, or its range over more than two models."""
    if not measured:
        return ""
    metric = measured[0].metric
    of_metric = [m for m in measured if m.metric == metric]
    if len(of_metric) < (3 if unit == "models" else 2):  # one model, or one and its baseline
        return _figure(of_metric[-1])
    values = [m.value for m in of_metric]
    return f"{LABELS.get(metric, metric)} {min(values):.4g} to {max(values):.4g} of {len(values)} {unit}"


def _figure(m: Measure) -> str:
    return f"{LABELS.get(m.metric, m.metric)} {with_interval(*m.at, '.1f' if m.metric == 'win_rate' else '.3f')}"
