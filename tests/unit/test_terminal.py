"""Tables on a terminal, and elsewhere; a terminal is a real one, made by the operating system."""

import re
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from lpsel.console import as_text, lines, printable

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-9]")
PRINT_TABLE = """
from rich.table import Table
from lpsel.console import show
table = Table("name", "figure", title="runs")
table.add_row("[cyan]one[/]", "1.5\\n[1.0, 2.0]")
show(table)
"""


def test_a_terminal_has_lines_and_colours_and_no_color_takes_the_colours_away(on_a_terminal):
    assert COLOUR.search(on_a_terminal("-c", PRINT_TABLE))
    quiet = on_a_terminal("-c", PRINT_TABLE, NO_COLOR="1")
    assert not COLOUR.search(quiet)
    assert "│ one".encode() in quiet


def test_elsewhere_a_row_is_a_line_without_control_characters():
    done = subprocess.run([sys.executable, "-c", PRINT_TABLE], capture_output=True, text=True, check=True)
    assert done.stdout == "runs\nname  figure\none   1.5 [1.0, 2.0]\n"


def test_columns_are_aligned_as_they_are_shown():
    table = Table("name")
    table.add_column("n", justify="right")
    table.add_row("漢字", "5")  # two columns of a terminal each
    table.add_row(Text("[red]"), "10")
    assert as_text(table) == "name    n\n漢字    5\n[red]  10"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("one\ntwo\r\t", r"one\ntwo\r\t"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\ud800", r"\ud800"),
        ("[bold]é 漢字[/bold]", "[bold]é 漢字[/bold]"),
    ],
)
def test_what_could_move_the_cursor_is_written_out(text, shown):
    assert printable(text) == shown
    assert as_text(lines([("name", text)])) == f"name  {shown}"
