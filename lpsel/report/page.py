"""The report of runs: one page of HTML that needs no network, its figures as PNG and SVG, its tables as CSV."""

import base64
import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lpsel.output_folder import output_folder
from lpsel.report import row_figures as rows
from lpsel.report import run_figures as draw
from lpsel.report import tables
from lpsel.report.figures import INK, INK_IN_SVG, save_png, svg
from lpsel.report.runs import COMMANDS, Found, Point, points
from lpsel.report.wandb import SPEC as WANDB_SPEC
from lpsel.storage import write_atomically

MOST_OF_A_KIND = 6  # trajectories and length figures: one for every score table or selection would bury the others

QUALITY, GROUPS, VOTES = "Quality against share", "By category and prompt set", "Votes of people"
HARNESS, COSTS = "lm-evaluation-harness", "Costs"
# The page's parts in their order, and the tables that stand in each, with what they are called.
SECTIONS: dict[str, dict[str, str]] = {
    QUALITY: {"evaluations": "The figures as a table", "seeds": "Spread over seeds"},
    "Buckets": {},
    "Scorer against target": {},
    GROUPS: {"groups": "Win rates"},
    VOTES: {"votes": "What people said"},
    HARNESS: {"harness": "Tasks"},
    "Agreement of scores": {},
    "Hard and easy rows": {"examples": "Rows of each ranking: the first, the last, some at random"},
    "Lengths of chosen rows": {},
    COSTS: {"costs": "Ledgers"},
}


@dataclass(frozen=True)
class Drawn:
    """A figure's file name, its section and caption, and what it looks like in an ink."""

    name: str
    section: str
    caption: str
    make: Callable[[str], Figure | None]


def write_report(found: Found, out: Path) -> Path:
    """Write index.html, figures/ and tables/ in place of `out`; returns the page's path."""
    measured = points(found)
    made = tables.every(found, measured)
    with output_folder(out, "report", found.folders, written_later=[WANDB_SPEC]) as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        shown = defaultdict(list)
        for drawn in figures(found, measured, made):
            if (image := _write_figure(drawn, folder / "figures")) is not None:
                shown[drawn.section].append({"name": drawn.name, "caption": drawn.caption, "svg": image})
        for name, of_table in made.items():
            if of_table:
                _write_csv(folder / "tables" / f"{name}.csv", of_table)
        page = render(found, made, dict(shown), out)
        write_atomically(folder / "index.html", lambda file: file.write(page.encode(errors="replace")))
    return out / "index.html"


