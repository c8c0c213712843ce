"""The one place that assigns labels, colors and markers: a rule has the same color in all figures of a report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lpsel.report.drawing import INK, MUTED, SERIES
from lpsel.report.runs import Run, short_labels

RESERVED = {"random": MUTED, "full": INK}
MARKERS = "osD^vP"
LINES = ("-", "-.", ":", (0, (5, 1)))


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
