"""`runs`: run folders as a table, with what was run, what came of it, and what it cost."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lpsel.commands.arguments import OneLineParser
from lpsel.console import printable, show
from lpsel.errors import UserError
from lpsel.report.runs import Found, Measure, Point, Run, find, measures, points
from lpsel.run_config import RESULT
from lpsel.storage import finite

DEFAULT = ("runs", "multirun")
TITLES = ("run", "rows", "target", "figures", "cost", "folder")
DROPPED = ("target", "cost")
WIDE = 120  # characters that all columns need
LABELS = {"win_rate": "win rate", "nll": "NLL"}


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel runs ARGUMENTS`.

    Raises:
        UserError: a folder that is not there, or no run in it.
    """
    parser = OneLineParser(prog="lpsel runs", description="List run folders with their key figures, the latest last.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="folders that contain runs (runs and multirun)")
    parser.add_argument("--json", action="store_true", help="an object for every run, a line each")
    given = parser.parse_args(arguments)
    folders = given.folders or [name for name in DEFAULT if Path(name).is_dir()]
    if not folders:
        raise UserError(f"no folder {' or '.join(DEFAULT)} here; name folders that contain runs.")
    found = find(folders)
    if not found.runs and not found.left_out:
        raise UserError(f"{' '.join(folders)}: no run in it; name folders that contain runs.")
    if given.json:
        for row in described(found):
            print(json.dumps(finite(row), ensure_ascii=False))
    else:
        console = Console()
        show(table(found, narrow=console.is_terminal and console.width < WIDE))


def table(found: Found, narrow: bool = False) -> Table:
    """A row for every run, the latest last, unfinished ones and others' folders with the reason.

    A narrow one does without target and cost.
    """
    titles = [title for title in TITLES if not (narrow and title in DROPPED)]
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        made.add_column(title, justify="right" if title == "rows" else "left", overflow="fold")
    key_figures = _key_figures(found)
    for folder, run in _by_time(found):
        if isinstance(run, Run):
            cells = [_what(run), _rows(run), _target(run), key_figures[folder], _cost(run)]
        else:
            cells = [_command(folder), "", "", run, ""]
        named = zip(TITLES, [*cells, _near(folder)], strict=True)
        made.add_row(*(Text(printable(cell)) for title, cell in named if title in titles))
    return made


def described(found: Found) -> list[dict[str, object]]:
    """The same for scripts: figures as numbers, `reason` where there is no result."""
    figures = {folder: [vars(m) for m in _measures(run, found)] for folder, run in _finished(found)}
    return [
        {"folder": str(folder), "command": run.command, "rule": run.get("rule"), "pct": run.pct, "bucket": run.bucket,
         "seed": run.get("seed"),
         "rows": run.get("n_selected") or run.get("n"), "target": run.get("base_model", "name"),
         "scorer": run.get("scorer", "name"), "figures": figures[folder], "flops": run.flops,
         "device_seconds": run.seconds}
        if isinstance(run, Run) else {"folder": str(folder), "reason": run}
        for folder, run in _by_time(found)
    ]  # fmt: skip


def _finished(found: Found) -> list[tuple[Path, Run]]:
    return [(run.folder, run) for run in found.runs]


def _by_time(found: Found) -> list[tuple[Path, Run | str]]:
    def written(folder: Path) -> float:
        result = folder / RESULT
        return (result if result.is_file() else folder).stat().st_mtime

    return sorted([*_finished(found), *found.left_out], key=lambda entry: (written(entry[0]), str(entry[0])))


def _measures(run: Run, found: Found) -> list[Measure]:
    """Of a training run what evaluations found of it, of these what they measured."""
    if run.command == "train":
        return [_measure(p) for p in points(found) if p.run is run]
    return measures(run)


def _measure(p: Point) -> Measure:
    return Measure(p.run.name, p.metric, p.value, p.low, p.high)


def _key_figures(found: Found) -> dict[Path, str]:
    of_run = {p.run.folder: _measure(p) for p in points(found)}
    made = {}
    for folder, run in _finished(found):
        if run.command == "train":
            made[folder] = _figure(of_run[folder]) if folder in of_run else "not evaluated"
        elif run.command == "agreement":
            made[folder] = f"{len(run.get('scorers') or [])} scorers"
        else:
            made[folder] = _of_models(measures(run))
    return made


def _of_models(measured: list[Measure]) -> str:
    """The figure of the model that was looked at, the last; of several their range by the first metric."""
    first = [m for m in measured if m.metric == measured[0].metric]
    if len(first) < 3:  # one, or one beside its baseline
        return _figure(first[-1]) if first else ""
    values = [m.value for m in first]
    label = LABELS.get(first[0].metric, first[0].metric)
    return f"{label} {min(values):.4g} to {max(values):.4g} of {len(first)} models"


def _figure(m: Measure) -> str:
    digits = 1 if m.metric == "win_rate" else 3
    ends = "" if m.low is None or m.high is None else f" [{m.low:.{digits}f}, {m.high:.{digits}f}]"
    return f"{LABELS.get(m.metric, m.metric)} {m.value:.{digits}f}{ends}"


def _what(run: Run) -> str:
    if run.command in ("train", "select"):
        share = "" if run.pct is None or run.rule == "full" else f"{run.pct:g} %"
        return " ".join(part for part in (run.command, run.rule, run.bucket, share) if part)
    return " ".join(str(part) for part in (run.command, run.get("evaluator")) if part)


def _rows(run: Run) -> str:
    count = next((n for n in (run.get("n_selected"), run.get("n"), run.get("n_total")) if isinstance(n, int)), None)
    return "" if count is None else f"{count:,}"


def _target(run: Run) -> str:
    if run.command == "train":
        return run.target
    names = [str(m.get("name")) for m in run.entries("models") if "name" in m] or [run.get("name") or run.get("model")]
    return str(names[0]) if len(names) == 1 and names[0] else f"{len(names)} models" if len(names) > 1 else ""


def _cost(run: Run) -> str:
    parts = [
        f"{run.flops:.2g} FLOPs" if run.flops else "",
        f"{run.seconds:,.{int(run.seconds < 10)}f} s" if run.seconds else "",
    ]
    return ", ".join(part for part in parts if part)


def _command(folder: Path) -> str:
    return next((log.stem for log in folder.glob("*.log")), "")


def _near(folder: Path) -> str:
    """The folder as seen from here where it is below, else in full."""
    here = Path.cwd().resolve()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) and folder != here else str(folder)