def render(
    found: Found, made: dict[str, list[dict[str, Any]]], shown: dict[str, list[dict[str, Any]]], out: Path
) -> str:
    """The page; every text of a run is escaped, and only the page's own script may run."""
    environment = Environment(
        loader=PackageLoader("lpsel.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["link"] = lambda folder: link(Path(folder), out)
    script = (Path(__file__).parent / "templates" / "report.js").read_text()
    return environment.get_template("report.html.j2").render(
        found=found,
        commands=[command for command in COMMANDS if found.of(command)],
        tables=made,
        sections=sections(made, shown),
        about=about(found),
        columns=[
            c
            for c in tables.RUN_COLUMNS[1:-1]
            if any(row[c] is not None for row in made["runs"]) and not c.endswith("FLOPs")
        ],  # the ledgers have these
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def about(found: Found) -> dict[str, str]:
    """What was run, over all runs that train or choose: each thing with its different values."""
    runs = found.of("train", "select")
    rows = {
        f"{r.get('dataset', 'name')} ({r.get('n_total'):,} rows)" for r in runs if isinstance(r.get("n_total"), int)
    }
    shares = sorted({r.pct for r in runs if r.pct is not None})
    said = {
        "data": rows,
        "targets": {r.target for r in runs if r.command == "train"},
        "scorers": {r.scorer for r in runs if r.scorer != "–"},
        "rules": {r.rule for r in runs},
        "buckets": {r.bucket for r in runs if r.bucket},
        "shares": [f"{share:g} %" for share in shares],
        "seeds": {str(r.get("seed")) for r in runs if r.get("seed") is not None},
    }
    return {name: ", ".join(of if isinstance(of, list) else sorted(of)) for name, of in said.items() if of}


def sections(
    made: dict[str, list[dict[str, Any]]], shown: dict[str, list[dict[str, Any]]]
) -> list[tuple[str, list[dict[str, Any]], list[tuple[str, list[dict[str, Any]]]]]]:
    """Title, figures and tables of each part of the page that has any, tables with their titles."""
    return [
        (title, shown.get(title, []), [(name, made[table]) for table, name in of.items() if made[table]])
        for title, of in SECTIONS.items()
        if shown.get(title) or any(made[table] for table in of)
    ]


def link(folder: Path, out: Path) -> str:
    """Where a run folder is, seen from the page in `out`.

    Relative for folders beside the report or below its neighbours, so that all of them can be moved together.
    """
    if folder.is_relative_to(out.parent):
        return quote(Path(os.path.relpath(folder, out)).as_posix()) + "/"
    return folder.as_uri()


def figures(found: Found, measured: Sequence[Point], made: dict[str, list[dict[str, Any]]]) -> list[Drawn]:
    """Every figure that could be made of these runs, in the page's order."""
    drawn = []
    groups = defaultdict(list)
    for p in measured:
        groups[p.metric, p.against].append(p)
    kinds = (
        ("share", QUALITY, draw.share_figure,
         "Lines run through means over seeds, every mark is one run, bars are 95 % intervals; dashed: all rows, of win "
         "rates 50 %"),
        ("difference", QUALITY, draw.difference_figure,
         "The same less that of all rows; bars are 95 % intervals of the paired difference, where the evaluation had "
         "training on all rows as its baseline"),
        ("buckets", "Buckets", draw.bucket_figure, "Means over runs with 95 % intervals"),
        ("scorers", "Scorer against target", draw.scorer_target_figure, "Means over runs"),
    )  # fmt: skip
    for k, ((metric, against), of) in enumerate(reversed(groups.items()), 1):  # the figures at hand first
        for kind, section, make, reading in kinds:
            caption = f"{draw.LABELS[metric]}; {against}. {reading}."
            drawn.append(Drawn(f"{kind}-{k}", section, caption, _bound(make, of)))
    drawn += _dots("groups", GROUPS, made["groups"], "group", "win rate, %", 50.0)
    drawn += _dots("harness", HARNESS, made["harness"], "task", "value", None)
    chosen = found.of("train", "select")
    drawn.append(Drawn("agreement", "Agreement of scores", "Spearman correlation of scores of the same rows.",
                       _bound(rows.agreement_figure, chosen)))  # fmt: skip
    scores = {str(r.get("scores")): r for r in reversed(chosen) if r.get("scores")}
    for k, (path, run) in enumerate(list(reversed(scores.items()))[:MOST_OF_A_KIND], 1):
        whose = Path(path).parent.name if run.scorer == "–" else f"{run.scorer} on {run.get('dataset', 'name')}"
        caption = f"{whose}, as {run.name} used it: median and quartiles of each tenth by LP_app(1)."
        trajectory = _bound(rows.trajectory_figure, Path(path))
        drawn.append(Drawn(f"trajectory-{k}", "Hard and easy rows", caption, trajectory))
    told = {(r.rule, r.pct, r.bucket, r.scorer): r for r in reversed(chosen) if r.get("scores")}
    for k, run in enumerate(list(reversed(told.values()))[:MOST_OF_A_KIND], 1):
        caption = f"{run.series}, {run.pct:g} %." if run.pct else f"{run.series}."
        drawn.append(Drawn(f"lengths-{k}", "Lengths of chosen rows", caption, _bound(rows.length_figure, run)))
    names = [f"{r.name}: {r.rule}{f' {r.pct:g} %' if r.pct else ''}" for r in found.of("train")]
    drawn.append(Drawn("costs", COSTS, "Spent on choosing and on training; left of the dashed line is saved.",
                       lambda ink: rows.ledger_figure(found.of("train"), names, ink)))  # fmt: skip
    return drawn


def _dots(
    name: str, section: str, table: list[dict[str, Any]], row: str, label: str, line: float | None
) -> Iterator[Drawn]:
    """A figure for every evaluation, and for every kind of group or metric in it: they have one scale."""
    by = defaultdict(list)
    for of in table:
        by[of["evaluation"], of["kind"]].append(draw.Dot(of[row], of["model"], of["value"], of["low"], of["high"]))
    for k, ((evaluation, kind), dots) in enumerate(by.items(), 1):
        caption = f"{Path(evaluation).name}, {kind}. 95 % intervals."
        yield Drawn(f"{name}-{k}", section, caption, partial(draw.dots_figure, dots, label, line=line))


def _bound(make: Callable[[Any, str], Figure | None], of: Any) -> Callable[[str], Figure | None]:
    return lambda ink: make(of, ink)


def _write_figure(drawn: Drawn, folder: Path) -> Markup | None:
    figure = drawn.make(INK)
    if figure is None:
        return None
    save_png(figure, folder / f"{drawn.name}.png")
    write_atomically(
        folder / f"{drawn.name}.svg",
        lambda file: figure.savefig(file, format="svg", bbox_inches="tight", facecolor="white"),
    )
    on_page = drawn.make(INK_IN_SVG)
    assert on_page is not None
    return Markup(svg(on_page, drawn.name, str(escape(f"{drawn.section}: {drawn.caption}"))))


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="replace")))


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
            return f"{value:.3g}"
        return (
            f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
        )  # as many decimals, so that they stand in line
    return f"{value:,}" if isinstance(value, int) else str(value)
