"""Shared style of the figures, and figures as PNG files and SVG.

Figures are created without pyplot: no shared state, no display.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lpsel.storage import write_atomically

COLORMAP = "viridis"  # perceptually uniform, readable with color vision deficiencies
SERIES = ("#3b7fc4", "#d9772b", "#3f9a6b", "#b0579c", "#8a7a3c", "#6b6fd0")
MUTED = "#8b949e"
INK = "#1f2328"
WIDTH = 3.6  # inches, 346 CSS pixels: what a phone shows without scaling
DPI = 160

# Decorator of functions that create figures.
styled = matplotlib.rc_context(
    {
        "font.family": ["DejaVu Sans"],
        "font.size": 9.1,  # points; 9 points are 12 CSS pixels
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,  # names may contain $
        "axes.linewidth": 0.6,
    }
)


def new_axes(width: float = WIDTH, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure, sizes in inches, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Axes) -> None:
    """Labels above the axes, in one column if they are long."""
    labels = axes.get_legend_handles_labels()[1]
    columns = 2 if labels and max(map(len, labels)) <= 18 else 1
    axes.figure.legend(frameon=False, loc="outside upper left", ncols=columns, borderaxespad=0.2)


def interval(axes: Axes, x: list[float], y: list[float], color: str, alpha: float = 0.7) -> None:
    """The line of a confidence interval."""
    axes.plot(x, y, color=color, linewidth=1, alpha=alpha)


def horizontal_line(axes: Axes, value: float, label: str) -> None:
    """A dashed line across the axes, with its label at the right end."""
    axes.axhline(value, color=MUTED, linewidth=1, linestyle="--")
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "textcoords": "offset points"}
    axes.annotate(label, (1, value), ha="right", color=MUTED, **at)


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure on a white background."""
    FigureCanvasAgg(figure)
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    )
    return path


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document with text as text; `name` keeps the ids that it refers to unique on a page."""
    document = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(document, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    return document.getvalue()
