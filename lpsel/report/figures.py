"""Figures of agreement: matrices of one number for every two scorers, and ranks by one against ranks by another.

N rows, S scorers, B bins

Drawn with matplotlib's objects, without pyplot: no state is shared, and no window system is looked for.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from lpsel.storage import write_atomically

COLOURS = "viridis"  # even steps for the eye, and told apart without red and green
POINTS = "#3b7fc4"
SERIES = ("#3b7fc4", "#d9772b", "#3f9a6b", "#b0579c", "#8a7a3c", "#6b6fd0")  # readable on white and on near-black
QUIET = "#8b949e"
WIDTH = 3.6  # inches, of which a browser makes 96 pixels each: a phone shows 358
INK = "#1f2328"
INK_IN_SVG = "#010203"  # becomes the page's text colour, light or dark
LONGEST_NAME = 26
MOST_NUMBERED = 14  # scorers; numbers in more cells cannot be read
FEWEST_FOR_DENSITY = 1_000  # rows; fewer are shown as points
TIMES_CHANCE = LogNorm(0.1, 10)
BINS = 50
DPI = 160

Floats = NDArray[np.float64]


def heatmap(names: Sequence[str], values_SS: Floats, title: str, ink: str = INK) -> Figure:
    """One number for every two scorers; the diagonal, where a scorer meets itself, stays empty."""
    s = len(names)
    with style(ink):
        figure = Figure(figsize=(0.62 * s + 0.3, 0.62 * s + 0.3))
        axes = figure.add_subplot()
        shown_SS = np.where(np.eye(s, dtype=bool), np.nan, values_SS)
        low = -1.0 if (shown_SS < 0).any() else 0.0
        image = axes.imshow(np.ma.masked_invalid(shown_SS), cmap=COLOURS, vmin=low, vmax=1.0)
        axes.set_xticks(range(s), [_short(n) for n in names], rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(s), [_short(n) for n in names])
        axes.tick_params(length=0)
        axes.set_title(title, loc="left", fontsize=10.5, pad=8)
        for a, b in np.argwhere(np.isfinite(shown_SS)):
            if s <= MOST_NUMBERED:
                value = float(shown_SS[a, b])
                colour = _readable_on(image.to_rgba(np.asarray(value)))
                axes.text(b, a, _decimal(value), ha="center", va="center", color=colour)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def rank_rank(names: Sequence[str], scores_SN: Floats, pcts: Sequence[float], title: str) -> Figure:
    """Ranks by one scorer against ranks by another, a panel for every two scorers."""
    pairs = list(combinations(range(len(names)), 2))
    columns = len(names) - 1 + len(names) % 2  # so that no place is left over
    rows = len(pairs) // columns
    ranks_SN = percent_ranks(scores_SN)
    with style(INK):
        figure = Figure(figsize=(2.1 * columns + 1.0, 2.1 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        image = None
        for axes, (a, b) in zip(grid.flat, pairs, strict=True):
            image = _panel(axes, ranks_SN[a], ranks_SN[b], pcts, INK)
            axes.set_xlabel(_short(names[a]))
            axes.set_ylabel(_short(names[b]))
        if image is not None:
            bar = figure.colorbar(image, ax=grid, shrink=0.9, aspect=12 * rows)
            _label_times_chance(bar)
            bar.set_label("rows, times what chance gives")
        figure.suptitle(title, fontsize=11)
    return figure


def rank_panel(ranks_a_N: Floats, ranks_b_N: Floats, pcts: Sequence[float], ink: str = INK) -> Figure:
    """One panel of `rank_rank`, without names."""
    with style(ink):
        figure = Figure(figsize=(2.5, 2.5))
        _panel(figure.add_subplot(), ranks_a_N, ranks_b_N, pcts, ink)
    return figure


def density_scale(ink: str = INK) -> Figure:
    """The colour scale that all panels share."""
    with style(ink):
        figure = Figure(figsize=(3.2, 0.16))
        bar = matplotlib.colorbar.Colorbar(
            figure.add_subplot(),
            matplotlib.cm.ScalarMappable(TIMES_CHANCE, COLOURS),
            orientation="horizontal",
        )
        _label_times_chance(bar)
    return figure


def percent_ranks(scores_SN: Floats) -> Floats:
    """Ranks from 0 (the lowest score, hardest) to 100, ties at their mean, (S, N)."""
    return (rankdata(scores_SN, axis=1) - 0.5) * (100 / scores_SN.shape[1])


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure on white."""
    FigureCanvasAgg(figure)
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    )
    return path


