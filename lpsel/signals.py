"""Being told to end: Ctrl+C, a batch system's SIGTERM, the SIGUSR1 that SLURM can send ahead of a job's end."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IMPATIENT = 3.0  # seconds after which a second Ctrl+C means now; torchrun hands one on twice


class Ended(BaseException):
    """A signal ends this command. No Exception, so that nothing that goes on after a failure goes on after this.

    Attributes:
        status: the exit status, 128 and the signal's number.
        together: whether all ranks end with it.
    """

    def __init__(self, number: int, kept: str = "what is finished is kept", together: bool = False) -> None:
        name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        super().__init__(f"{name}; {kept}; the same command goes on from there")
        self.status, self.together = 128 + number, together


class _Told:
    """Which signal has come, and whether the code that runs ends at a place of its own choice."""

    number: int | None = None
    when = 0.0
    waits = False


def told() -> int | None:
    """The signal that has come while ending was put off, None where none has."""
    return _Told.number


@contextmanager
def endings() -> Iterator[None]:
    """Within, a signal raises `Ended`. Signals that something else handles (submitit, a test) stay with that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, _handle) for number in SIGNALS if signal.getsignal(number) in free}
    try:
        yield
    finally:
        _Told.number = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_off() -> Iterator[None]:
    """Within `endings`, a signal is only noted: the code looks at `told` where it can save, and raises `Ended`.

    Raises:
        Ended: at the end, for a signal that nothing has looked at.
    """
    _Told.waits = True
    try:
        yield
    finally:
        _Told.waits = False
    if _Told.number is not None:
        raise Ended(_Told.number)


def _handle(number: int, _frame: Any) -> None:
    now = time.monotonic()
    if _Told.number is None:
        _Told.number, _Told.when = number, now
        if not _Told.waits:
            raise Ended(number)
    elif number == signal.SIGINT and now - _Told.when > IMPATIENT:
        _Told.when = now
        raise Ended(number)
