"""Log scores, rows, costs and evaluations to the tracker.

N rows
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.column_forms import Example
from lpsel.report.points import Interval, metrics_of, win_rate_details
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.table import ScoreTable
from lpsel.selection.select import Selection
from lpsel.storage import finite
from lpsel.tracking.tracker import Distribution, Logged, Rows, Tracker

TEXT_LENGTH = 2000  # maximum characters of a prompt or response in the table of rows


def log_scores(tracker: Tracker, table: ScoreTable) -> None:
    """Log histograms of NLL, LP and LP_app by epoch, and the median NLL as a curve."""
    if not tracker.enabled:
        return
    for epoch, nll_N in enumerate(table.nll):
        values: dict[str, Logged] = {"records/epoch": epoch, "records/nll": Distribution(nll_N)}
        if np.isfinite(nll_N).any():
            values["records/median_nll"] = float(np.median(nll_N[np.isfinite(nll_N)]))
        if epoch:
            for metric in ("lp", "lp_app"):
                values[f"records/{metric}"] = Distribution(learning_percentage(table, metric, epoch=epoch))
        tracker.log(values)


def log_rows(
    tracker: Tracker,
    selection: Selection,
    positions: Mapping[str, NDArray[np.int64]],
    examples: Mapping[int, Example],
) -> None:
    """Log histograms of the scores, and a table of the first, the last and random rows of the ranking.

    `positions` in the selection are by group, `examples` by row number.
    """
    if not tracker.enabled:
        return
    table = selection.table
    columns = ["rows", "index", "score", "chosen", "cluster", "response tokens"]
    columns += [*(f"nll_{epoch}" for epoch in range(len(table.nll))), "prompt", "response"]
    rows = []
    for group, group_positions in positions.items():
        for position in group_positions:
            row = [
                group,
                table.index[position],
                selection.score[position],
                selection.selected[position],
                None if table.cluster is None else table.cluster[position],
                table.response_tokens[position] if table.tokens_known else None,
                *table.nll[:, position],
                *_texts(examples[int(table.index[position])]),
            ]
            rows.append(row)
    values: dict[str, Logged] = {
        "rows": Rows(columns, finite(rows)),
        f"scores/{selection.spec.name}": Distribution(selection.score),
        f"scores/{selection.spec.name}, chosen": Distribution(selection.score[selection.selected]),
    }
    tracker.log(values)


def log_diagnosis(tracker: Tracker, diagnosis: Mapping[str, Any]) -> None:
    """Log the diagnosis of a selection as numbers, and its warnings as a table."""
    counted = ("clusters", "known", "learned", "rising", "duplicates", "near_duplicates")
    numbers = {f"spearman/{name}": value for name, value in (diagnosis["spearman"] or {}).items()}
    numbers |= {name: diagnosis[name] for name in counted}
    numbers |= {f"median_response/{rows}": diagnosis["median_response"][rows] for rows in ("selected", "all")}
    values: dict[str, Logged] = {
        f"diagnosis/{name}": float(value) for name, value in numbers.items() if value is not None and np.isfinite(value)
    }
    if warnings := diagnosis["warnings"]:
        values["diagnosis/warnings"] = Rows(["warning"], [[warning] for warning in warnings])
    tracker.log(values)


def log_ledger(tracker: Tracker, ledger: Mapping[str, Any]) -> None:
    """Log the cost ledger as a table and as numbers."""
    parts = ("selection", "training", "total", "everything")
    units = list(ledger[parts[0]])
    values: dict[str, Logged] = {f"ledger/{part}_{unit}": float(ledger[part][unit]) for part in parts for unit in units}
    values["ledger/saved_percent"] = 100 * ledger["saved"]["share"]
    values["ledger/break_even_percent"] = ledger["break_even_pct"]
    rows = [[part, *(float(ledger[part][unit]) for unit in units)] for part in parts]
    tracker.log(values | {"ledger": Rows(["of", *units], rows)})


def log_evaluation(tracker: Tracker, result: Mapping[str, Any]) -> None:
    """Log all metrics of all models as a table and as numbers `MODEL/METRIC`, with `/low` and `/high`."""
    rows: list[list[Any]] = []
    values: dict[str, Logged] = {}
    for entry in result.get("models") or [result]:
        name = str(entry.get("name", entry.get("model")))
        metrics = metrics_of(entry)
        if "win_rate" in metrics:
            details = win_rate_details(entry)
            metrics |= {detail: Interval(value) for detail, value in details.items() if value is not None}
        for metric, interval in metrics.items():
            rows.append([name, metric, *interval])
            named = zip(("", "/low", "/high"), interval, strict=True)
            values |= {f"{name}/{metric}{end}": value for end, value in named if value is not None}
    if rows:
        values["evaluation"] = Rows(["model", "metric", "value", "low", "high"], rows)
    if warnings := result.get("warnings"):
        values["warnings"] = Rows(["warning"], [[sentence] for sentence in warnings])
    if values:
        tracker.log(values)


def _texts(example: Example) -> tuple[str, str]:
    """Return the prompt and the response of a row, truncated."""
    response = [turn.content for turn in example.turns if turn.role == "assistant"]
    prompt = [turn.content for turn in example.turns if turn.role != "assistant"]
    prompt += [example.input] if example.input else []
    return "\n".join(prompt)[:TEXT_LENGTH], "\n".join(response)[:TEXT_LENGTH]
