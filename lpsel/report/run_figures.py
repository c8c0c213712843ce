"""The report's figures: each takes runs or points and returns a figure, or None where the runs do not allow it."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpsel.report.figures import heatmap, style
from lpsel.report.runs import Point, Run
from lpsel.selection.metrics import learning_percentage_app, perplexity

SERIES = ("#3b7fc4", "#d9772b", "#3f9a6b", "#b0579c", "#8a7a3c", "#6b6fd0")  # readable on white and on near-black
MARKERS = "osD^vP"
QUIET = "#8b949e"
SIZE = (6.4, 3.5)
LABELS = {"win_rate": "win rate, %", "nll": "held-out NLL, nats per token"}


def share_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """The metric against the share, a line per rule through the means of its seeds; every run is a mark."""
    points = [p for p in points if p.run.pct is not None]
    if not points:
        return None
    metric = points[0].metric
    goal = 50.0 if metric == "win_rate" else _mean([p.value for p in points if p.run.rule == "full"])
    with style(ink):
        figure, axes = _axes()
        by_series = defaultdict(list)
        for p in points:
            by_series[series_of(p.run)].append(p)
        # Training on all rows comes last: it is no line, and a rule keeps its colour in panels without it.
        ordered = sorted(by_series.items(), key=lambda item: (item[1][0].run.rule == "full", item[0]))
        for k, (name, of_rule) in enumerate(ordered):
            colour, marker = SERIES[k % len(SERIES)], MARKERS[k % len(MARKERS)]
            at = defaultdict(list)
            for p in of_rule:
                at[p.run.pct].append(p)
            shares = sorted(s for s in at if s is not None)
            aside = 1.025 ** (k - (len(by_series) - 1) / 2)  # so that intervals at one share do not hide each other
            axes.plot(
                [s * aside for s in shares],
                [np.mean([p.value for p in at[s]]) for s in shares],
                color=colour,
                linewidth=1.4,
            )
            for s in shares:
                for p in at[s]:
                    if p.low is not None and p.high is not None:
                        axes.plot([s * aside] * 2, [p.low, p.high], color=colour, linewidth=1, alpha=0.7)
                    axes.plot([s * aside], [p.value], marker, color=colour, markersize=5)
            axes.plot([], [], color=colour, marker=marker, markersize=5, label=name)
        if goal is not None:
            axes.axhline(goal, color=QUIET, linewidth=1, linestyle="--")
            word = "50 %" if metric == "win_rate" else "all rows"
            axes.annotate(
                word,
                (1, goal),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                ha="right",
                textcoords="offset points",
                color=QUIET,
            )
            if (passed := smallest_passing(points)) is not None:
                axes.axvline(passed, color=QUIET, linewidth=0.8, linestyle=":")
                axes.annotate(
                    f"{passed:g} % passes",
                    (passed, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -10),
                    textcoords="offset points",
                    color=QUIET,
                )
        axes.set_xscale("log")
        ticks = sorted({p.run.pct for p in points if p.run.pct})
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
        axes.set_xlabel("share of the rows, %")
        axes.set_ylabel(LABELS[metric])
        _legend(axes)
    return figure


def smallest_passing(points: Sequence[Point]) -> float | None:
    """The smallest share whose mean over seeds, by some rule, reaches 50 % or, for NLL, that of all rows."""
    at = defaultdict(list)
    for p in points:
        if p.run.rule != "full" and p.run.pct is not None:
            at[series_of(p.run), p.run.pct].append(p.value)
    if not at:
        return None
    if points[0].metric == "win_rate":
        passing = [pct for (_, pct), values in at.items() if np.mean(values) >= 50]
    else:
        goal = _mean([p.value for p in points if p.run.rule == "full"])
        passing = [pct for (_, pct), values in at.items() if goal is not None and np.mean(values) <= goal]
    return min(passing, default=None)


def bucket_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """Bars per bucket, groups of one share; needs two buckets."""
    points = [p for p in points if p.run.bucket and p.run.pct is not None]
    buckets = [b for b in ("low", "mid", "high") if any(p.run.bucket == b for p in points)]
    if len(buckets) < 2:
        return None
    groups = sorted({(p.run.rule, p.run.pct) for p in points})
    width = 0.8 / len(buckets)
    with style(ink):
        figure, axes = _axes()
        for k, bucket in enumerate(buckets):
            for g, group in enumerate(groups):
                of = [p for p in points if (p.run.rule, p.run.pct) == group and p.run.bucket == bucket]
                x = g + (k - (len(buckets) - 1) / 2) * width
                if of:
                    axes.bar(x, float(np.mean([p.value for p in of])), width * 0.92, color=SERIES[k], alpha=0.85)
                for p in of:
                    if p.low is not None and p.high is not None:
                        axes.plot([x, x], [p.low, p.high], color=ink, linewidth=1)
            axes.bar([0], [0], color=SERIES[k], label=f"{bucket} bucket")
        axes.set_xticks(range(len(groups)), [f"{rule}, {pct:g} %" for rule, pct in groups])
        axes.set_ylabel(LABELS[points[0].metric])
        _legend(axes)
    return figure


def scorer_target_figure(points: Sequence[Point], ink: str) -> Figure | None:
    """The metric for every scorer and target, at the share that most pairs have; needs two scorers."""
    points = [p for p in points if p.run.scorer != "–" and p.run.pct is not None]
    scorers, targets = sorted({p.run.scorer for p in points}), sorted({p.run.target for p in points})
    if len(scorers) < 2:
        return None
    pct = max(
        {p.run.pct for p in points}, key=lambda s: len({(p.run.scorer, p.run.target) for p in points if p.run.pct == s})
    )
    with style(ink):
        figure = Figure(figsize=(1.5 * len(targets) + 1, 0.6 * len(scorers) + 0.6))
        axes = figure.add_subplot()
        values = np.full((len(scorers), len(targets)), np.nan)
        for a, b in np.ndindex(values.shape):
            of = [p.value for p in points if (p.run.scorer, p.run.target, p.run.pct) == (scorers[a], targets[b], pct)]
            if of:
                values[a, b] = np.mean(of)
                axes.text(
                    b,
                    a,
                    f"{values[a, b]:.2f}",
                    ha="center",
                    va="center",
                    color="white",
                    bbox={"facecolor": "#1f2328", "edgecolor": "none", "alpha": 0.6, "pad": 2},
                )
        axes.imshow(np.ma.masked_invalid(values), cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(targets)), targets)
        axes.set_yticks(range(len(scorers)), scorers)
        axes.set_xlabel(f"target, at {pct:g} %")
        axes.set_ylabel("scorer")
    return figure


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
        if (table := _table(run.folder / "selection.parquet", ["index", "score"])) is not None:
            scored[name] = table["score"]
    if len(scored) < 2 or len({len(s) for s in scored.values()}) > 1:
        return None
    names = list(scored)
    values = np.array([[spearmanr(scored[a], scored[b], nan_policy="omit").statistic for b in names] for a in names])
    return heatmap(names, values, "", ink)


def trajectory_figure(scores: Path, ink: str) -> Figure | None:
    """NLL by epoch of the hardest and the easiest tenth by LP_app(1): median and quartiles."""
    table = _table(scores, None)
    if table is None or "nll_1" not in table:
        return None
    epochs = sum(name.startswith("nll_") and name[4:].isdigit() for name in table)
    nll_EN = np.array([table[f"nll_{e}"] for e in range(epochs)])
    lp_N = learning_percentage_app(perplexity(nll_EN))
    known = np.flatnonzero(np.isfinite(lp_N))
    if len(known) < 2:
        return None
    order = known[np.argsort(lp_N[known], kind="stable")]
    tenth = max(1, len(order) // 10)
    with style(ink):
        figure, axes = _axes()
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
        _legend(axes)
    return figure


def length_figure(run: Run, ink: str) -> Figure | None:
    """Response tokens of chosen rows against all."""
    chosen = _table(run.folder / "selection.parquet", ["index", "selected"])
    scores = _table(Path(str(run.get("scores"))), ["index", "response_tokens"])
    if chosen is None or scores is None or not np.array_equal(chosen["index"], scores["index"]):
        return None
    selected, tokens = chosen["selected"].astype(bool), scores["response_tokens"]
    if not selected.any() or selected.all():
        return None
    top = max(2, int(np.percentile(tokens, 99)) + 1)
    bins = np.linspace(0, top, min(top, 40) + 1).tolist()
    with style(ink):
        figure, axes = _axes()
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
        _legend(axes)
    return figure


def ledger_figure(runs: Sequence[Run], names: Sequence[str], ink: str) -> Figure | None:
    """FLOPs to choose and to train beside training on everything, as a share of the latter."""
    known = [(n, r) for n, r in zip(names, runs, strict=True) if r.get("ledger", "everything", "flops")]
    if not known:
        return None
    with style(ink):
        figure = Figure(figsize=(SIZE[0], 0.32 * len(known) + 1.0))
        axes = figure.add_subplot()
        _quiet(axes)
        for y, (_, run) in enumerate(known):
            of_all = run.get("ledger", "everything", "flops") / 100
            chose, trained = (run.get("ledger", part, "flops") / of_all for part in ("selection", "training"))
            axes.barh(y, chose, color=SERIES[1], height=0.6, label="choosing" if not y else None)
            axes.barh(y, trained, left=chose, color=SERIES[0], height=0.6, label="training" if not y else None)
        axes.axvline(100, color=QUIET, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(known)), [n for n, _ in known])
        axes.invert_yaxis()
        axes.set_xlabel("FLOPs, % of training on everything")
        _legend(axes)
    return figure


def series_of(run: Run) -> str:
    """What sets a line apart from another in a figure of one target."""
    bucket = f", {run.bucket}" if run.bucket else ""
    scorer = "" if run.scorer == "–" else f" ({run.scorer})"
    return f"{run.rule}{bucket}{scorer} → {run.target}"


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    axes = figure.add_subplot()
    _quiet(axes)
    return figure, axes


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, borderaxespad=0)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _table(path: Path, columns: list[str] | None) -> dict[str, Any] | None:
    """Columns as arrays, None where the table is not there any more or has not got them."""
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError):
        return None
    return {name: table[name].to_numpy() for name in table.column_names}
