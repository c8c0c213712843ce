"""The report's figures of rows and costs: each takes runs and returns a figure, or None where they do not allow it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from lpsel.errors import UserError
from lpsel.integrity import Damaged, check_files
from lpsel.report.figures import QUIET, SERIES, heatmap, legend, new_axes, style
from lpsel.report.runs import Run
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.read import read_scores

log = logging.getLogger(__name__)

SELECTION = "selection.parquet"


def agreement_figure(runs: Sequence[Run], ink: str) -> Figure | None:
    """Spearman of the scores that different rules and scorers gave the same rows; needs two."""
    from scipy.stats import spearmanr

    scored: dict[str, Any] = {}
    data = None
    for run in runs:
        name = run.rule + ("" if run.scorer == "–" else f", {run.scorer}")
        data = data or run.get("dataset", "fingerprint")
        if name in scored or run.get("scores") is None or run.get("dataset", "fingerprint") != data:
            continue
        if (table := _selection(run, ["index", "score"])) is not None:
            scored[name] = table["score"]
    if len(scored) < 2 or len({len(s) for s in scored.values()}) > 1:
        return None
    names = list(scored)
    values = np.array([[spearmanr(scored[a], scored[b], nan_policy="omit").statistic for b in names] for a in names])
    return heatmap(names, values, "", ink)


def trajectory_figure(scores: Path, ink: str) -> Figure | None:
    """NLL by epoch of the hardest and the easiest tenth by LP_app(1): median and quartiles."""
    try:
        table = read_scores(scores)
    except UserError:
        return None
    if not table.epochs:
        return None
    nll_EN, lp_N, epochs = table.nll, learning_percentage(table, "lp_app"), len(table.nll)
    known = np.flatnonzero(np.isfinite(lp_N))
    if len(known) < 2:
        return None
    order = known[np.argsort(lp_N[known], kind="stable")]
    tenth = max(1, len(order) // 10)
    with style(ink):
        figure, axes = new_axes()
        for name, rows, colour in (
            ("hardest tenth", order[:tenth], SERIES[1]),
            ("easiest tenth", order[-tenth:], SERIES[0]),
        ):
            low, middle, high = np.nanpercentile(nll_EN[:, rows], [25, 50, 75], axis=1)
            axes.fill_between(range(epochs), low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(range(epochs), middle, marker="o", markersize=4, color=colour, label=name)
        axes.set_xticks(range(epochs))
        axes.set_xlabel("epochs of the scorer")
        axes.set_ylabel("NLL, nats per token")
        legend(axes)
    return figure


def length_figure(run: Run, ink: str) -> Figure | None:
    """Response tokens of chosen rows against all."""
    chosen = _selection(run, ["index", "selected"])
    scores = _table(Path(str(run.get("scores"))), ["index", "response_tokens"])
    if chosen is None or scores is None or not np.array_equal(chosen["index"], scores["index"]):
        return None
    selected, tokens = chosen["selected"].astype(bool), scores["response_tokens"]
    if not selected.any() or selected.all():
        return None
    top = max(2, int(np.percentile(tokens, 99)) + 1)
    bins = np.linspace(0, top, min(top, 40) + 1).tolist()
    with style(ink):
        figure, axes = new_axes()
        for name, of, colour in (("all rows", tokens, QUIET), ("chosen", tokens[selected], SERIES[0])):
            axes.hist(
                np.clip(of, 0, top),
                bins=bins,
                weights=np.full(len(of), 100 / len(of)),
                histtype="step",
                linewidth=1.6,
                color=colour,
                label=name,
            )
        axes.set_xlabel("response tokens")
        axes.set_ylabel("rows, %")
        legend(axes)
    return figure


def ledger_figure(runs: Sequence[Run], names: Sequence[str], ink: str) -> Figure | None:
    """FLOPs to choose and to train beside training on everything, as a share of the latter."""
    known = [(n, r) for n, r in zip(names, runs, strict=True) if r.get("ledger", "everything", "flops")]
    if not known:
        return None
    with style(ink):
        figure, axes = new_axes(height=0.42 * len(known) + 0.9)
        for y, (name, run) in enumerate(known):
            of_all = run.get("ledger", "everything", "flops") / 100
            chose, trained = (run.get("ledger", part, "flops") / of_all for part in ("selection", "training"))
            axes.barh(y, chose, color=SERIES[1], height=0.4, label="choosing" if not y else None)
            axes.barh(y, trained, left=chose, color=SERIES[0], height=0.4, label="training" if not y else None)
            axes.text(0, y - 0.27, name, va="bottom")  # names beside the bars would leave them no room on a phone
        axes.axvline(100, color=QUIET, linestyle="--", linewidth=1)
        axes.set_yticks([])
        axes.set_ylim(len(known) - 0.7, -0.9)
        axes.set_xlabel("FLOPs, % of training on everything")
        legend(axes)
    return figure


def _selection(run: Run, columns: list[str]) -> dict[str, Any] | None:
    """Columns of the run's selection.parquet, None where it has not got them or is not as it was written."""
    try:
        check_files(run.folder, {SELECTION: sha256} if (sha256 := run.get("sha256", SELECTION)) else {})
    except Damaged as damage:
        log.warning("%s Left out of the figures.", damage)
        return None
    return _table(run.folder / SELECTION, columns)


def _table(path: Path, columns: list[str] | None) -> dict[str, Any] | None:
    """Columns as arrays, None where the table is not there any more or has not got them."""
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError):
        return None
    return {name: table[name].to_numpy() for name in table.column_names}
