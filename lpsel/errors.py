"""The one exception a user's mistake ends in."""


class UserError(ValueError):
    """A mistake the user can mend.

    The message is one line that names the value and the remedy; commands print it and exit with status 2.
    """
