"""Figures of rows and costs: agreement of scores, learning curves, lengths of selected rows, FLOPs.

Every function returns None where the runs do not allow its figure.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from lpsel.errors import UserError
from lpsel.integrity import Damaged, check_files
from lpsel.report.agreement_figures import heatmap
from lpsel.report.drawing import INK, MUTED, legend, new_axes, styled
from lpsel.report.looks import Look
from lpsel.report.runs import Run
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.read import read_scores

log = logging.getLogger(__name__)

SELECTION = "selection.parquet"
PARTS = ("selection", "training")  # of a ledger


def score_agreement_figure(runs: Sequence[Run]) -> Figure | None:
    """Spearman correlation between the scores that different rules and scorers gave the same rows; needs two."""
    from scipy.stats import spearmanr

    scored: dict[str, Any] = {}
    for run in runs:
        name = run.rule + ("" if run.scorer == "–" else f", {run.scorer}")
        same_data = run.get("dataset", "fingerprint") == runs[0].get("dataset", "fingerprint")
        if name in scored or run.get("scores") is None or not same_data:
            continue
        if (table := _selection(run, ["index", "score"])) is not None:
            scored[name] = table["score"]
    if len(scored) < 2 or len({len(score_N) for score_N in scored.values()}) > 1:
        return None
    scores = scored.values()
    return heatmap(
        list(scored),
        np.array([[spearmanr(a_N, b_N, nan_policy="omit").statistic for b_N in scores] for a_N in scores]),
        "",
    )


@styled
def trajectory_figure(scores: Path) -> Figure | None:
    """NLL by epoch of the hardest and the easiest tenth by LP_app(1): median and quartiles."""
    try:
        table = read_scores(scores)
    except UserError:
        return None
    if not table.epochs:
        return None
    lp_N, epochs = learning_percentage(table, "lp_app"), range(len(table.nll))
    order = np.argsort(lp_N, kind="stable")[: np.isfinite(lp_N).sum()]  # NaN comes last
    if len(order) < 2:
        return None
    tenth = max(1, len(order) // 10)
    figure, axes = new_axes()
    for name, rows, line, color in (("hardest", order[:tenth], "-", INK), ("easiest", order[-tenth:], "--", MUTED)):
        low, median, high = np.nanpercentile(table.nll[:, rows], [25, 50, 75], axis=1)
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(epochs, median, line, marker="o", markersize=4, color=color, label=f"{name} tenth")
    axes.set_xticks(epochs)
    axes.set_xlabel("epochs of the scorer")
    axes.set_ylabel("NLL, nats per token")
    legend(axes)
    return figure


@styled
def length_figure(run: Run, color: str) -> Figure | None:
    """Response tokens of the selected rows compared with all rows."""
    chosen = _selection(run, ["index", "selected"])
    scores = _columns(Path(str(run.get("scores"))), ["index", "response_tokens"])
    if chosen is None or scores is None or not np.array_equal(chosen["index"], scores["index"]):
        return None
    selected, tokens = chosen["selected"].astype(bool), scores["response_tokens"]
    if not selected.any() or selected.all():
        return None
    top = max(2, int(np.percentile(tokens, 99)) + 1)
    bins = np.linspace(0, top, min(top, 40) + 1).tolist()
    figure, axes = new_axes()
    for label, lengths, edge in (("all rows", tokens, INK), ("selected", tokens[selected], color)):
        percent = np.full(len(lengths), 100 / len(lengths))
        clipped = np.clip(lengths, 0, top)
        axes.hist(clipped, bins, weights=percent, histtype="step", linewidth=1.6, color=edge, label=label)
    axes.set_xlabel("response tokens")
    axes.set_ylabel("rows, %")
    legend(axes)
    return figure


@styled
def ledger_figure(runs: Sequence[Run], looks: Mapping[str, Look]) -> Figure | None:
    """FLOPs of scoring and training as a percentage of training on all rows: means over the seeds of a selection."""
    seeds: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        if run.get("ledger", "everything", "flops"):
            seeds.setdefault((run.series, run.pct or 0.0), []).append(run)
    if not seeds:
        return None
    figure, axes = new_axes(height=0.42 * len(seeds) + 0.9)
    for y, ((series, pct), same) in enumerate(sorted(seeds.items())):
        scoring, training = (float(np.mean([_of_all_rows(run, part) for run in same])) for part in PARTS)
        color = looks[series].color
        axes.barh(y, scoring, color=color, alpha=0.45, height=0.4)
        axes.barh(y, training, left=scoring, color=color, height=0.4)
        numbers = list(dict.fromkeys(str(run.get("seed")) for run in same if run.get("seed") is not None))
        named = f", seed{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}" if numbers else ""
        name = f"{looks[series].label}{f', {pct:g} %' if pct else ''}{named}"
        axes.text(0, y - 0.27, name, va="bottom")  # next to the bars, names would leave no room for them on a phone
    for label, alpha in (("selection", 0.45), ("training", 1.0)):
        axes.barh([0], [0], color=INK, alpha=alpha, label=label)
    axes.axvline(100, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks([])
    axes.set_ylim(len(seeds) - 0.7, -0.9)
    axes.set_xlabel("FLOPs, % of training on all rows")
    legend(axes)
    return figure


def _of_all_rows(run: Run, part: str) -> float:
    return 100 * run.get("ledger", part, "flops") / run.get("ledger", "everything", "flops")


def _selection(run: Run, columns: list[str]) -> dict[str, Any] | None:
    """Columns of the run's selection.parquet, None where they are missing or the file has changed."""
    try:
        check_files(run.folder, {SELECTION: sha256} if (sha256 := run.get("sha256", SELECTION)) else {})
    except Damaged as damage:
        log.warning("%s It is left out of the figures.", damage)
        return None
    return _columns(run.folder / SELECTION, columns)


def _columns(path: Path, columns: list[str]) -> dict[str, Any] | None:
    """Columns as arrays, None where the file or a column is missing."""
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError):
        return None
    return {name: table[name].to_numpy() for name in table.column_names}
