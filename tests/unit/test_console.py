"""Tables and progress on a real terminal, and as lines elsewhere."""

import re
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from lpsel import console
from lpsel.console import as_text, lines
from lpsel.redact import printable

COLOR = re.compile(rb"\x1b\[[0-9;]*3[0-9]")
PRINT_TABLE = """
from rich.table import Table
from lpsel.console import show
table = Table("name", "figure", title="runs")
table.add_row("[cyan]one[/]", "1.5\\n[1.0, 2.0]")
show(table)
"""


def test_a_terminal_gets_lines_and_colors_unless_no_color_is_set(on_a_terminal):
    assert COLOR.search(on_a_terminal("-c", PRINT_TABLE))
    quiet = on_a_terminal("-c", PRINT_TABLE, NO_COLOR="1")
    assert not COLOR.search(quiet)
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


WORK = """
import time
from lpsel.console import track
with track("Recording", total=40, unit="batches") as advance:
    for _ in range(40):
        time.sleep(0.02)
        advance(1, tokens=100)
"""


def test_a_terminal_shows_a_bar_the_rate_and_the_time_left(on_a_terminal):
    shown = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", on_a_terminal("-c", WORK)).decode()
    assert "Recording ━" in shown
    assert "40/40" in shown
    rates = [int(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) tokens/s", shown)]
    assert 500 < rates[-1] <= 5_000  # at most 100 tokens in 0.02 s
    assert re.search(r"\d:\d\d:\d\d", shown)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_there_is_a_line_a_minute_with_rate_and_time_left(clock, capsys):
    with console.track("Recording", total=600, unit="rows") as advance:
        for _ in range(20):  # 200 s, 10 rows of 5 tokens in 10 s
            clock[0] += 10
            advance(10, tokens=50)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "Recording: 60 of 600 rows, 5 tokens/s, 9 min left",
        "Recording: 120 of 600 rows, 5 tokens/s, 8 min left",
        "Recording: 180 of 600 rows, 5 tokens/s, 7 min left",
    ]


def test_work_of_less_than_a_minute_says_nothing_elsewhere(clock, capsys):
    with console.track("Recording", total=5) as advance:
        clock[0] += 59
        advance(5)
    assert capsys.readouterr().err == ""


HOSTILE = "\x1b]0;pwned\x1b[2Jname"
HOSTILE_TABLE = f"""
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from lpsel.console import show
name = {HOSTILE!r}
table = Table(escape(name), escape(name), title=escape(name), caption=f"{{escape(name)}}\\nsk-0123456789-secret")
table.add_row(escape(name), Text(name))
show(table)
"""


def test_no_cell_title_or_caption_moves_the_cursor_of_a_terminal(on_a_terminal):
    shown = on_a_terminal("-c", HOSTILE_TABLE, NO_COLOR="1", MY_KEY="sk-0123456789-secret")
    assert b"\x1b]0;" not in shown
    assert b"\x1b[2J" not in shown
    assert b"sk-0123456789" not in shown
    assert rb"\x1b]0;pwned\x1b[2Jname" in shown


def test_elsewhere_tables_have_no_control_characters_or_secrets_either():
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE_TABLE], env={"MY_KEY": "sk-0123456789-secret"}, capture_output=True, check=True
    )
    escaped = rb"\x1b]0;pwned\x1b[2Jname"
    assert done.stdout.count(escaped) == 6
    assert done.stdout.decode().replace("\n", "").isprintable()
    assert done.stdout.endswith(b"\n***\n")


@pytest.mark.parametrize(("folder", "argument"), [("runs/a b", "'runs/a b'"), ("../elsewhere", "{}/elsewhere")])
def test_a_command_ends_with_the_next_step_and_what_it_has_written(folder, argument, tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    written = (here / folder).resolve()
    console.end("lpsel report {}", written)
    assert capsys.readouterr().out == f"Next: lpsel report {argument.format(tmp_path)}\n{written}\n"
