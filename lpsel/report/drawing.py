"""Shared style of the figures: the label, color and marker of every series, and figures as files and SVG.

Figures are created without pyplot: no shared state, no display.
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
# Okabe and Ito's hues (2008), for color vision deficiencies; the last two darker, for contrast on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c2619a", "#a67c00", "#3a9bc9")
DARK_SERIES = ("#4ba3e3", "#f08a3c", "#2fbf94", "#dc8fbe", "#d3a62a", "#6cc3ec")  # the same on a dark page
MUTED = "#7a828a"
INK = "#1f2328"
RESERVED = {"random": MUTED, "full": INK}
MARKERS = "osD^vP"
LINES = ("-", "-.", ":", (0, (5, 1)))
WIDTH = 3.6  # inches, 346 CSS pixels: what a phone shows without scaling
SLIDE = (6.4, 3.6)  # inches: 1920 x 1080 pixels
DPI = 300
MOST_LABELS = 9  # at lines; more become a legend
LONGEST_LABEL = 22  # characters
LABEL_HEIGHT = 0.075  # of the axes

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
    """How a series is drawn: its color is that of its rule; marker and line distinguish series of one rule."""

    label: str
    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """The look of every series. Random rows are gray and all rows black; the other rules have the colors in order."""
    labels = short_labels(runs)
    rule_of = {run.series: run.rule for run in runs}
    rules = {rule: k for k, rule in enumerate(sorted({*rule_of.values()} - {*RESERVED}))}
    seen: Counter[str] = Counter()
    made = {}
    for series in sorted(labels):
        rule = rule_of[series]
        k = rules.get(rule, 0)
        i, seen[rule] = seen[rule], seen[rule] + 1
        color = RESERVED.get(rule, SERIES[k % len(SERIES)])
        marker = MARKERS[(k + k // len(SERIES) + i) % len(MARKERS)]
        made[series] = Look(labels[series], color, marker, LINES[i % len(LINES)])
    return made


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


def interval(
    axes: Axes, at: Interval, position: float, color: str, *, alpha: float = 0.7, horizontal: bool = False
) -> None:
    """The line of a confidence interval, if there is one, at a position on the other axis."""
    if at.low is not None and at.high is not None:
        ends, positions = [at.low, at.high], [position, position]
        x, y = (ends, positions) if horizontal else (positions, ends)
        axes.plot(x, y, color=color, linewidth=1, alpha=alpha)


class Label(NamedTuple):
    """The text of a line that ends at a point of the data, or with `on_axis` at the right end of the axes."""

    text: str
    color: str
    end: tuple[float, float]
    on_axis: bool = False


def label_lines(axes: Axes, labels: Sequence[Label]) -> None:
    """Labels to the right of the axes, moved apart and connected with their lines; a legend if they do not fit."""
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
    """Increasing heights moved as little as needed for LABEL_HEIGHT between them, inside the axes."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_HEIGHT if placed else 0.0))
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_HEIGHT
    return placed


def horizontal_label(axes: Axes, value: float, label: str, color: str) -> None:
    """Text above a horizontal line, at its right end."""
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "textcoords": "offset points"}
    axes.annotate(label, (1, value), ha="right", color=color, **at)


def save_files(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure at the size of a slide as NAME.svg, NAME.png and NAME.pdf; returns the SVG document."""
    if figure.get_figwidth() == WIDTH:  # others have a size of their own
        figure.set_size_inches(SLIDE[0], max(SLIDE[1], figure.get_figheight()))
    document = svg(figure, f"{name} slide")
    figure.set_layout_engine("none")  # the layout stays
    write_file(folder / f"{name}.svg", document)
    write_file(folder / f"{name}.pdf", _rendered(figure, "pdf", {"CreationDate": None}))
    save_png(figure, folder / f"{name}.png")
    return document


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure on white."""
    write_file(path, _rendered(figure, "png"))
    return path


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document with text as text; `name` keeps the ids that it refers to unique on a page."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        return _rendered(figure, "svg", {"Date": None}).decode()


def _rendered(figure: Figure, kind: str, metadata: dict[str, None] | None = None) -> bytes:
    FigureCanvasAgg(figure)
    trimmed = "tight" if figure.get_layout_engine() is None else None  # the others fit into their figure
    document = io.BytesIO()
    # Of characters that the font does not have: SVG leaves them to the fonts of the browser.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(document, format=kind, dpi=DPI, bbox_inches=trimmed, facecolor="white", metadata=metadata)
    return document.getvalue()
