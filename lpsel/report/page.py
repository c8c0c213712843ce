"""HTML pages that need no network, from Jinja templates: the report of runs and the agreement of scorers."""

import base64
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lpsel.output_folder import output_folder
from lpsel.report import quality_figures, row_figures
from lpsel.report.agreement_figures import agreement_figures
from lpsel.report.drawing import save_png, svg
from lpsel.report.points import Interval, Point, points
from lpsel.report.runs import COMMANDS, Run, Runs
from lpsel.report.tables import Table, all_tables
from lpsel.report.wandb import SPEC as WANDB_SPEC
from lpsel.scoring.metrics import METRICS
from lpsel.selection.agreement import ROWS_OF_A_CLUSTER
from lpsel.selection.agreement_study import ALL, DEFINED, Study
from lpsel.storage import write_atomically, write_csv

Drawn = tuple[str, str, Figure | None]  # file name, caption and figure

MOST_OF_A_KIND = 6  # trajectories and length figures: more would hide the other figures

# Sections of the report in order: the names of their figures, and the titles of their tables.
SECTIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "Quality by percentage of the data": (
        ("share", "tokens", "difference"),
        {
            "warnings": "Warnings",
            "evaluations": "Evaluations",
            "differences": "Differences between models",
            "seeds": "Means over seeds",
        },
    ),
    "Buckets": (("buckets",), {}),
    "Scorer and target": (("scorers",), {}),
    "Categories and prompt sets": (("groups",), {"groups": "Win rates"}),
    "Human evaluation": ((), {"votes": "Annotators"}),
    "lm-evaluation-harness": (("harness",), {"harness": "Tasks"}),
    "Agreement of scores": (("agreement",), {}),
    "Hard and easy rows": (("trajectory",), {"examples": "Rows of each ranking: first, last and random"}),
    "Lengths of selected rows": (("lengths",), {}),
    "What the scores follow": ((), {"diagnosis": "Spearman correlations, and counts of selected rows"}),
    "Costs": (("costs",), {"costs": "Ledgers"}),
}
FORMULAS = {
    "lp": "LP(1) = (P₀ − P₁) / (P₀ − Pₙ), with perplexities P: the fraction of all learning that happens in epoch 1.",
    "lp_app": "LP_app(1) = (P₀ − P₁) / P₀, with perplexities P: the approximation of LP from one epoch.",
    "lp_nll": "The formula of LP with the mean loss per token (NLL) instead of perplexity.",
    "lp_app_nll": "The formula of LP_app with the mean loss per token (NLL): the relative drop in loss.",
}


