"""The one exception a user's mistake ends in, and what values are asked before it."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_REACH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one line that names the value and the remedy; commands print it and exit with status 2.
    """


def is_whole(value: object) -> bool:
    """Whether a value of a configuration is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value of a configuration is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def files_within_reach() -> Iterator[None]:
    """A file that the system does not let us read or write is the user's to mend: a UserError names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_REACH or error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}; check the name, and that you may read it (or write there)."
        ) from error


def no_room(error: BaseException) -> bool:
    """Whether an exception, of any library, says that a disk is full, a quota used up, or a file at its limit."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors, in Rust, gives the number in its text alone.
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def shown(error: BaseException) -> str:
    """`first_line` of an exception that repeats bytes of a file: at most 200 characters, all of them printable."""
    return "".join(c if c.isprintable() else "?" for c in first_line(error)[:200])


class ToldElsewhere(UserError):
    """A mistake that the main process prints; the other ranks end with it in silence."""
