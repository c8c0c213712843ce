"""Format tables for the page: round numbers, merge intervals with their values, and drop empty columns.

CSV files contain all columns at full precision.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lpsel.evaluation.statistics import with_interval

COUNTS = re.compile(r"([\d,]+)(?: to [\d,]+)?")  # a count, or a range of counts
LINKED = ("folder", "evaluation")  # link targets of a row's first cell, in order of preference; not shown


class Cell(NamedTuple):
    """Text of a cell, and its sort key."""

    text: str
    value: Any
    is_number: bool


class Shown(NamedTuple):
    """A table on the page: column names, whether they are numeric, and rows with the folder that they link to."""

    columns: dict[str, bool]
    rows: list[tuple[str | None, list[Cell]]]


def readable(table: Sequence[dict[str, Any]], omit: Sequence[str] = ()) -> Shown:
    """Format a table, without columns that are empty, merged into another column, or in `omit`."""
    names = [name for name in table[0] if name not in (*LINKED, *omit) and not _is_end(name, table[0])]
    names = [name for name in names if any(row[name] is not None for row in table)]
    rows = []
    for row in table:
        folder = next((row[key] for key in LINKED if row.get(key)), None)
        rows.append((folder, [_cell(row, name) for name in names]))
    is_number = [any(cells[i].is_number for _, cells in rows) for i in range(len(names))]
    return Shown(dict(zip(names, is_number, strict=True)), rows)


def _is_end(name: str, row: dict[str, Any]) -> bool:
    """Whether the column is the lower or upper end of another column's interval."""
    base, _, end = name.rpartition(" ")
    return end in ("low", "high") and (base or "value") in row


def _cell(row: dict[str, Any], name: str) -> Cell:
    """Format a column of a row, with its interval if there is one; a count in text is sorted by its number."""
    value = row[name]
    prefix = "" if name == "value" else f"{name} "  # of the columns with the ends of the interval
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_rate = "%" in name or (row.get("metric") == "win_rate" and f"{prefix}low" in row)
    text = f"{value:.1f}" if is_number and is_rate else shown(value)
    if low is not None and high is not None:
        digits = 1 if is_rate else _decimals(max(abs(end) for end in (value, low, high)))
        text = with_interval(value, low, high, f",.{digits}f")
    if isinstance(value, str) and (counts := COUNTS.fullmatch(value)):
        value = counts[1].replace(",", "")
    return Cell(text, "" if value is None else value, is_number)


def shown(value: Any) -> str:
    """Format a value: numbers with three or four digits, large numbers in scientific notation."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1e8 or 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e+", "e")
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.{_decimals(abs(value))}f}"


def capitalized(text: str) -> str:
    """Capitalize the first letter, and keep the others."""
    return text[:1].upper() + text[1:]


def spread(values: Iterable[float], text: Callable[[float], str]) -> str:
    """Format a range of values, such as 5 to 10, or a single value if both ends have the same text."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys([text(ordered[0]), text(ordered[-1])]))


def _decimals(size: float) -> int:
    """Number of decimals that leaves three or four digits of a number of this size."""
    if size < 10:
        return 3
    return 1 if size < 1000 else 0
