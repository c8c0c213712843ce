"""Self-contained HTML pages: the report of runs and the agreement of scorers."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from lpsel import __version__, html_pages
from lpsel.output_folder import output_folder
from lpsel.report import figures, line_figures
from lpsel.report.agreement_figures import agreement_figures
from lpsel.report.cells import capitalized, readable
from lpsel.report.comparisons import EVEN
from lpsel.report.drawing import DARK_SERIES, INK, MUTED, SERIES, SLIDE, Look, looks, save_files, svg
from lpsel.report.points import KEY_METRICS, Interval, Point, comparable, one_value_per_seed, points, trained_models
from lpsel.report.runs import EXPLORER, REPORTED, Run, Runs, grouped
from lpsel.report.summary import Summary, summarize
from lpsel.report.tables import Table, all_tables
from lpsel.report.wandb import SPEC as WANDB_SPEC
from lpsel.scoring.metrics import METRICS
from lpsel.selection.agreement import ROWS_OF_A_CLUSTER
from lpsel.selection.agreement_study import ALL, DEFINED, Study
from lpsel.storage import write_csv, write_file

Drawn = tuple[str, str, Figure | None]  # file name, caption and figure

MOST_OF_A_KIND = 6  # trajectory and length figures; more would crowd out the other figures
HEADLINE = "quality-1"  # the figure next to the summary


class Section(NamedTuple):
    """A section of the report: names of its figures without a number, and titles of its collapsed tables by name."""

    title: str
    figures: tuple[str, ...] = ()
    tables: Mapping[str, str] = {}


SECTIONS = (
    Section(
        "Quality",
        ("quality", "share", "tokens", "difference"),
        {"differences": "Differences between models", "evaluations": "All evaluations"},
    ),
    Section("Buckets", ("buckets",)),
    Section("Scorer and target", ("scorers",)),
    Section("Categories and prompt sets", ("groups",), {"groups": "Win rates"}),
    Section("Human evaluation", (), {"votes": "Annotators"}),
    Section("lm-evaluation-harness", ("harness",), {"harness": "Tasks"}),
    Section("Agreement of scores", ("agreement",)),
    Section("What the scores correlate with", (), {"diagnosis": "Spearman correlations, and counts of selected rows"}),
    Section("Hard and easy rows", ("trajectory",), {"examples": "Rows of each ranking: first, last and random"}),
    Section("Lengths of selected rows", ("lengths",)),
    Section("Costs", ("costs",), {"costs": "Ledgers"}),
)
OMITTED: dict[str, tuple[str, ...]] = {  # columns of a table that are only in the CSV files, not on the page
    "results": ("series", "lowest", "highest", "sd"),
    "runs": ("selection FLOPs", "training FLOPs"),
    "evaluations": ("series", "standard error"),
}
MOST_OPEN = 12  # rows of a table that is not collapsed
SCHEMES = {"light": SERIES, "dark": DARK_SERIES}
SERIES_NAMES = [f"series-{k}" for k in range(len(SERIES))]
# Colors of figures, and the CSS variables that replace them on the page.
PAGE_COLORS = dict(zip(SERIES, SERIES_NAMES, strict=True)) | {INK: "ink", MUTED: "quiet"}
OVER_SEEDS = "Lines connect means over seeds, faint dots are seeds, the gray band is the range of random rows"
QUALITY_FIGURES = {
    "quality": (
        line_figures.cost_figure,
        f"{OVER_SEEDS}; a single seed has its 95% interval over prompts or rows. Dashed: training on all rows, or a "
        "win rate of 50%. The cost includes scoring, even if scores were reused.",
    ),
    "share": (
        line_figures.fraction_figure,
        f"{OVER_SEEDS}. From the dotted percentage on, a selection is no worse than all rows, with intervals corrected "
        "for the number of selections.",
    ),
    "tokens": (
        line_figures.token_figure,
        "The metric by training tokens: equal percentages of long and short rows have different numbers of tokens.",
    ),
    "difference": (
        line_figures.difference_figure,
        "Difference from training on all rows; a single seed has the 95% interval of the paired difference, if the "
        "baseline of the evaluation was trained on all rows.",
    ),
    "buckets": (figures.bucket_figure, "Means over seeds; lines are the 95% intervals of runs."),
}
FORMULAS = {
    "lp": "LP(1) = (P₀ − P₁) / (P₀ − Pₙ), with perplexities P: the fraction of all learning that happens in epoch 1.",
    "lp_app": "LP_app(1) = (P₀ − P₁) / P₀, with perplexities P: the approximation of LP from one epoch.",
    "lp_nll": "LP computed from the mean loss per token (NLL) instead of perplexity.",
    "lp_app_nll": "LP_app computed from the mean loss per token (NLL): the relative drop in loss.",
}


def render(template: str, **values: Any) -> str:
    """Render a page from a template of this package, in the colors of the figures."""
    colors = {f"{name}_colors": dict(zip(SERIES_NAMES, colors, strict=True)) for name, colors in SCHEMES.items()}
    return html_pages.render("lpsel.report", template, **colors, **values)


def write_report(runs: Runs, out: Path, command: str = "lpsel report") -> Path:
    """Write index.html, figures/ and tables/ to `out`, replacing an earlier report; returns the path of the page."""
    measured = points(runs)
    tables = all_tables(runs, measured)
    folders = [*(run.folder for run in runs.finished), *(folder for folder, _ in runs.skipped)]
    with output_folder(out, "report", folders, written_later=[WANDB_SPEC]) as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        drawn = []
        for name, caption, figure in report_figures(runs, measured, tables):
            if figure is not None:
                phone = svg(figure, name)
                sizes = {"phone": _element(phone), "desktop": _element(save_files(figure, folder / "figures", name))}
                size = "slide" if figure.get_figwidth() == SLIDE[0] else "natural"
                drawn.append({"name": name, "caption": caption, "size": size, **sizes})
        for name, table in tables.items():
            if table:
                write_csv(folder / "tables" / f"{name}.csv", table)
        write_file(folder / "index.html", _report_page(runs, summarize(runs, measured), tables, drawn, out, command))
    return out / "index.html"


def _report_page(
    runs: Runs, summary: Summary, tables: dict[str, Table], drawn: list[dict[str, Any]], out: Path, command: str
) -> str:
    """Render the page; `drawn` has the SVG elements, names and captions of the figures."""
    omitted = dict(OMITTED)
    if len({row["against"] for row in tables["results"]}) == 1:
        omitted["results"] += ("against",)
    shown = {name: readable(table, omitted.get(name, ())) for name, table in tables.items() if table}
    sections = []
    for section in SECTIONS:
        section_figures = [
            figure
            for figure in drawn
            if figure["name"] != HEADLINE and re.sub(r"-\d+$", "", figure["name"]) in section.figures
        ]
        section_tables = [(title, shown[name]) for name, title in section.tables.items() if name in shown]
        if section_figures or section_tables:
            sections.append((section.title, section_figures, section_tables))
    return render(
        "report.html.j2",
        runs=runs,
        commands=[command for command in REPORTED if runs.by_command(command)],
        summary=summary,
        headline=[figure for figure in drawn if figure["name"] == HEADLINE],
        tables=shown,
        sections=sections,
        origin={"date": date.today().isoformat(), "command": command, "version": __version__},
        most_open=MOST_OPEN,
        link=lambda folder: link(Path(folder), out),
        explorers=[(run.name, link(run.folder, out).rstrip("/") + f"/{EXPLORER}") for run in runs.explored],
    )


def link(folder: Path, out: Path) -> str:
    """URL of a run folder for the page in `out`: relative if next to it, so that both can be moved together."""
    if folder.is_relative_to(out.parent):
        return quote(Path(os.path.relpath(folder, out)).as_posix()) + "/"
    return folder.as_uri()


def report_figures(runs: Runs, measured: Sequence[Point], tables: dict[str, Table]) -> Iterator[Drawn]:
    """Yield all figures of the report in order; None if the runs lack the data for a figure."""
    selections = sorted(runs.by_command("train", "select"), key=lambda run: (run.series, run.pct or 0.0))
    style = looks(selections)
    yield from _quality_figures(measured, style)
    yield from _dot_figures(runs, tables["groups"], "groups", "group", KEY_METRICS["win_rate"].label, [EVEN], style)
    yield from _dot_figures(runs, tables["harness"], "harness", "task", "value", [], style)
    caption = "Spearman correlation between scores of the same rows."
    yield "agreement", caption, figures.score_agreement_figure(selections)
    for k, run in enumerate(_first(selections, _scored_by), 1):
        seed = "" if run.scorer == "–" or run.get("seed") is None else f", seed {run.get('seed')}"
        caption = f"{_scored_by(run)}{seed}: median and quartiles of the hardest and easiest tenth by LP_app(1)."
        yield f"trajectory-{k}", caption, figures.trajectory_figure(Path(str(run.get("scores"))))
    for k, run in enumerate(_first(selections, lambda run: (run.series, run.pct)), 1):
        caption = f"{style[run.series].label}, {run.pct:g}%." if run.pct else f"{style[run.series].label}."
        yield f"lengths-{k}", caption, figures.length_figure(run, style[run.series].color)
    caption = "FLOPs of selection and training, means over seeds. The gap to the dashed line is the saving."
    yield "costs", caption, figures.ledger_figure([run for run in selections if run.command == "train"], style)


def _scored_by(run: Run) -> str:
    if run.scorer == "–":
        return Path(str(run.get("scores"))).parent.name
    return f"{run.scorer} on {run.get('dataset', 'name')}"


def _first(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[Run]:
    """The first run with scores for each `key`, at most MOST_OF_A_KIND."""
    by_key = grouped((run for run in runs if run.get("scores")), lambda run: str(key(run)))
    return [same[0] for same in by_key.values()][:MOST_OF_A_KIND]


def _quality_figures(measured: Sequence[Point], style: dict[str, Look]) -> Iterator[Drawn]:
    """Yield the figures of every metric and its conditions."""
    for k, group in enumerate(comparable(measured), 1):
        metric = f"{capitalized(group[0].key_metric.title)} {group[0].against}."
        if unambiguous := one_value_per_seed(group):
            for name, (draw, caption) in QUALITY_FIGURES.items():
                yield f"{name}-{k}", f"{metric} {caption}", draw(unambiguous, style)
            yield f"scorers-{k}", f"{metric} Means over seeds.", figures.scorer_target_figure(unambiguous)


def _dot_figures(
    runs: Runs, table: Table, name: str, row: str, label: str, lines: Sequence[float], style: dict[str, Look]
) -> Iterator[Drawn]:
    """Yield a figure for every evaluation and kind of group or metric, since these share a scale."""
    trained = {str(run.folder): trained_models(run, runs) for run in runs.by_command("evaluate", "votes")}
    dots = defaultdict(list)
    for entry in table:
        at = Interval(entry["value"], entry["low"], entry["high"])
        run = trained[entry["evaluation"]].get(entry["model"])
        color = None if run is None else style[run.series].color
        dots[entry["evaluation"], entry["kind"]].append(figures.Dot(entry[row], entry["model"], at, color))
    for k, ((evaluation, kind), group) in enumerate(dots.items(), 1):
        caption = f"{Path(evaluation).name}, {kind}. 95% intervals."
        yield f"{name}-{k}", caption, figures.dots_figure(group, label, lines)


def agreement_page(study: Study, numbers: dict[str, Any]) -> str:
    """Render the page of `lpsel agreement`; `numbers` has the study as plain values, None for undefined statistics."""
    return render(
        "agreement.html.j2",
        numbers=numbers,
        labels={name: metric.title for name, metric in METRICS.items()},
        formulas=FORMULAS,
        figures={
            metric: [(title, _element(svg(figure, name))) for name, title, figure in agreement_figures(study, metric)]
            for metric in study.metrics
        },
        pairs=lambda metric, rows: [p for p in numbers["pairs"] if p["metric"] == metric and p["rows"] == rows],
        all_rows=ALL,
        defined=DEFINED,
        rows_of_a_cluster=ROWS_OF_A_CLUSTER,
    )


def _element(document: str) -> Markup:
    """Extract the SVG element of a document, without its background, and use the page's light or dark colors."""
    document = document.replace("fill: #ffffff", "fill: none", 1)
    for color, variable in PAGE_COLORS.items():
        document = document.replace(color, f"var(--{variable})")
    return Markup(document[document.index("<svg") :])
