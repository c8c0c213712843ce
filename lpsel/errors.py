"""The one exception a user's mistake ends in."""


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one line that names the value and the remedy; commands print it and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class ToldElsewhere(UserError):
    """A mistake that the main process prints; the other ranks end with it in silence."""
