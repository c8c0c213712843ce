"""Agreement figures: heatmaps with one number per pair of scorers, and rank-rank plots.

N rows, S scorers, B bins
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from lpsel.report.cells import spread
from lpsel.report.drawing import COLORMAP, INK, SERIES, styled
from lpsel.scoring.metrics import METRICS
from lpsel.selection.agreement_study import DEFINED, Study

NAME_LENGTH = 26
MOST_NUMBERED = 14  # scorers; with more, numbers in cells are too small to read
FEWEST_FOR_DENSITY = 1_000  # rows; fewer are drawn as points
TIMES_CHANCE = LogNorm(0.1, 10)
BINS = 50

Floats = NDArray[np.float64]


def agreement_figures(study: Study, metric: str) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name, title and figure of all heatmaps and ranks, for rows with a score in every table."""
    between = study.between[metric, DEFINED]
    label = METRICS[metric].title
    title = f"{label}: Spearman"
    yield f"heatmap-{metric}-spearman", title, heatmap(study.names, between.spearman, title)
    title = f"{label}: Kendall tau-b"
    yield f"heatmap-{metric}-kendall", title, heatmap(study.names, between.kendall, title)
    other_scorers_SS = ~np.eye(len(study.names), dtype=bool)
    for pct, share_SS, chance_SS in zip(study.pcts, between.share, between.chance, strict=True):
        chance = spread(chance_SS[other_scorers_SS], "{:.2f}".format)
        title = f"{label}: overlap of the lowest {pct:g}%\n(chance {chance})"
        yield f"heatmap-{metric}-lowest-{pct:g}", title, heatmap(study.names, share_SS, title)
    title = f"{label}: percentile ranks, 0 the hardest"
    scores_SN = study.filled(DEFINED)[study.metrics.index(metric)]
    yield f"rank-rank-{metric}", title, rank_rank(study.names, scores_SN, study.pcts, title)


@styled
def heatmap(names: Sequence[str], values_SS: Floats, title: str) -> Figure:
    """Draw one number for every pair of scorers; the diagonal is empty."""
    s = len(names)
    figure = Figure(figsize=(0.62 * s + 0.3, 0.62 * s + 0.3))
    axes = figure.add_subplot()
    shown_SS = np.where(np.eye(s, dtype=bool), np.nan, values_SS)
    low = -1.0 if (shown_SS < 0).any() else 0.0
    image = axes.imshow(np.ma.masked_invalid(shown_SS), cmap=COLORMAP, vmin=low, vmax=1.0)
    axes.set_xticks(range(s), [_shortened(n) for n in names], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(s), [_shortened(n) for n in names])
    axes.tick_params(length=0)
    axes.set_title(title, loc="left", fontsize=10.5, pad=8)
    if s <= MOST_NUMBERED:
        for a, b in np.argwhere(np.isfinite(shown_SS)):
            value = float(shown_SS[a, b])
            color = text_color(image.to_rgba(np.asarray(value)))
            axes.text(b, a, decimal(value), ha="center", va="center", color=color)
    axes.spines[:].set_visible(False)
    return figure


@styled
def rank_rank(names: Sequence[str], scores_SN: Floats, pcts: Sequence[float], title: str) -> Figure:
    """Plot ranks by one scorer against ranks by another, with one panel per pair of scorers."""
    pairs = list(combinations(range(len(names)), 2))
    columns = len(names) - 1 + len(names) % 2  # leaves no cell of the grid empty
    rows = len(pairs) // columns
    ranks_SN = percent_ranks(scores_SN)
    figure = Figure(figsize=(2.1 * columns + 1.0, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    image = None
    for axes, (a, b) in zip(grid.flat, pairs, strict=True):
        image = _panel(axes, ranks_SN[a], ranks_SN[b], pcts)
        axes.set(xlabel=_shortened(names[a]), ylabel=_shortened(names[b]))
    if image is not None:
        bar: Any = figure.colorbar(image, ax=grid, shrink=0.9, aspect=12 * rows)
        bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["≤ 0.1", "0.3", "1", "3", "≥ 10"])
        bar.minorticks_off()
        bar.outline.set_visible(False)
        bar.set_label("rows, in multiples of chance")
    figure.suptitle(title, fontsize=11)
    return figure


def percent_ranks(scores_SN: Floats) -> Floats:
    """Percentile ranks from 0 (lowest score, hardest) to 100, (S, N); ties get their mean rank."""
    return (rankdata(scores_SN, axis=1) - 0.5) * (100 / scores_SN.shape[1])


def _panel(axes: Axes, ranks_a_N: Floats, ranks_b_N: Floats, pcts: Sequence[float]) -> Any:
    """Draw ranks; returns the image for a density, None for points."""
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xticks=[0, 50, 100], yticks=[0, 50, 100])
    n = len(ranks_a_N)
    image = None
    if n >= FEWEST_FOR_DENSITY:
        bins = int(np.clip(sqrt(n / 4), 10, BINS))
        edges = np.linspace(0, 100, bins + 1)
        count_BB, _, _ = np.histogram2d(ranks_b_N, ranks_a_N, bins=[edges, edges])
        times_chance_BB = np.clip(count_BB * bins**2 / n, TIMES_CHANCE.vmin, TIMES_CHANCE.vmax)
        image = axes.imshow(
            times_chance_BB,
            origin="lower",
            extent=(0, 100, 0, 100),
            cmap=COLORMAP,
            norm=TIMES_CHANCE,
            interpolation="nearest",
        )
    else:
        axes.scatter(ranks_a_N, ranks_b_N, s=max(2.0, 14 - n / 80), color=SERIES[0], alpha=0.7, linewidths=0)
    for pct in pcts:
        if pct < 100:  # square with the rows that both scorers select
            color = INK if image is None else "white"
            axes.plot([pct, pct, 0], [0, pct, pct], color=color, linewidth=0.9, linestyle="--")
    return image


def text_color(background: Any) -> str:
    """Black or white, whichever has the higher contrast (relative luminance, WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def decimal(value: float) -> str:
    """Format a value with two decimals and no leading zero: .79, -.05, 1.0."""
    text = f"{value:.2f}"
    return "1.0" if text == "1.00" else text.replace("0.", ".", 1)


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 9]}…{name[-8:]}"
