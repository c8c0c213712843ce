"""`lpsel report`: write one HTML page about several runs, with figures and tables."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from lpsel.commands.arguments import OneLineParser
from lpsel.console import OPEN, end
from lpsel.errors import UserError, check_package
from lpsel.output_folder import check_output_folder


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel report",
        description="Write an HTML page about runs, with its figures (PNG, SVG, PDF) and tables (CSV).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders that contain them")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="output folder (report)")
    parser.add_argument("--wandb", action="store_true", help="create a Weights & Biases report as well")
    options = parser.parse_args(arguments)
    end(OPEN, report(options.runs, options.out, options.wandb))


def report(paths: Sequence[str], out: Path, wandb: bool = False) -> Path:
    """Write or overwrite the report, and with `wandb` also a W&B report; returns the path of the page."""
    out = out.expanduser().resolve()
    check_output_folder(out, "report", paths)
    from lpsel.report.runs import REPORTED, Runs
    from lpsel.report.tables import find_readable

    readable = find_readable(paths)
    reason = "reports leave out validations; print it with `lpsel show`"
    left_out = [(run.folder, reason) for run in readable.by_command("validate")]
    runs = Runs(readable.by_command(*REPORTED), [*readable.skipped, *left_out])
    if not runs.finished:
        reason = "; ".join(reason for _, reason in runs.skipped[:1]) or "no result.json in it"
        hint = f"name run folders of {', '.join(REPORTED)}"
        raise UserError(" ".join(paths), problem=f"no finished run ({reason})", hint=hint)
    if wandb:
        check_package("wandb_workspaces", "wandb-report", "--wandb", None)
    from lpsel.report.page import write_report

    page = write_report(runs, out, shlex.join(["lpsel", "report", *map(str, paths)]))
    if wandb:
        from lpsel.report.wandb import write_wandb_report

        print(write_wandb_report(runs, out))
    return page
