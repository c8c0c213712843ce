"""Group rows that are answers to the same prompt."""

import logging

import numpy as np
from numpy.typing import NDArray

from lpsel.data.dataset import Row, Source
from lpsel.data.values import is_empty
from lpsel.errors import UserError

log = logging.getLogger(__name__)


def prompt_numbers(source: Source, group: str) -> NDArray[np.float64]:
    """Prompt number of every row, (N,); unique for a row that is unusable or has no value in the column.

    Args:
        group: `prompt` for the text of the prompt, all turns before the last answer, or a column of the source.
    """
    numbers: dict[object, int] = {}
    number_N = np.fromiter((numbers.setdefault(_key(row, group), len(numbers)) for row in source), np.float64)
    if len(numbers) == len(number_N):
        hint = "set selection.group=COLUMN, or use another rule"
        raise UserError("selection.group", group, f"no two of {len(number_N):,} rows have the same prompt", hint)
    several = int((np.bincount(number_N.astype(np.int64)) > 1).sum())
    log.info("Prompts: %s different ones, %s with several answers", f"{len(numbers):,}", f"{several:,}")
    return number_N


def _key(row: Row, group: str) -> object:
    if row.unusable is not None:
        return ("row", row.index)
    if group == "prompt":
        return row.example.prompt().content_digest()
    if group not in row.raw:
        problem = f"row {row.index} has only {', '.join(map(str, row.raw))}"
        raise UserError("selection.group", group, problem, "name a column of every row, or prompt")
    value = row.raw[group]
    return ("row", row.index) if is_empty(value) else str(value)
