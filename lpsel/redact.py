"""Remove API keys and tokens in the environment, and control characters, from printed, logged and written text."""

import json
import logging
import os
import re
import sys
import traceback
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

# Matches whole words: TOKENIZER_NAME is not a secret, and neither is the path in HF_TOKEN_PATH.
SECRET_NAME = re.compile(
    r"(?:key|token|secret|passw(?:or)?d|credential)s?(?![a-z])(?!\w*_(?:path|file|dir|name)$)", re.IGNORECASE
)
MIN_CHARACTERS = 8  # a shorter value would match inside words

_registered: set[str] = set()


def register_secret(value: str) -> None:
    """Treat a value as a secret even if the name of its variable does not look like one."""
    _registered.add(value)


def redact(text: str) -> str:
    """Replace every secret in the environment by ***, including its JSON and URL-quoted forms."""
    named = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    pattern = _pattern(frozenset(named | _registered))
    return pattern.sub("***", text) if pattern else text


def redacted(value: Any) -> Any:
    """Redact all strings in a JSON-like value."""
    if isinstance(value, dict):
        return {redacted(name): redacted(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v) for v in value]
    return redact(value) if isinstance(value, str) else value


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Pattern that matches all quoted forms of the secrets, longest first; None without secrets."""
    forms: set[str] = set()
    for secret in map(str.strip, secrets):
        if len(secret) < MIN_CHARACTERS:
            continue
        forms |= {secret, " ".join(secret.split()), secret.encode("unicode_escape", "surrogatepass").decode()}
        forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        forms |= {quote(secret, "", errors="replace"), quote_plus(secret, errors="replace")}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def printable(text: str) -> str:
    r"""Escape control and format characters, line ends and lone surrogates, as in \x1b and \n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """Apply `printable` to every line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def protect_output() -> None:
    """Redact all log records and tracebacks of this process from now on."""
    logging.setLogRecordFactory(_log_record)
    sys.excepthook = print_traceback


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook that redacts tracebacks: a server's error message may contain the key that was sent."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _log_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    if isinstance(record.args, tuple):
        record.args = tuple(arg if isinstance(arg, int | float) else printable_lines(str(arg)) for arg in record.args)
    try:
        record.msg, record.args = redact(record.getMessage()), None
    except (TypeError, ValueError):  # arguments that do not fit the message: the handler reports it
        return record
    if record.exc_info:
        record.exc_text = redact("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
    return record
