"""Tables as text: in the width and colours of a terminal, as aligned lines without control characters elsewhere."""

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def show(table: Table) -> None:
    """Print a table on standard output."""
    print(as_text(table), flush=True)


def as_text(table: Table) -> str:
    """A table as it would stand on standard output.

    On a terminal rich draws it, and obeys NO_COLOR. Elsewhere every row is one line, as wide as it needs, so that
    nothing is cut and `grep` finds a row.
    """
    console = Console()
    if not console.is_terminal:
        return _aligned(table)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def lines(pairs: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """A table of names and what there is to say of them; texts are taken as they are, without markup."""
    table = Table(title=None if title is None else Text(printable(title)), title_justify="left", show_header=False)
    table.box, table.padding = None, (0, 2, 0, 0)
    table.add_column(style="bold", max_width=26, overflow="fold")
    table.add_column(overflow="fold")
    for name, what in pairs:
        table.add_row(Text(printable(name)), Text(printable(what)))
    return table


def printable(text: str) -> str:
    r"""The text with what could move the cursor, colour or hide something written out, as in \x1b and \n.

    That is every control and format character, line ends and half surrogates.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _aligned(table: Table) -> str:
    columns = [[_plain(c.header) if table.show_header else "", *map(_plain, c.cells)] for c in table.columns]
    right = [c.justify == "right" for c in table.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    made = [] if table.title is None else [_plain(table.title)]
    for row in list(zip(*columns, strict=True))[0 if table.show_header else 1 :]:
        cells = (
            " " * (width - cell_len(cell)) + cell if to_right else cell + " " * (width - cell_len(cell))
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        made.append("  ".join(cells).rstrip())
    if table.caption is not None:
        made.append(_plain(table.caption, "\n"))
    return "\n".join(made)


def _plain(cell: RenderableType, line_end: str = " ") -> str:
    text = cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    return text.plain.replace("\n", line_end)
