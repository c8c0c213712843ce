"""Shared figure style: label, color and marker of each series; saving figures as files and SVG.

Figures are created without pyplot, so there is no global state and no display.
"""

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lpsel.report.points import Interval
from lpsel.report.runs import Run, short_labels
from lpsel.storage import write_file

COLORMAP = "viridis"  # perceptually uniform, readable with color vision deficiencies
# Colorblind-safe palette of Okabe and Ito (2008); the last two are darker, for contrast on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c2619a", "#a67c00", "#3a9bc9")
DARK_SERIES = ("#4ba3e3", "#f08a3c", "#2fbf94", "#dc8fbe", "#d3a62a", "#6cc3ec")  # the same on a dark page
MUTED = "#7a828a"
INK = "#1f2328"
RESERVED = {"random": MUTED, "full": INK}
MARKERS = "osD^vP"
LINES = ("-", "-.", ":", (0, (5, 1)))
WIDTH = 3.6  # inches, 346 CSS pixels: the width of a phone without scaling
SLIDE = (6.4, 3.6)  # inches: 1920 x 1080 pixels
DPI = 300
MOST_LABELS = 9  # labels next to lines; more become a legend
LONGEST_LABEL = 22  # characters
LABEL_HEIGHT = 0.075  # as a fraction of the axes

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
        "axes.facecolor": "none",
    }
)


@dataclass(frozen=True)
class Look:
    """Style of a series: the color depends on its rule; marker and line distinguish series of the same rule."""

    label: str
    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Assign a style to every series: gray for random rows, black for all rows, palette colors for other rules."""
    labels = short_labels(runs)
    rule_of = {run.series: run.rule for run in runs}
    number_of = {rule: k for k, rule in enumerate(sorted({*rule_of.values()} - {*RESERVED}))}
    series_of_rule: Counter[str] = Counter()  # number of series that already have a style
    styles = {}
    for series in sorted(labels):
        rule = rule_of[series]
        k, i = number_of.get(rule, 0), series_of_rule[rule]
        series_of_rule[rule] += 1
        color = RESERVED.get(rule, SERIES[k % len(SERIES)])
        marker = MARKERS[(k + k // len(SERIES) + i) % len(MARKERS)]
        styles[series] = Look(labels[series], color, marker, LINES[i % len(LINES)])
    return styles


def new_axes(width: float = WIDTH, height: float = 2.9) -> tuple[Figure, Axes]:
    """Create a figure (sizes in inches) with a single axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: Axes) -> None:
    """Add a legend above the axes, in one column if labels are long."""
    labels = axes.get_legend_handles_labels()[1]
    columns = 2 if labels and max(map(len, labels)) <= 18 else 1
    axes.figure.legend(frameon=False, loc="outside upper left", ncols=columns, borderaxespad=0.2)


def interval(
    axes: Axes, at: Interval, position: float, color: str, *, alpha: float = 0.7, horizontal: bool = False
) -> None:
    """Draw the line of a confidence interval, if any, at a position on the other axis."""
    if at.low is not None and at.high is not None:
        ends, positions = [at.low, at.high], [position, position]
        x, y = (ends, positions) if horizontal else (positions, ends)
        axes.plot(x, y, color=color, linewidth=1, alpha=alpha)


class Label(NamedTuple):
    """Label of a line that ends at a data point or, with `on_axis`, at the right end of the axes."""

    text: str
    color: str
    end: tuple[float, float]
    on_axis: bool = False


def label_lines(axes: Axes, labels: Sequence[Label]) -> None:
    """Place labels to the right of the axes without overlap, connected to their lines; a legend if they do not fit."""
    if len(labels) > MOST_LABELS or any(len(label.text) > LONGEST_LABEL for label in labels):
        for label in labels:
            if label.on_axis:
                horizontal_label(axes, label.end[1], label.text, label.color)
        legend(axes)
        return
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.end[1])
    heights = _apart([(label.end[1] - low) / (high - low) for label in ordered])
    for label, height in zip(ordered, heights, strict=True):
        axes.annotate(
            f"\u00a0{label.text}",
            label.end,
            xycoords=axes.get_yaxis_transform() if label.on_axis else "data",
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            color=label.color,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.7, "alpha": 0.5,
                        "shrinkA": 0, "shrinkB": 0, "patchA": None, "relpos": (0, 0.5)},
        )  # fmt: skip


def _apart(heights: Sequence[float]) -> list[float]:
    """Move increasing heights as little as possible so that they are LABEL_HEIGHT apart, inside the axes."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_HEIGHT if placed else 0.0))
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_HEIGHT
    return placed


def horizontal_label(axes: Axes, value: float, label: str, color: str) -> None:
    """Write text above a horizontal line, at its right end."""
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "textcoords": "offset points"}
    axes.annotate(label, (1, value), ha="right", color=color, **at)


def save_files(figure: Figure, folder: Path, name: str) -> str:
    """Save a figure at slide size as NAME.svg, NAME.png and NAME.pdf; returns the SVG document."""
    if figure.get_figwidth() == WIDTH:  # other figures set their size
        figure.set_size_inches(SLIDE[0], max(SLIDE[1], figure.get_figheight()))
    document = svg(figure, f"{name} slide")
    figure.set_layout_engine("none")  # keeps the current layout
    write_file(folder / f"{name}.svg", document)
    write_file(folder / f"{name}.pdf", _rendered(figure, "pdf", {"CreationDate": None}))
    save_png(figure, folder / f"{name}.png")
    return document


def save_png(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG on a white background."""
    write_file(path, _rendered(figure, "png"))
    return path


def svg(figure: Figure, name: str) -> str:
    """Convert a figure to an SVG document that keeps text as text; `name` makes its ids unique on a page."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        return _rendered(figure, "svg", {"Date": None}).decode()


def _rendered(figure: Figure, kind: str, metadata: dict[str, None] | None = None) -> bytes:
    FigureCanvasAgg(figure)
    trimmed = "tight" if figure.get_layout_engine() is None else None  # layouts already fit the figure
    document = io.BytesIO()
    # Ignores warnings about characters missing from the font: browsers render them with other fonts.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(document, format=kind, dpi=DPI, bbox_inches=trimmed, facecolor="white", metadata=metadata)
    return document.getvalue()
