"""`report`: run folders as one page, with figures and tables beside it."""

from collections.abc import Sequence
from pathlib import Path

from lpsel.commands.arguments import OneLineParser
from lpsel.errors import UserError
from lpsel.output_folder import check_output_folder


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel report ARGUMENTS`.

    Raises:
        UserError: whatever the user can mend.
    """
    parser = OneLineParser(
        prog="lpsel report",
        description="Write one page of HTML about runs, with its figures (PNG, SVG) and tables (CSV).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders that contain them")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where to write (report)")
    parser.add_argument("--wandb", action="store_true", help="make a Weights & Biases report as well")
    given = parser.parse_args(arguments)
    print(report(given.runs, given.out, given.wandb), flush=True)


def report(runs: Sequence[str], out: Path, wandb: bool = False) -> Path:
    """Write the report in place of an earlier one, and with `wandb` one of W&B; returns the page's path.

    Raises:
        UserError: no run, or a folder that `report` did not write.
    """
    out = out.expanduser().resolve()
    check_output_folder(out, "report", runs)
    from lpsel.report.runs import collect

    found = collect(runs)
    if wandb:
        from lpsel.report.wandb import check_wandb_report, write_wandb_report

        check_wandb_report()
    from lpsel.report.page import write_report

    try:
        page = write_report(found, out)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror}); name a folder you may write to."
        ) from error
    if wandb:
        print(write_wandb_report(found, out))
    return page
