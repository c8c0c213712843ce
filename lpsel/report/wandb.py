"""Create a Weights & Biases report with the figures as panels.

A W&B panel shows values that were logged by one run, but these figures combine training runs and evaluations. So a run
of job type "report" logs the points, tables and figures; other panels show the training runs themselves.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.errors import UserError, first_line
from lpsel.report.points import Point, by_selection, comparable, one_value_per_seed, points
from lpsel.report.runs import EXPLORER, Runs
from lpsel.report.summary import summarize
from lpsel.report.tables import all_tables
from lpsel.storage import distinct, write_file
from lpsel.tracking.tracker import Rows
from lpsel.tracking.wandb import WandbTracker, tracked_run

SPEC = "wandb-report.json"
PROJECT = "lpsel"  # default if no run is tracked
PCT = "percentage of the data"
FLOPS = "FLOPs of selection and training"
WIDE, HIGH = 24, 12  # size of a full-width panel, in grid units
RUN_PANELS = {
    "Training of targets": ("trainer/global_step", "target/nll"),
    "Training of scorers": ("trainer/global_step", "scorer/nll"),
    "Tokens per second": ("trainer/global_step", "target/tokens_per_second"),
    "NLL of all rows": ("records/epoch", "records/median_nll"),
}


@dataclass(frozen=True)
class Panel:
    """The points of one figure."""

    title: str  # metric, and conditions under which its values are comparable
    # By horizontal axis and name in W&B: means over seeds, FLOPs or percentage -> metric
    lines: dict[str, dict[str, dict[float, float]]]
    bars: dict[str, float]  # mean of each bucket, or of each scorer and target, by name in W&B


def write_wandb_report(runs: Runs, out: Path) -> str:
    """Track the report in addition to the page in `out`; returns a line for the user.

    With a W&B account, the report is saved in the project of the runs. Without one, its run is tracked offline, and its
    specification is written to wandb-report.json.

    Raises:
        UserError: W&B does not accept these settings.
    """
    tracked = [stored for run in runs.finished if (stored := tracked_run(run.folder)) is not None]
    projects = Counter((stored["project"], stored["entity"]) for stored in tracked)
    project, entity = projects.most_common(1)[0][0] if projects else (PROJECT, None)
    measured = points(runs)
    drawn = panels(measured)
    tables = {f"table/{name}": rows for name, rows in all_tables(runs, measured).items() if rows}
    pictures = {f"figure/{path.stem}": path for path in sorted((out / "figures").glob("*.png"))}
    pages = explorer_pages(runs)

    tracker = WandbTracker(project, entity)
    tracker.start("report", {"runs": [str(run.folder) for run in runs.finished]}, out)
    for panel in drawn:
        for axis, lines in panel.lines.items():
            for name, means in lines.items():
                for x, mean in means.items():
                    tracker.log({axis: x, name: mean})
        tracker.log(panel.bars)
    tracker.log({name: Rows(list(rows[0]), [list(row.values()) for row in rows]) for name, rows in tables.items()})
    tracker.log(pictures)
    tracker.log(pages)

    import wandb_workspaces.reports.v2 as wr

    ids = [stored["id"] for stored in tracked if stored["project"] == project]
    summary = summarize(runs, measured)
    blocks = [
        wr.H1(summary.headline),
        *(wr.P(f"{title}: {' '.join(lines)}") for title, lines in summary.paragraphs),
        wr.TableOfContents(),
        *_blocks(tracker.run.id, drawn, list(tables), list(pictures), list(pages)),
    ]
    report = wr.Report(
        project=project,
        entity=tracker.run.entity or entity or "",
        title="lpsel: runs and results",
        blocks=[*blocks, *(_run_blocks(ids) if ids else [])],
        width="fluid",
    )
    line = tracker.finish({})
    if tracker.mode == "online":
        return f"W&B report: {_save(report)}"
    write_file(out / SPEC, report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1))
    return f"No W&B account: the specification of the report is in {out / SPEC}. {line}"


def _save(report: Any) -> str:
    """Save the report on the W&B server; returns its URL."""
    import wandb

    try:
        return report.save().url
    except wandb.errors.Error as error:
        problem = f"the W&B report cannot be saved ({first_line(error)}), but the page is written"
        raise UserError("--wandb", problem=problem, hint="check the connection and the account") from error


def explorer_pages(runs: Runs) -> dict[str, Path]:
    """Pages of lpsel explore by name in W&B; the names of folders with the same name get a number."""
    names = distinct([run.name for run in runs.explored])
    return {f"explorer/{name}": run.folder / EXPLORER for name, run in zip(names, runs.explored, strict=True)}


def panels(measured: Sequence[Point]) -> list[Panel]:
    """Points of the quality figures by metric and conditions, key figures first."""
    drawn = []
    for k, group in enumerate(comparable([p for p in measured if p.run.pct is not None]), 1):
        group = one_value_per_seed(group)
        if not group:
            continue
        panel = Panel(f"{group[0].key_metric.label}; {group[0].against}", {FLOPS: {}, PCT: {}}, {})
        for series, by_pct in by_selection(group).items():
            means = {pct: float(np.mean([p.value for p in seeds])) for pct, seeds in by_pct.items()}
            panel.lines[PCT][f"quality {k}/{series}"] = means
            means_by_flops = {}
            for pct, seeds in by_pct.items():
                if flops := [p.run.flops for p in seeds if p.run.flops]:
                    means_by_flops[float(np.mean(flops))] = means[pct]
            if means_by_flops:
                panel.lines[FLOPS][f"cost {k}/{series}"] = means_by_flops
            run = next(iter(by_pct.values()))[0].run
            if run.bucket or run.scorer != "–":
                panel.bars.update({f"bars {k}/{series}, {pct:g}%": mean for pct, mean in means.items()})
        drawn.append(panel)
    return drawn


def _blocks(
    run: str, drawn: Sequence[Panel], tables: Sequence[str], pictures: Sequence[str], pages: Sequence[str]
) -> list[Any]:
    """Panels for the run with this id, which logged the points."""
    import wandb_workspaces.reports.v2 as wr

    def grid(*panels: Any) -> Any:
        runset = wr.Runset(name="report", filters=f"Metric('ID') in ['{run}']")
        return wr.PanelGrid(runsets=[runset], panels=list(panels))

    blocks: list[Any] = []
    for panel in drawn:
        plots: list[Any] = []
        for i, (x, lines) in enumerate(panel.lines.items()):
            if lines:
                layout = wr.Layout(y=i * HIGH, w=WIDE, h=HIGH)
                plots.append(wr.LinePlot(title=panel.title, x=x, y=[*lines], log_x=True, title_x=x, layout=layout))
        if len(panel.bars) > 1:
            layout = wr.Layout(y=2 * HIGH, w=WIDE, h=HIGH)
            plots.append(wr.BarPlot(title=panel.title, metrics=[*panel.bars], layout=layout))
        blocks += [wr.H2(panel.title), grid(*plots)]
    gallery = wr.MediaBrowser(media_keys=list(pictures), num_columns=2, layout=wr.Layout(w=WIDE, h=2 * HIGH))
    blocks += [wr.H2("Figures drawn by lpsel"), grid(gallery)]
    if pages:
        rows = wr.MediaBrowser(media_keys=list(pages), num_columns=1, layout=wr.Layout(w=WIDE, h=3 * HIGH))
        blocks += [wr.H2("Rows"), grid(rows)]
    blocks.append(wr.H2("Tables"))
    for name in tables:
        table = wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=WIDE, h=HIGH))
        blocks += [wr.H3(name.removeprefix("table/")), grid(table)]
    return blocks


def _run_blocks(runs: Sequence[str]) -> list[Any]:
    """Panels for the tracked runs with these ids."""
    import wandb_workspaces.reports.v2 as wr

    half = WIDE // 2
    drawn: list[Any] = [
        wr.LinePlot(title=title, x=x, y=[y], layout=wr.Layout(x=half * (i % 2), y=HIGH * (i // 2), w=half, h=HIGH))
        for i, (title, (x, y)) in enumerate(RUN_PANELS.items())
    ]
    spent: list[Any] = ["ledger/selection_flops", "ledger/training_flops", "ledger/everything_flops"]
    drawn.append(wr.BarPlot(title="FLOPs", metrics=spent, layout=wr.Layout(y=2 * HIGH, w=WIDE, h=HIGH)))
    drawn.append(wr.RunComparer(diff_only="split", layout=wr.Layout(y=3 * HIGH, w=WIDE, h=HIGH)))
    ids = ", ".join(f"'{run}'" for run in runs)
    runset = wr.Runset(name="runs", filters=f"Metric('ID') in [{ids}]")
    return [wr.H2("Runs"), wr.PanelGrid(runsets=[runset], panels=drawn)]
