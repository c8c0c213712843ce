"""The one exception a user's mistake ends in, and what values are asked before it."""

import errno
import math


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
