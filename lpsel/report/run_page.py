"""The report of runs: one page of HTML that needs no network, its figures as PNG and SVG, its tables as CSV."""

import base64
import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lpsel.files import folder_atomically, write_atomically
from lpsel.report import run_figures as draw
from lpsel.report.figures import INK, INK_IN_SVG, save_png, svg
from lpsel.report.runs import BESIDE, Found, Point, number, points

MOST_OF_A_KIND = 6  # trajectories and length figures: one for every score table or selection would bury the others

RUN_COLUMNS = (
    "run", "command", "target", "scorer", "rule", "bucket", "pct", "rows", "seed", "metric", "value", "low", "high",
    "selection FLOPs", "training FLOPs", "saved %", "seconds", "folder",
)  # fmt: skip


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
    rows = run_rows(found, measured)
    tables = {"runs": rows, "evaluations": point_rows(measured), "seeds": seed_rows(measured),
              "costs": cost_rows(found), "examples": example_rows(found)}  # fmt: skip
    with folder_atomically(out) as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        shown = defaultdict(list)
        for drawn in figures(found, measured):
            if (image := _write_figure(drawn, folder / "figures")) is not None:
                shown[drawn.section].append({"name": drawn.name, "caption": drawn.caption, "svg": image})
        for name, of_table in tables.items():
            if of_table:
                _write_csv(folder / "tables" / f"{name}.csv", of_table)
        page = render(found, tables, dict(shown))
        write_atomically(folder / "index.html", lambda file: file.write(page.encode(errors="replace")))
    return out / "index.html"


