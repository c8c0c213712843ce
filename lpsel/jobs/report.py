"""`report`: run folders as one page, with figures and tables beside it."""

from collections.abc import Sequence
from pathlib import Path

from lpsel.errors import UserError
from lpsel.jobs.plain import OneLineParser

PAGE = "index.html"


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
    given = parser.parse_args(arguments)
    print(report(given.runs, given.out), flush=True)


def report(runs: Sequence[str], out: Path) -> Path:
    """Write the report in place of an earlier one; returns the page's path.

    Raises:
        UserError: no run, or a folder in the way that is no report.
    """
    out = out.expanduser().resolve()
    if out.exists() and not (out.is_dir() and ((out / PAGE).is_file() or not any(out.iterdir()))):
        raise UserError(f"--out {out}: is there and no report; name another folder.")
    from lpsel.report.runs import collect

    found = collect(runs)
    from lpsel.report.run_page import write_report

    try:
        return write_report(found, out)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror}); name a folder you may write to."
        ) from error
