"""Progress of long work: a bar on a terminal, a line a minute elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lpsel.distributed import is_main_process

SECONDS_BETWEEN_LINES = 60.0


class Advance(Protocol):
    def __call__(self, done: int = 1, *, tokens: int = 0, note: str = "") -> None: ...


class _Rate(ProgressColumn):
    """Tokens per second where tokens are counted, else units per second."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        tokens = task.fields["tokens"]
        done, unit = (tokens, "tokens") if tokens else (task.completed, task.fields["unit"])
        return Text(_rate(done, elapsed, unit))


def _rate(done: float, elapsed: float, unit: str) -> str:
    return f"{done / elapsed:,.0f} {unit}/s" if elapsed > 0 and done else ""


@contextmanager
def track(title: str, total: int, unit: str = "rows") -> Iterator[Advance]:
    """Show how far `total` units of work have come, with their rate and the time left.

    Yields a function to call with the units just done, the tokens in them where tokens are what costs, and a
    short note to show behind the bar. Only the main process shows anything.
    """
    console = Console(stderr=True)
    if not is_main_process():
        yield lambda done=1, *, tokens=0, note="": None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total, unit=unit, tokens=0, note="")
            counted = 0

            def advance(done: int = 1, *, tokens: int = 0, note: str = "") -> None:
                nonlocal counted
                counted += tokens
                progress.update(task, advance=done, tokens=counted, note=note)

            yield advance
    else:
        yield _Lines(title, total, unit)


class _Lines:
    """A line on standard error once a minute, and none for work that is done before the first is due."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.tokens = 0
        self.started = self.last_line = time.monotonic()

    def __call__(self, done: int = 1, *, tokens: int = 0, note: str = "") -> None:
        self.done += done
        self.tokens += tokens
        now = time.monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        elapsed = now - self.started
        rate = _rate(self.tokens, elapsed, "tokens") if self.tokens else _rate(self.done, elapsed, self.unit)
        left = elapsed / max(self.done, 1) * (self.total - self.done)
        line = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {rate}, {left / 60:.0f} min left {note}"
        print(line.rstrip(), file=sys.stderr, flush=True)