def render(found: Found, tables: dict[str, list[dict[str, Any]]], shown: dict[str, list[dict[str, Any]]]) -> str:
    """The page; every text of a run is escaped, and only the page's own script may run."""
    environment = Environment(
        loader=PackageLoader("lpsel.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["uri"] = lambda folder: Path(folder).as_uri()
    script = (Path(__file__).parent / "templates" / "report.js").read_text()
    return environment.get_template("report.html.j2").render(
        found=found,
        tables=tables,
        figures=shown,
        columns=[c for c in RUN_COLUMNS[1:-1] if any(row[c] is not None for row in tables["runs"])],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def figures(found: Found, measured: Sequence[Point]) -> list[Drawn]:
    """Every figure that could be made of these runs, in the page's order."""
    made = []
    groups = defaultdict(list)
    for p in measured:
        groups[p.metric, p.against].append(p)
    kinds = (
        ("share", "Quality against share", draw.share_figure,
         "Lines run through means over seeds, every mark is one run, bars are 95 % intervals"),
        ("buckets", "Buckets", draw.bucket_figure, "Means over runs with 95 % intervals"),
        ("scorers", "Scorer against target", draw.scorer_target_figure, "Means over runs"),
    )  # fmt: skip
    for kind, section, make, reading in kinds:
        for k, ((metric, against), of) in enumerate(reversed(groups.items()), 1):  # the figures at hand first
            caption = f"{draw.LABELS[metric]}; {against}. {reading}."
            made.append(Drawn(f"{kind}-{k}", section, caption, _bound(make, of)))
    chosen = found.of("train", "select")
    made.append(Drawn("agreement", "Agreement of scores", "Spearman correlation of scores of the same rows.",
                      _bound(draw.agreement_figure, chosen)))  # fmt: skip
    scores = list(dict.fromkeys(str(r.get("scores")) for r in chosen if r.get("scores")))
    for k, path in enumerate(scores[:MOST_OF_A_KIND], 1):
        caption = f"{Path(path).parent.name}: median and quartiles of each tenth, ranked by LP_app(1)."
        made.append(Drawn(f"trajectory-{k}", "Hard and easy rows", caption, _bound(draw.trajectory_figure, Path(path))))
    told = {(r.rule, r.pct, r.bucket, r.scorer): r for r in reversed(chosen) if r.get("scores")}
    for k, run in enumerate(list(reversed(told.values()))[:MOST_OF_A_KIND], 1):
        caption = f"{draw.series_of(run)}, {run.pct:g} %." if run.pct else f"{draw.series_of(run)}."
        made.append(Drawn(f"lengths-{k}", "Lengths of chosen rows", caption, _bound(draw.length_figure, run)))
    names = [f"{r.folder.name}: {r.rule}{f' {r.pct:g} %' if r.pct else ''}" for r in found.of("train")]
    made.append(Drawn("costs", "Costs", "Spent on choosing and on training; left of the dashed line is saved.",
                      lambda ink: draw.ledger_figure(found.of("train"), names, ink)))  # fmt: skip
    return made


def run_rows(found: Found, measured: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for every run."""
    of_run = {p.run.folder: p for p in measured}
    rows = []
    for run in found.runs:
        p = of_run.get(run.folder)
        saved = number(run.get("ledger", "saved", "share"))
        train_rows = run.get("training", "rows")
        own = run.command in ("train", "select")
        rows.append(dict(zip(RUN_COLUMNS, (
            run.folder.name, run.command, run.target if own else None, run.scorer if own else None,
            run.rule if own else None, run.bucket, run.pct if own else None,
            train_rows if train_rows is not None else run.get("n_selected") if own else run.get("n"),
            run.get("seed"), p.metric if p else None, p.value if p else None, p.low if p else None,
            p.high if p else None, number(run.get("ledger", "selection", "flops")),
            number(run.get("ledger", "training", "flops") or run.get("training", "flops")),
            None if saved is None else 100 * saved, number(run.get("training", "seconds")), str(run.folder),
        ), strict=True)))  # fmt: skip
    return rows


def point_rows(measured: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for every figure that an evaluation found of a run."""
    told = [name for name in BESIDE if any(p.beside[name] is not None for p in measured)]
    return [
        {"run": p.run.folder.name, "series": draw.series_of(p.run), "pct": p.run.pct, "seed": p.run.get("seed"),
         "metric": p.metric, "value": p.value, "low": p.low, "high": p.high,
         **{name.replace("_", " "): p.beside[name] for name in told}, "against": p.against,
         "folder": str(p.run.folder), "evaluation": str(p.evaluation.folder)}
        for p in measured
    ]  # fmt: skip


def seed_rows(measured: Sequence[Point]) -> list[dict[str, Any]]:
    """Mean, lowest, highest and standard deviation over the seeds of what was run more than once."""
    groups: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    for p in measured:
        groups[draw.series_of(p.run), p.run.pct, p.metric, p.against][p.run.get("seed")] = p.value
    rows = []
    for (series, pct, metric, against), values in groups.items():
        of = list(values.values())
        if len(of) > 1:
            rows.append({"series": series, "pct": pct, "metric": metric, "seeds": len(of), "mean": float(np.mean(of)),
                         "lowest": min(of), "highest": max(of), "sd": float(np.std(of, ddof=1)),
                         "against": against})  # fmt: skip
    return rows


def cost_rows(found: Found) -> list[dict[str, Any]]:
    """The ledger of every training run."""
    return [
        {"run": r.folder.name, "choosing FLOPs": r.get("ledger", "selection", "flops"),
         "training FLOPs": r.get("ledger", "training", "flops"),
         "everything FLOPs": r.get("ledger", "everything", "flops"), "saved FLOPs": r.get("ledger", "saved", "flops"),
         "pays below %": r.get("ledger", "break_even_pct"), "folder": str(r.folder)}
        for r in found.of("train") if r.get("ledger")
    ]  # fmt: skip


def example_rows(found: Found) -> list[dict[str, Any]]:
    """First and last rows of the rankings, once for every rule, scorer and bucket."""
    rows, seen = [], set()
    for run in found.of("train", "select"):
        of, examples = (run.rule, run.scorer, run.bucket), run.get("examples")
        if of in seen or not run.get("scores") or not isinstance(examples, dict):
            continue
        seen.add(of)
        for end, at_end in examples.items():
            rows += [{"rule": run.rule, "bucket": run.bucket, "end": end, "index": e.get("index"),
                      "score": e.get("score"),
                      "chosen": e.get("selected"), "text": e.get("text"), "folder": str(run.folder)}
                     for e in at_end]  # fmt: skip
    return rows


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
        return f"{value:.3g}" if abs(value) >= 1e6 or 0 < abs(value) < 1e-3 else f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)