def svg(figure: Figure, name: str, label: str) -> str:
    """A figure drawn with INK_IN_SVG as an element to stand inside a page: no links, no background.

    Args:
        figure: the figure.
        name: makes ids inside it different from those of other figures of the page.
        label: what it shows, for who cannot see it; must be escaped already.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", drawn)
    drawn = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", drawn)  # figure_1 and the like, in every figure again
    drawn = drawn.replace("xlink:href", "href").replace(INK_IN_SVG, "currentColor")
    width, height = (float(drawn.split(f'{side}="')[1].split('pt"')[0]) for side in ("width", "height"))
    drawn = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", drawn, count=1)
    size = f'style="width:{width * 4 / 3:.0f}px;aspect-ratio:{width:.1f}/{height:.1f}"'
    return drawn.replace("<svg", f'<svg role="img" aria-label="{label}" {size}', 1)


def new_axes(width: float = WIDTH, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure as wide as a phone, so that its text is not made smaller there, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Axes) -> None:
    """Names above the axes, in one column where they are long."""
    names = axes.get_legend_handles_labels()[1]
    columns = 2 if names and max(map(len, names)) <= 18 else 1
    axes.figure.legend(frameon=False, loc="outside upper left", ncols=columns, borderaxespad=0.2)


@contextmanager
def style(ink: str) -> Iterator[None]:
    """Text and axes in one colour while a figure is made."""
    with matplotlib.rc_context(
        {
            "font.family": ["DejaVu Sans"],
            "font.size": 9.1,  # points: a browser makes 12 pixels of 9
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "axes.titlecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "text.parse_math": False,  # a name with two $ is a name
            "axes.linewidth": 0.6,
        }
    ):
        yield


def _panel(axes: Axes, ranks_a_N: Floats, ranks_b_N: Floats, pcts: Sequence[float], ink: str) -> Any:
    """Draw the ranks; returns the image where a density is drawn, None for points."""
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([0, 50, 100])
    n = len(ranks_a_N)
    dense = n >= FEWEST_FOR_DENSITY
    image = None
    if dense:
        bins = int(np.clip(sqrt(n / 4), 10, BINS))
        edges = np.linspace(0, 100, bins + 1)
        count_BB, _, _ = np.histogram2d(ranks_b_N, ranks_a_N, bins=[edges, edges])
        times_chance_BB = np.clip(count_BB * bins**2 / n, TIMES_CHANCE.vmin, TIMES_CHANCE.vmax)
        image = axes.imshow(
            times_chance_BB,
            origin="lower",
            extent=(0, 100, 0, 100),
            cmap=COLOURS,
            norm=TIMES_CHANCE,
            interpolation="nearest",
        )
    else:
        axes.scatter(ranks_a_N, ranks_b_N, s=max(2.0, 14 - n / 80), color=POINTS, alpha=0.7, linewidths=0)
    for pct in pcts:
        if pct < 100:
            # The square of the rows that both would choose.
            axes.plot([pct, pct, 0], [0, pct, pct], color="white" if dense else ink, linewidth=0.9, linestyle="--")
    return image


def _label_times_chance(bar: Any) -> None:
    bar.set_ticks([0.1, 0.3, 1, 3, 10], labels=["≤ 0.1", "0.3", "1", "3", "≥ 10"])
    bar.minorticks_off()
    bar.outline.set_visible(False)


def _readable_on(colour: Any) -> str:
    """Black or white, whichever stands out more (relative luminance of WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}…{name[-8:]}"


def _decimal(value: float) -> str:
    """Two decimals without the leading zero: .79, -.05, 1.0."""
    text = f"{value:.2f}"
    return "1.0" if text == "1.00" else text.replace("0.", ".", 1)
