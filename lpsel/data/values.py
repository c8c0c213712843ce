"""Convert and check single values of a row: text, and JSON in text."""

import json
import math
from decimal import Decimal
from typing import Any

from lpsel.errors import UnusableRow, first_line

MARKS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "false": False, "true": True}
# Thai, Lao, Burmese, Khmer, Japanese and Chinese characters, each of which is a word; part of a regular expression
WITHOUT_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
KINDS = {"list": "a list as text", "dict": "an object as text"}


def text_of(value: Any, column: str) -> str:
    """Convert a value to text: null and NaN become empty, numbers and booleans are written as in JSON.

    Raises:
        UnusableRow: the value is of another type or infinite, or contains half of a surrogate pair.
    """
    if isinstance(value, str):
        if not value.isascii():
            check_unicode(value, column)
        return value
    if is_null(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        problem, kind = "is an infinite or too large number", "an infinite number as text"
        raise UnusableRow(f"column {column}", None, problem, "write it as a string", kind=kind)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):  # from Parquet
        return f"{value:f}"
    problem = f"must be text, found {described(value)}"
    kind = KINDS.get(type(value).__name__, f"{type(value).__name__} as text")
    raise UnusableRow(f"column {column}", None, problem, "convert it to a string", kind=kind)


def check_unicode(value: Any, column: str) -> None:
    """Raise an UnusableRow if any text in a JSON value contains half of a surrogate pair."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        problem, kind = "contains half of a surrogate pair, which is not valid Unicode", "half a surrogate pair"
        raise UnusableRow(f"column {column}", None, problem, "fix the text", kind=kind) from None


def is_null(value: Any) -> bool:
    """Return whether a value is null or NaN, which pandas writes for missing values."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def mark_of(value: Any) -> Any:
    """Parse a mark such as `weight` or `train`, which is text in CSV, as a number or boolean if possible."""
    return MARKS.get(value.strip().lower(), value) if isinstance(value, str) else value


def is_empty(value: Any) -> bool:
    """Return whether a value is null, NaN or empty text, or a list or object with only such values."""
    if isinstance(value, dict | list):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return is_null(value) or value == ""


def without_nulls(value: Any) -> Any:
    """Remove null fields from the objects in a JSON value; Arrow adds them if another row has a value."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if not is_null(item)}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def parsed(text: str, column: str) -> Any:
    """Parse text as JSON.

    Raises:
        UnusableRow: the text is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        problem = f"{text[:40]!r} is not valid JSON ({first_line(error)})"
        raise UnusableRow(f"column {column}", None, problem, "fix or remove the row", kind="invalid JSON") from None


def described(value: Any) -> str:
    """Format a value for error messages."""
    return "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:40]!r}"
