"""The report as a Weights & Biases report: the paper's figures as panels, over a run that holds their points.

A W&B panel draws what one run has logged, and the figures join training runs with evaluations of them. So a run of its
own, of job type "report", is given the points, the tables and the drawn figures; its panels come first, and panels over
the training runs themselves after them.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.errors import UserError, check_package, first_line
from lpsel.report.run_figures import LABELS
from lpsel.report.runs import Found, Point, points
from lpsel.report.tables import every
from lpsel.storage import write_atomically
from lpsel.tracking.tracker import Picture, Rows
from lpsel.tracking.wandb import WandbTracker, tracked_run

SPEC = "wandb-report.json"
PROJECT = "lpsel"  # where no run says
SHARE = "share of the rows, %"
WIDE, HIGH = 24, 12  # of a panel across the page, in the grid's units


@dataclass(frozen=True)
class Panel:
    """The points of one figure.

    Attributes:
        title: metric, and what makes its values comparable.
        curves: name of a curve -> share -> mean over seeds.
        bars: name of a bar -> mean, of each bucket, or of each scorer and target.
    """

    title: str
    curves: dict[str, dict[float, float]]
    bars: dict[str, float]


def check_wandb_report() -> None:
    """Raises UserError where the optional package is not installed."""
    check_package("wandb_workspaces", "wandb-report", "--wandb", None)


def write_wandb_report(found: Found, out: Path) -> str:
    """Track the report beside the page in `out`; returns a line for the user.

    With an account the report is saved in the project of the runs. Without one its run is written offline, and its
    specification as wandb-report.json.

    Raises:
        UserError: W&B cannot be used as asked.
    """
    tracked = {run.folder: of for run in found.runs if (of := tracked_run(run.folder)) is not None}
    places = Counter((of["project"], of["entity"]) for of in tracked.values())
    project, entity = places.most_common(1)[0][0] if places else (PROJECT, None)
    runs = [of["id"] for of in tracked.values() if of["project"] == project]
    measured = points(found)
    drawn = panels(measured)

    tracker = WandbTracker(project, entity)
    tables = {name: rows for name, rows in every(found, measured).items() if rows}
    tracker.start("report", {"runs": [str(run.folder) for run in found.runs]}, out)
    pictures = {f"figure/{path.stem}": Picture(path) for path in sorted((out / "figures").glob("*.png"))}
    _log(tracker, drawn, tables, pictures)
    report = specification(
        project, tracker.run.entity or entity or "", tracker.run.id, runs, drawn, list(tables), list(pictures)
    )
    line = tracker.finish({})
    if tracker.mode == "online":
        return f"W&B report: {_saved(report).url}"
    spec = report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    write_atomically(out / SPEC, lambda file: file.write(spec.encode()))
    return f"No W&B account, so no report there; what it would be: {out / SPEC}. {line}"


def _saved(report: Any) -> Any:
    import wandb

    try:
        return report.save()
    except wandb.errors.Error as error:
        raise UserError(f"--wandb: the report cannot be saved ({first_line(error)}); the page is written.") from error


def panels(measured: Sequence[Point]) -> list[Panel]:
    """The points of the paper's figures, those of each metric and comparison together, the figures at hand first."""
    groups = defaultdict(list)
    for p in measured:
        if p.run.pct is not None:
            groups[p.metric, p.against].append(p)
    return [
        Panel(f"{LABELS[metric]}; {against}", _curves(of), _bars(of))
        for (metric, against), of in reversed(groups.items())
    ]


def _curves(of: Sequence[Point]) -> dict[str, dict[float, float]]:
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for p in of:
        values[p.run.series][p.run.pct or 0.0].append(p.value)
    return {name: {share: float(np.mean(v)) for share, v in sorted(at.items())} for name, at in values.items()}


def _bars(of: Sequence[Point]) -> dict[str, float]:
    values = defaultdict(list)
    for p in of:
        if p.run.bucket or p.run.scorer != "–":
            values[f"{p.run.series}, {p.run.pct:g} %"].append(p.value)
    return {name: float(np.mean(v)) for name, v in values.items()}