def render(template: str, **values: Any) -> str:
    """A page from a template of this package. Every text is escaped; only `script`, by its hash, may run."""
    environment = Environment(
        loader=PackageLoader("lpsel.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _formatted
    environment.filters["decimals"] = lambda value: "–" if value is None else f"{value:.3f}"
    script = values.setdefault("script", None)
    values["script_hash"] = script and base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(**values)


def write_report(runs: Runs, out: Path) -> Path:
    """Write index.html, figures/ and tables/ to `out`, in place of an earlier report; returns the path of the page."""
    measured = points(runs)
    tables = all_tables(runs, measured)
    with output_folder(out, "report", runs.folders, written_later=[WANDB_SPEC]) as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        figures = []
        for name, caption, figure in report_figures(runs, measured, tables):
            if figure is not None:
                image = svg(figure, name)
                save_png(figure, folder / "figures" / f"{name}.png")
                _write(folder / "figures" / f"{name}.svg", image)
                figures.append({"name": name, "caption": caption, "svg": _element(image)})
        for name, table in tables.items():
            if table:
                write_csv(folder / "tables" / f"{name}.csv", table)
        _write(folder / "index.html", _report_page(runs, tables, figures, out))
    return out / "index.html"


def _report_page(runs: Runs, tables: dict[str, Table], figures: list[dict[str, Any]], out: Path) -> str:
    rows = tables["runs"]
    columns = [c for c in rows[0] if c not in ("run", "folder") and any(row[c] is not None for row in rows)]
    sections = [
        (
            title,
            [figure for figure in figures if figure["name"].partition("-")[0] in kinds],
            [(name, tables[table]) for table, name in names.items() if tables[table]],
        )
        for title, (kinds, names) in SECTIONS.items()
    ]
    return render(
        "report.html.j2",
        runs=runs,
        commands=[command for command in COMMANDS if runs.by_command(command)],
        tables=tables,
        sections=[section for section in sections if section[1] or section[2]],
        overview=overview(runs),
        columns=[column for column in columns if not column.endswith("FLOPs")],  # the ledgers have these
        link=lambda folder: link(Path(folder), out),
        script=Markup((Path(__file__).parent / "templates" / "report.js").read_text()),
    )


def overview(runs: Runs) -> dict[str, str]:
    """The different datasets, models, rules and settings of all runs that train or select."""
    selections = runs.by_command("train", "select")
    sizes = [(r.get("dataset", "name"), r.get("n_total")) for r in selections]
    values: dict[str, set[Any]] = {
        "data": {f"{name} ({size:,} rows)" for name, size in sizes if isinstance(size, int)},
        "targets": {r.target for r in selections if r.command == "train"},
        "scorers": {r.scorer for r in selections} - {"–"},
        "rules": {r.rule for r in selections},
        "buckets": {r.bucket for r in selections if r.bucket},
        "data %": {r.pct for r in selections if r.pct is not None},
        "seeds": {str(r.get("seed")) for r in selections if r.get("seed") is not None},
    }
    texts = {name: [f"{v:g}" if isinstance(v, float) else v for v in sorted(of)] for name, of in values.items()}
    return {name: ", ".join(text) for name, text in texts.items() if text}


def link(folder: Path, out: Path) -> str:
    """The URL of a run folder on the page in `out`: relative next to the report, so that both can be moved together."""
    if folder.is_relative_to(out.parent):
        return quote(Path(os.path.relpath(folder, out)).as_posix()) + "/"
    return folder.as_uri()


def report_figures(runs: Runs, measured: Sequence[Point], tables: dict[str, Table]) -> Iterator[Drawn]:
    """Every figure of the report in order; None where the runs do not allow it."""
    yield from _quality_figures(measured)
    yield from _dot_figures("groups", tables["groups"], "group", "win rate, %", [50.0])
    yield from _dot_figures("harness", tables["harness"], "task", "value", [])
    selections = runs.by_command("train", "select")
    caption = "Spearman correlation between scores of the same rows."
    yield "agreement", caption, row_figures.score_agreement_figure(selections)
    for k, run in enumerate(_first(selections, lambda run: run.get("scores")), 1):
        path = Path(str(run.get("scores")))
        name = path.parent.name if run.scorer == "–" else f"{run.scorer} on {run.get('dataset', 'name')}"
        caption = f"{name}, as used by {run.name}: median and quartiles of the hardest and easiest tenth by LP_app(1)."
        yield f"trajectory-{k}", caption, row_figures.trajectory_figure(path)
    for k, run in enumerate(_first(selections, lambda run: (run.series, run.pct)), 1):
        caption = f"{run.series}, {run.pct:g} %." if run.pct else f"{run.series}."
        yield f"lengths-{k}", caption, row_figures.length_figure(run)
    caption = "FLOPs of scoring and training; the distance to the dashed line is saved."
    yield "costs", caption, row_figures.ledger_figure(runs.by_command("train"))


def _first(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[Run]:
    """The first runs with scores that differ by `key`, at most MOST_OF_A_KIND."""
    first: dict[str, Run] = {}
    for run in runs:
        if run.get("scores"):
            first.setdefault(str(key(run)), run)
    return list(first.values())[:MOST_OF_A_KIND]


def _quality_figures(measured: Sequence[Point]) -> Iterator[Drawn]:
    kinds = {
        "share": (
            quality_figures.fraction_figure,
            "Lines connect means over seeds, each mark is one run with its 95 % interval over prompts or rows; dashed: "
            "training on all rows, or a win rate of 50 %. From the dotted percentage on, the intervals of a selection, "
            "corrected for the number of selections, are no worse.",
        ),
        "tokens": (
            quality_figures.token_figure,
            "The same at equal training tokens: equal percentages of long and of short rows differ in tokens.",
        ),
        "difference": (
            quality_figures.difference_figure,
            "Difference from training on all rows; bars are 95 % intervals of the paired difference, where the "
            "baseline of the evaluation was trained on all rows.",
        ),
        "buckets": (
            quality_figures.bucket_figure,
            "Means over seeds; lines are the 95 % intervals of runs.",
        ),
        "scorers": (quality_figures.scorer_target_figure, "Means over seeds."),
    }
    comparable = defaultdict(list)
    for p in measured:
        comparable[p.metric, p.against].append(p)
    for k, ((metric, against), group) in enumerate(reversed(comparable.items()), 1):  # key figures first
        for name, (draw, caption) in kinds.items():
            yield f"{name}-{k}", f"{quality_figures.LABELS[metric]}; {against}. {caption}", draw(group)


def _dot_figures(name: str, table: Table, row: str, label: str, lines: Sequence[float]) -> Iterator[Drawn]:
    """A figure for every evaluation and kind of group or metric in it, which have the same scale."""
    dots = defaultdict(list)
    for entry in table:
        at = Interval(entry["value"], entry["low"], entry["high"])
        dots[entry["evaluation"], entry["kind"]].append(quality_figures.Dot(entry[row], entry["model"], at))
    for k, ((evaluation, kind), group) in enumerate(dots.items(), 1):
        caption = f"{Path(evaluation).name}, {kind}. 95 % intervals."
        yield f"{name}-{k}", caption, quality_figures.dots_figure(group, label, lines)


def agreement_page(study: Study, numbers: dict[str, Any]) -> str:
    """The page of `lpsel agreement`.

    Args:
        study: the comparison, for its figures.
        numbers: the same as plain values, None where a statistic is undefined.
    """
    figures = {
        metric: [(title, _element(svg(figure, name))) for name, title, figure in agreement_figures(study, metric)]
        for metric in study.metrics
    }
    return render(
        "agreement.html.j2",
        numbers=numbers,
        labels={name: metric.title for name, metric in METRICS.items()},
        formulas=FORMULAS,
        figures=figures,
        pairs=lambda metric, rows: [p for p in numbers["pairs"] if (p["metric"], p["rows"]) == (metric, rows)],
        all_rows=ALL,
        defined=DEFINED,
        rows_of_a_cluster=ROWS_OF_A_CLUSTER,
    )


def _element(document: str) -> Markup:
    """The SVG element of an SVG document."""
    return Markup(document[document.index("<svg") :])


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))


def _formatted(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
            return f"{value:.3g}"
        return f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
