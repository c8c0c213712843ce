"""UserError, the exception for errors that the user can fix, and validators that raise it."""

import copy
import errno
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeGuard

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # includes an exceeded quota or file size limit
NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


class UserError(ValueError):
    """An error that the user can fix, formatted as one line: `NAME=VALUE: PROBLEM. HINT.`

    Commands print it without a traceback and exit with status 2.

    Attributes:
        name: the option, file or row with the error, such as `pct` or `rows.jsonl, line 3`.
        value: value of the option; None if the name is sufficient.
        problem: what is wrong with it, without a period at the end.
        hint: how to fix it, starting with a verb.
        location: file and line that the value was read from, printed first.
    """

    def __init__(
        self, name: object, value: object = None, problem: str = "", hint: str = "", location: str = ""
    ) -> None:
        super().__init__(name, value, problem, hint, location)
        self.name, self.value, self.problem, self.hint, self.location = str(name), value, problem, hint, location

    def __str__(self) -> str:
        text = self.name if self.value is None else f"{self.name}={self.value}"
        if self.problem:  # otherwise, the name is a message that was composed elsewhere
            sentences = filter(None, [self.problem, self.hint[:1].upper() + self.hint[1:]])
            text += ": " + " ".join(s if s.endswith(("?", ".")) else f"{s}." for s in sentences)
        return f"{self.location}: {text}" if self.location else text

    def at(self, location: object) -> "UserError":
        """Return the same error with the location of the value, such as a file and a line."""
        moved = copy.copy(self)
        moved.location = str(location)
        return moved

    def renamed(self, name: str, value: object = None) -> "UserError":
        """Return the same error with a different option name, for a command that uses that name."""
        return UserError(name, self.value if value is None else value, self.problem, self.hint, self.location)


class UnusableRow(UserError):
    """A row that cannot be used: it is an error, or skipped with `dataset.bad_rows=skip`.

    Attributes:
        kind: type of problem, without values of the row, such as `images`; skipped rows are counted by kind.
    """

    def __init__(self, *arguments: Any, kind: str = "", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kind = kind or self.problem


def skipped(error: UnusableRow, location: str, bad_rows: str, option: str = "dataset") -> str:
    """Return the kind of a skipped row; with bad_rows=error, raise the error with its location and this option."""
    if bad_rows == "skip":
        return error.kind
    skip = f"set {option}.bad_rows=skip to leave such rows out"
    located = error.at(location)
    located.hint = f"{error.hint}, or {skip}" if error.hint else skip
    raise located from None


class ReportedByMainProcess(UserError):
    """An error that the main process prints; other ranks exit without a message."""


def check_choice(name: str, value: object, choices: Collection[object], hint: str = "") -> None:
    """Raise a UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(name, value, f"must be one of {', '.join(map(str, choices))}", hint)


def check_flag(name: str, value: object) -> None:
    """Raise a UserError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(name, value, "must be true or false", f"set {name}=true or {name}=false")


def check_int(name: str, value: object, minimum: int, *, what: str = "an integer", hint: str = "") -> None:
    """Raise a UserError unless `value` is an integer >= `minimum`; booleans are not integers."""
    if not is_int(value) or value < minimum:
        raise UserError(name, value, f"must be {what}, at least {minimum}", hint)


def check_number(
    name: str, value: object, *, minimum: float | None = None, above: float | None = None, hint: str = ""
) -> None:
    """Raise a UserError unless `value` is a finite number, >= `minimum` or > `above`."""
    if is_number(value) and (minimum is None or value >= minimum) and (above is None or value > above):
        return
    bound = ""
    if minimum is not None:
        bound = f", at least {minimum:g}"
    elif above is not None:
        bound = f" greater than {above:g}"
    raise UserError(name, value, f"must be a number{bound}", hint)


def check_package(package: str, extra: str, name: str, value: object) -> None:
    """Raise a UserError unless the optional package that the option `name` needs is installed."""
    if find_spec(package) is None:
        raise UserError(name, value, f"needs the package {package}", f"run pip install 'lpsel[{extra}]'")


def is_int(value: object) -> TypeGuard[int]:
    """Whether a configuration value is an integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number that a float can hold; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@contextmanager
def resource_errors() -> Iterator[None]:
    """Convert errors about disk space, GPU memory, killed workers or permissions to a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, text = getattr(error, "errno", None), str(error)
        # safetensors, written in Rust, has the error number only in its message.
        if number in DISK_FULL or any(f"(os error {full})" in text for full in DISK_FULL):
            hint = "free some space, and run the same command again to resume"
            raise UserError(first_line(error), problem="the disk is full", hint=hint) from error
        if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
            hint = "set smaller train_tokens= and score_tokens=, or see docs/guides/memory.md for more options"
            raise UserError("GPU", problem=f"out of memory ({first_line(error)})", hint=hint) from error
        if isinstance(error, BrokenExecutor):
            problem = "has ended, often because the system has no memory left"
            hint = "free some memory, and run the same command again"
            raise UserError("a worker process", problem=problem, hint=hint) from error
        if isinstance(error, OSError) and number in NOT_PERMITTED and error.filename is not None:
            hint = "check the path and its permissions"
            raise UserError(error.filename, problem=error.strerror or "not accessible", hint=hint) from error
        raise


def first_line(error: BaseException) -> str:
    """First line of a library's error message, without a final period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def printable_line(error: BaseException) -> str:
    """`first_line` of an error that may contain bytes of a file: at most 200 characters, all printable."""
    return "".join(c if c.isprintable() else "?" for c in first_line(error)[:200])
