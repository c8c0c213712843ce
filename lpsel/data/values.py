"""Single values of a row: text, and JSON inside a text."""

import json
import math
from decimal import Decimal
from typing import Any

from lpsel.errors import UnusableRow, first_line

MARKS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "false": False, "true": True}
KINDS = {"list": "a list as text", "dict": "an object as text"}


def text_of(value: Any, column: str) -> str:
    """The text of a value: null and NaN are empty, numbers and booleans are as in JSON.

    Raises:
        UnusableRow: any other value, infinity, or half of a surrogate pair.
    """
    if isinstance(value, str):
        if not value.isascii():
            check_unicode(value, column)
        return value
    if is_null(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        problem, kind = "is a number that is infinite or too large", "an infinite number as text"
        raise UnusableRow(f"column {column}", None, problem, "write it as a string", kind=kind)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Decimal):  # of Parquet
        return f"{value:f}"
    problem = f"must be text, found {described(value)}"
    kind = KINDS.get(type(value).__name__, f"{type(value).__name__} as text")
    raise UnusableRow(f"column {column}", None, problem, "convert it to a string", kind=kind)


def check_unicode(value: Any, column: str) -> None:
    """Raise an UnusableRow if a text, or any text in a JSON value, contains half of a surrogate pair."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        problem, kind = "contains half of a surrogate pair, which is not valid Unicode", "half a surrogate pair"
        raise UnusableRow(f"column {column}", None, problem, "fix the text", kind=kind) from None


def is_null(value: Any) -> bool:
    """Whether a value is null or NaN, which pandas writes for a missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def mark_of(value: Any) -> Any:
    """The value of a mark such as `weight` or `train`, which is a text in CSV: its number or boolean if it is one."""
    return MARKS.get(value.strip().lower(), value) if isinstance(value, str) else value


def is_empty(value: Any) -> bool:
    """Whether a value is null, NaN, an empty text, or a list or an object that holds nothing else."""
    if isinstance(value, dict | list):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return is_null(value) or value == ""


def without_nulls(value: Any) -> Any:
    """A JSON value without the null fields of its objects, which Arrow adds where another row has a value."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if not is_null(item)}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def parsed(text: str, column: str) -> Any:
    """The value of a text that must be JSON.

    Raises:
        UnusableRow: it is not.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        problem = f"{text[:40]!r} is not valid JSON ({first_line(error)})"
        raise UnusableRow(f"column {column}", None, problem, "fix or remove the row", kind="invalid JSON") from None


def described(value: Any) -> str:
    """A value as error messages show it."""
    return "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:40]!r}"
