"""Progress on a real terminal, and as lines elsewhere."""

import re

import pytest

from lpsel import console as progress

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
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_there_is_a_line_a_minute_with_rate_and_time_left(clock, capsys):
    with progress.track("Recording", total=600, unit="rows") as advance:
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
    with progress.track("Recording", total=5) as advance:
        clock[0] += 59
        advance(5)
    assert capsys.readouterr().err == ""