def _log(
    tracker: WandbTracker, drawn: Sequence[Panel], tables: dict[str, list[dict[str, Any]]], pictures: dict[str, Picture]
) -> None:
    for k, panel in enumerate(drawn, 1):
        for share in sorted({share for at in panel.curves.values() for share in at}):
            at_share = {_curve(k, name): at[share] for name, at in panel.curves.items() if share in at}
            tracker.log({SHARE: share, **at_share})
        tracker.log({_bar(k, name): value for name, value in panel.bars.items()})
    tracker.log({f"table/{name}": Rows(list(of[0]), [list(row.values()) for row in of]) for name, of in tables.items()})
    tracker.log(pictures)


def specification(
    project: str,
    entity: str,
    own: str,
    runs: Sequence[str],
    drawn: Sequence[Panel],
    tables: Sequence[str],
    pictures: Sequence[str],
) -> Any:
    """The report: panels over its own run, then panels over the training runs.

    Args:
        own: id of the run that holds the points.
        runs: ids of the tracked runs that it is about.
        drawn: figures of which it has the points.
        tables, pictures: names of what it holds besides.
    """
    import wandb_workspaces.reports.v2 as wr

    mine = wr.Runset(name="report", filters=f"Metric('ID') in ['{own}']")
    blocks: list[Any] = [wr.TableOfContents()]
    for k, panel in enumerate(drawn, 1):
        of: list[Any] = [
            wr.LinePlot(
                title=panel.title, x=SHARE, y=[_curve(k, name) for name in panel.curves], log_x=True,
                title_x=SHARE, layout=wr.Layout(w=WIDE, h=HIGH),
            )
        ]  # fmt: skip
        if len(panel.bars) > 1:
            names: list[Any] = [_bar(k, name) for name in panel.bars]
            of.append(wr.BarPlot(title=panel.title, metrics=names, layout=wr.Layout(y=HIGH, w=WIDE, h=HIGH)))
        blocks += [wr.H2(panel.title), wr.PanelGrid(runsets=[mine], panels=of)]
    gallery = wr.MediaBrowser(media_keys=list(pictures), num_columns=2, layout=wr.Layout(w=WIDE, h=2 * HIGH))
    blocks += [wr.H2("Figures as lpsel draws them"), wr.PanelGrid(runsets=[mine], panels=[gallery])]
    blocks.append(wr.H2("Tables"))
    for name in tables:
        table = wr.WeavePanelSummaryTable(table_name=f"table/{name}", layout=wr.Layout(w=WIDE, h=HIGH))
        blocks += [wr.H3(name), wr.PanelGrid(runsets=[mine], panels=[table])]
    if runs:
        listed = ", ".join(f"'{run}'" for run in runs)
        about = wr.Runset(name="runs", filters=f"Metric('ID') in [{listed}]")
        blocks += [wr.H2("Runs"), wr.PanelGrid(runsets=[about], panels=_of_runs(wr))]
    return wr.Report(project=project, entity=entity, title="lpsel: what was run and what came out", blocks=blocks,
                     width="fluid")  # fmt: skip


def _of_runs(wr: Any) -> list[Any]:
    half = WIDE // 2
    lines = [("Training of targets", "target/nll"), ("Training of scorers", "scorer/nll"),
             ("Tokens per second", "target/tokens_per_second"), ("NLL of all rows", "records/median_nll")]  # fmt: skip
    made: list[Any] = [
        wr.LinePlot(title=title, x="trainer/global_step" if "records" not in y else "records/epoch", y=[y],
                    layout=wr.Layout(x=half * (i % 2), y=HIGH * (i // 2), w=half, h=HIGH))
        for i, (title, y) in enumerate(lines)
    ]  # fmt: skip
    spent = ["ledger/selection_flops", "ledger/training_flops", "ledger/everything_flops"]
    made.append(wr.BarPlot(title="FLOPs", metrics=spent, layout=wr.Layout(y=2 * HIGH, w=WIDE, h=HIGH)))
    made.append(wr.RunComparer(diff_only="split", layout=wr.Layout(y=3 * HIGH, w=WIDE, h=HIGH)))
    return made


def _curve(k: int, name: str) -> str:
    return f"quality {k}/{name}"


def _bar(k: int, name: str) -> str:
    return f"bars {k}/{name}"
