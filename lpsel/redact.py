"""Keys and tokens of the environment stay out of what is printed or written."""

import os
import re
import sys
import traceback
from types import TracebackType

NAMED = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
SHORTEST = 8  # characters; a shorter value would be found in the middle of words

_keys: set[str] = set()


def remember(key: str) -> None:
    """Treat as a secret what was read from a variable whose name does not tell."""
    if len(key) >= SHORTEST:
        _keys.add(key)


def redact(text: str) -> str:
    """The text with *** in place of every secret of the environment."""
    found = {value for name, value in os.environ.items() if NAMED.search(name) and len(value) >= SHORTEST}
    for secret in sorted(found | _keys, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook: what a server said of a request may hold the key that was sent."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
