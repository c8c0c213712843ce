"""The result of a reference evaluation as a table for the terminal."""

from typing import Any

from rich.markup import escape
from rich.table import Table

COLUMNS = (
    ("NLL", "nll", 1.0, 3),
    ("perplexity", "perplexity", 1.0, 2),
    ("bits/byte", "bits_per_byte", 1.0, 3),
    ("exact match %", "exact_match", 100.0, 1),
    ("ROUGE-L %", "rouge_l", 100.0, 1),
)


def reference_table(result: dict[str, Any]) -> Table:
    """A row for every model, each figure above its 95 % interval; the baseline comes first.

    An interval of the difference to the baseline that leaves out 0 is marked with a star.
    """
    models = result["models"]
    notes = ["95 % bootstrap intervals over rows."]
    if len(models) > 1:
        notes.append(
            f"* differs from {escape(result['baseline'])}: the interval of the paired difference leaves out 0."
        )
    if len({model["tokenizer"] for model in models}) > 1:
        notes.append("Tokenizers differ: compare bits/byte, not NLL or perplexity.")
    table = Table(caption="\n".join(notes), caption_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("rows", justify="right")
    for title, *_ in COLUMNS:
        table.add_column(title, justify="right")
    for model in models:
        cells = [_cell(model, metric, scale, digits) for _, metric, scale, digits in COLUMNS]
        table.add_row(escape(model["name"]), f"{model['rows']:,}", *cells)
    return table


def _cell(model: dict[str, Any], metric: str, scale: float, digits: int) -> str:
    value, low, high = (model["metrics"][metric][part] for part in ("value", "low", "high"))
    if value is None:
        return "-"
    star = "*" if _differs(model, metric) else ""
    text = f"{value * scale:.{digits}f}{star}"
    return text if low is None or high is None else f"{text}\n[{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def _differs(model: dict[str, Any], metric: str) -> bool:
    difference = (model["difference"] or {}).get("nll" if metric == "perplexity" else metric)
    if difference is None or difference["low"] is None:
        return False
    return difference["low"] > 0 or difference["high"] < 0
