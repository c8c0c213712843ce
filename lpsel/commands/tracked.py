"""What commands tell the tracker of scores, rows, costs and evaluations, in the order in which they know it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel.data.dataset import Example
from lpsel.report.runs import BESIDE, number
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.table import ScoreTable
from lpsel.selection.select import Selection
from lpsel.tracking.tracker import Distribution, Logged, Rows, Tracker

# E recorded epochs (0 = before training), N rows

TEXT = 2000  # characters of a row's texts that are shown


def track_records(tracker: Tracker, table: ScoreTable) -> None:
    """How NLL, LP and LP_app are distributed over the rows, epoch by epoch, with the median NLL as a curve."""
    if not tracker.enabled:
        return
    for epoch, nll_N in enumerate(table.nll):
        known_N = nll_N[np.isfinite(nll_N)]
        values: dict[str, Any] = {"records/epoch": epoch, "records/nll": Distribution(nll_N)}
        if len(known_N):
            values["records/median_nll"] = float(np.median(known_N))
        if epoch:
            for metric in ("lp", "lp_app"):
                values[f"records/{metric}"] = Distribution(learning_percentage(table, metric, epoch=epoch))
        tracker.log(values)


def track_rows(
    tracker: Tracker,
    selection: Selection,
    table: ScoreTable,
    shown: Mapping[str, NDArray[np.int64]],
    found: Mapping[int, Example],
) -> None:
    """A table of rows: the first and the last of the ranking (by LP the hardest and the easiest) and some at random.

    Args:
        shown: places of the rows in the selection, by what they are.
        found: the rows themselves, by number.
    """
    if not tracker.enabled:
        return
    epochs = range(len(table.nll))
    rows = [
        [
            what,
            int(selection.index[at]),
            _number(selection.score[at]),
            bool(selection.selected[at]),
            None if selection.cluster is None else int(selection.cluster[at]),
            int(table.response_tokens[at]) if table.tokens_known else None,
            *(_number(table.nll[epoch, at]) for epoch in epochs),
            *_texts(found[int(selection.index[at])]),
        ]
        for what, places in shown.items()
        for at in places
    ]
    columns = ["rows", "index", "score", "chosen", "cluster", "response tokens", *(f"nll_{epoch}" for epoch in epochs)]
    scores = {f"scores/{selection.rule}": Distribution(selection.score)}
    chosen = {f"scores/{selection.rule}, chosen": Distribution(selection.score[selection.selected])}
    tracker.log({"rows": Rows([*columns, "prompt", "response"], rows), **scores, **chosen})


def track_ledger(tracker: Tracker, ledger: Mapping[str, Any]) -> None:
    """The cost ledger, as a table and as numbers that runs can be compared by."""
    parts = ("selection", "training", "total", "everything")
    spent = list(ledger[parts[0]])
    numbers = {f"ledger/{part}_{name}": float(ledger[part][name]) for part in parts for name in spent}
    numbers["ledger/saved_percent"] = 100 * ledger["saved"]["share"]
    numbers["ledger/break_even_percent"] = ledger["break_even_pct"]
    table = Rows(["of", *spent], [[part, *(float(ledger[part][name]) for name in spent)] for part in parts])
    tracker.log({**numbers, "ledger": table})


def track_evaluation(tracker: Tracker, result: Mapping[str, Any]) -> None:
    """Every figure of every model with its interval, as a table and as numbers, `NAME/METRIC`, and its ends."""
    rows: list[list[Any]] = []
    numbers: dict[str, Logged] = {}
    for model in result.get("models") or [result]:
        name = str(model.get("name", model.get("model")))
        for metric, ends in _figures(model).items():
            known = {end: number(value) for end, value in ends.items()}
            rows.append([name, metric, *(known.get(end) for end in ("value", "low", "high"))])
            numbers |= {
                f"{name}/{metric}" + ("" if end == "value" else f"/{end}"): value
                for end, value in known.items()
                if value is not None
            }
    if rows:
        tracker.log({**numbers, "evaluation": Rows(["model", "metric", "value", "low", "high"], rows)})


def _figures(model: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    """The figures of one model, each with `value` and, where there is an interval, `low` and `high`."""
    if "metrics" in model:
        return {metric: _with_ends(figure) for metric, figure in model["metrics"].items()}
    if "win_rate" not in model:  # people have yet to vote
        return {}
    beside = {name: {"value": model[name]} for name in BESIDE if name in model}
    return {"win_rate": {"value": model["win_rate"], "low": model["ci_low"], "high": model["ci_high"]}} | beside


def _with_ends(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Value, low and high; lm_eval gives a standard error, of which 1.96 to either side are 95 %."""
    value, error = number(figure.get("value")), number(figure.get("standard_error"))
    if value is None or error is None:
        return {end: figure.get(end) for end in ("value", "low", "high")}
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def _texts(example: Example) -> tuple[str, str]:
    """What is said to the assistant and what it says, cut to length."""
    said = [turn.content for turn in example.turns if turn.role == "assistant"]
    asked = [turn.content for turn in example.turns if turn.role != "assistant"]
    return "\n".join([*asked, *([example.input] if example.input else [])])[:TEXT], "\n".join(said)[:TEXT]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
