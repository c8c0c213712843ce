"""Terminal output: progress bars, and tables that use the width and colors of the terminal.

If the output is not a terminal, progress is one line per minute, and tables are aligned lines of plain text.
"""

import shlex
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lpsel.distributed import is_main_process
from lpsel.redact import printable, printable_lines, redact

SECONDS_BETWEEN_LINES = 60.0
OPEN = "open {} in a browser"  # next step for a page, see `end`


class Advance(Protocol):
    def __call__(self, done: int = 1, *, tokens: int = 0) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.completed, task.fields["unit"], task.fields["tokens"], task.elapsed or 0.0))


def _rate(done: float, unit: str, tokens: int, elapsed: float) -> str:
    """Format tokens per second if tokens are counted, otherwise units per second."""
    count, counted = (tokens, "tokens") if tokens else (done, unit)
    return f"{count / elapsed:,.0f} {counted}/s" if elapsed > 0 and count else ""


@contextmanager
def track(title: str, total: int, unit: str = "rows") -> Iterator[Advance]:
    """Show the progress of `total` units of work, with rate and remaining time, in the main process.

    Yields a function that takes the number of units just finished, and their tokens.
    """
    console = Console(stderr=True)
    if not is_main_process():
        yield lambda done=1, *, tokens=0: None
    elif console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total, unit=unit, tokens=0)
            counted = 0

            def advance(done: int = 1, *, tokens: int = 0) -> None:
                nonlocal counted
                counted += tokens
                progress.update(task, advance=done, tokens=counted)

            yield advance
    else:
        yield _Lines(title, total, unit)


class _Lines:
    """Progress as one line per minute on standard error; silent if the work takes less than a minute."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.tokens = 0
        self.started = self.last_line = time.monotonic()

    def __call__(self, done: int = 1, *, tokens: int = 0) -> None:
        self.done += done
        self.tokens += tokens
        now = time.monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        elapsed = now - self.started
        rate = _rate(self.done, self.unit, self.tokens, elapsed)
        left = elapsed / max(self.done, 1) * (self.total - self.done)
        line = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {rate}, {left / 60:.0f} min left"
        print(line, file=sys.stderr, flush=True)


def show(table: Table) -> None:
    """Print a table on standard output."""
    print(as_text(table), flush=True)


def as_text(table: Table) -> str:
    """Render a table for standard output, with secrets redacted and control characters escaped.

    On a terminal, rich draws the table and respects NO_COLOR. Otherwise every row is one line of any width, so that
    nothing is truncated and `grep` finds a row.
    """
    console = Console()
    for column in table.columns:
        column.header, column._cells = _inert(column.header), [_inert(cell) for cell in column.cells]
    table.title, table.caption = _inert(table.title), _inert(table.caption)
    if not console.is_terminal:
        return _aligned(table)
    notes, table.caption = table.caption, None  # rich would wrap them at the width of the table
    with console.capture() as captured:
        console.print(table)
        if notes:
            console.print(notes)
    return captured.get().rstrip("\n")


def table(
    columns: Iterable[str], right: Collection[str] = (), title: str | None = None, notes: Iterable[str] = ()
) -> Table:
    """Create an empty table; columns are left-aligned, except those in `right`, and `notes` are lines below it."""
    created = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    created.caption, created.caption_justify = Text("\n".join(notes)), "left"
    created.title = None if title is None else Text(title)
    for name in columns:
        created.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    return created


def lines(pairs: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Create a table of names and texts, which are printed without markup."""
    table = Table(title=None if title is None else Text(printable(title)), title_justify="left", show_header=False)
    table.box, table.padding = None, (0, 2, 0, 0)
    table.add_column(style="bold", max_width=26, overflow="fold")
    table.add_column(overflow="fold")
    for name, what in pairs:
        table.add_row(Text(printable(name)), Text(printable(what)))
    return table


def end(next_step: str, written: Path) -> None:
    """Print the suggested next step, with the path in place of `{}`, and as the last line the path that was written."""
    print(f"Next: {next_step.format(shlex.quote(str(relative(written))))}")
    print(written, flush=True)


def relative(path: Path) -> Path:
    """The path relative to the current folder, if it is in it."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


def decimals(value: float | None) -> str:
    """Format a value with three decimals, or as a dash if it is missing."""
    return "-" if value is None else f"{value:.3f}"


def shortened(text: str, longest: int) -> str:
    """Truncate a text to `longest` characters, with an ellipsis at the end."""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def _inert(cell: Any) -> Any:
    """Redact secrets and escape control characters in a cell, except line ends."""
    shown = "" if cell is None else _text(cell).plain
    inert = printable_lines(redact(shown))
    return cell if inert == shown else Text(inert)


def _aligned(table: Table) -> str:
    """Format a table as plain text: its title, one line per row with aligned columns, and its caption."""
    columns = []
    for column in table.columns:
        cells = [_plain(cell) for cell in (column.header, *column.cells)]
        if not table.show_header:
            del cells[0]
        width = max(map(cell_len, cells), default=0)
        padding = [" " * (width - cell_len(cell)) for cell in cells]
        if column.justify == "right":
            columns.append([space + cell for cell, space in zip(cells, padding, strict=True)])
        else:
            columns.append([cell + space for cell, space in zip(cells, padding, strict=True)])
    text_lines = [_plain(table.title)] if table.title else []
    text_lines += ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    if table.caption:
        text_lines.append(_plain(table.caption, "\n"))
    return "\n".join(text_lines)


def _plain(cell: RenderableType, line_end: str = " ") -> str:
    return _text(cell).plain.replace("\n", line_end)


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
