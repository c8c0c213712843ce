"""Keys and tokens from the environment stay out of everything that is printed or written."""

import os
import re
import sys
import traceback
from types import TracebackType

SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
MIN_CHARACTERS = 8  # a shorter value would match inside words

_registered: set[str] = set()


def register_secret(value: str) -> None:
    """Treat a value as a secret although the name of its variable does not show it."""
    if len(value) >= MIN_CHARACTERS:
        _registered.add(value)


def redact(text: str) -> str:
    """The text with *** in place of every secret in the environment."""
    named = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= MIN_CHARACTERS}
    for secret in sorted(named | _registered, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook: a server's message about a request may repeat the key that was sent."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
