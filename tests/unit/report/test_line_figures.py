"""Figures of quality against cost, from points with known values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lpsel.report.drawing import DARK_SERIES, INK, LABEL_HEIGHT, MUTED, SERIES, _apart, looks
from lpsel.report.line_figures import cost_figure, fraction_figure
from lpsel.report.points import Point, untrained
from lpsel.report.runs import Run

DETAILS = dict.fromkeys(("n", "standard_error", "p_value_holm", "flip_rate", "length_controlled_win_rate"))
MODELS = [{"name": "m", "metrics": {"nll": {"value": 3.2}}}]
EVALUATION = Run(Path("e"), {"command": "evaluate", "models": MODELS})


def point(rule, pct, seed, value, flops, metric="nll"):
    result = {"command": "train", "rule": rule, "pct": pct, "seed": seed, "base_model": {"name": "m"},
              "ledger": {"total": {"flops": flops}}}  # fmt: skip
    run = Run(Path(f"{rule}-{pct}-{seed}"), result)
    return Point(run.name, metric, value, value - 0.1, value + 0.1, run, EVALUATION, "rows", DETAILS)


MEASURED = [
    *(point("random", pct, seed, at + seed / 10, 1e9 * pct) for pct, at in ((5, 3), (10, 2.5)) for seed in (1, 2)),
    *(point("lp", pct, seed, at + seed / 10, 1e9 * (pct + 30)) for pct, at in ((5, 2.8), (10, 2.3)) for seed in (1, 2)),
    point("full", 100, 1, 2.0, 1e11),
]


def drawn(measured, draw=cost_figure):
    (axes,) = draw(measured, looks([p.run for p in measured])).axes
    return axes


def test_a_line_connects_the_means_at_the_cost_of_selection_and_training():
    axes = drawn(MEASURED)
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert lines.keys() == {"lp", "random", "full"}
    assert lines["lp"].get_xydata() == pytest.approx(np.array([[35e9, 2.95], [40e9, 2.45]]))
    assert (lines["random"].get_color(), lines["full"].get_color(), lines["lp"].get_color()) == (MUTED, INK, SERIES[0])
    faint = [line for line in axes.lines if line.get_alpha() == 0.35]
    assert sorted(value for line in faint for value in line.get_ydata()) == pytest.approx(
        [2.4, 2.5, 2.6, 2.7, 2.9, 3.0, 3.1, 3.2]
    )
    assert axes.get_xlabel() == "FLOPs of selection and training (× 10⁹)"
    assert axes.get_ylabel() == "held-out NLL, nats per token\n(lower is better)"


def test_random_rows_are_a_band_from_the_lowest_to_the_highest_seed():
    (band,) = drawn(MEASURED).collections
    corners = {(round(x / 1e9), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(5, 3.1), (5, 3.2), (10, 2.6), (10, 2.7)}


def test_all_rows_and_the_untrained_model_are_reference_lines():
    axes = drawn(MEASURED)
    assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {2.0}
    assert {text.get_text().strip() for text in axes.texts} == {"lp", "random", "all rows", "untrained"}
    far = Run(Path("e"), {"models": [{"name": "m", "metrics": {"nll": {"value": 8.3}}}]})
    axes = drawn([replace(p, evaluation=far) for p in MEASURED])
    assert "untrained: 8.3 ↑" in {text.get_text() for text in axes.texts}
    assert axes.get_ylim()[1] < 4, "it does not compress the others"
    entry = {"name": "7b", "model": "hub/7b", "metrics": {"nll": {"value": 3.3}}}
    evaluation, target = Run(Path("e"), {"models": [entry]}), {"base_model": {"name": "m", "path": "hub/7b"}}
    by_path = [replace(p, evaluation=evaluation, run=Run(Path("r"), {**p.run.result, **target})) for p in MEASURED]
    assert untrained(by_path) == {"untrained": 3.3}


def test_the_axis_of_win_rates_includes_40_to_60_percent():
    rates = [replace(p, metric="win_rate", value=49 + p.value / 10, low=None, high=None) for p in MEASURED]
    low, high = drawn(rates, fraction_figure).get_ylim()
    assert low < 40
    assert high > 60


def test_a_report_of_all_rows_only_has_no_cost_figure():
    assert cost_figure(MEASURED[-1:], looks([MEASURED[-1].run])) is None


def test_a_rule_has_one_color_and_its_series_differ():
    runs = [Run(Path(f"{i}"), {"rule": "lp", "bucket": bucket, "scorer": {"name": "s"}}) for i, bucket in
            enumerate(("low", "mid", "high"))]  # fmt: skip
    runs += [Run(Path(rule), {"rule": rule}) for rule in ("random", "full", *"abcdefgh")]
    styles = looks(runs)
    assert {styles[run.series].color for run in runs[:3]} == {styles[runs[0].series].color}
    assert len({(look.color, look.marker, look.line) for look in styles.values()}) == len(runs)
    assert {look.label for look in styles.values()} >= {"lp, low", "lp, mid", "lp, high", "random", "a"}


def test_labels_keep_their_distance_and_stay_inside():
    assert _apart([0.2, 0.6]) == [0.2, 0.6]
    placed = _apart([0.95, 0.96, 0.97])
    assert placed == pytest.approx([1 - 2 * LABEL_HEIGHT, 1 - LABEL_HEIGHT, 1])


@pytest.mark.parametrize(("colors", "page"), [(SERIES, "#ffffff"), (DARK_SERIES, "#0f1318"), ([MUTED], "#ffffff")])
def test_lines_have_a_contrast_of_3_to_1(colors, page):
    def luminance(color):  # WCAG 2.1
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    for color in colors:
        high, low = sorted((luminance(color), luminance(page)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, color
