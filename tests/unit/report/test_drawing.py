"""Figures as SVG and PNG: self-contained and reproducible."""

import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lpsel.report.agreement_figures import heatmap
from lpsel.report.drawing import save_png, svg
from lpsel.report.figures import Dot, dots_figure
from lpsel.report.points import Interval

NAMES = ["small", "$large$"]


def drawn(title=""):
    return heatmap(NAMES, np.array([[1.0, 0.79], [0.79, 1.0]]), title)


def test_an_svg_has_its_text_escaped_and_refers_only_to_itself():
    one, other = svg(drawn("<b>"), "a"), svg(drawn("<b>"), "b")
    assert "<b>" not in one
    assert "$large$" in one
    references = [set(re.findall(r'url\(#([^)]*)\)|xlink:href="#([^"]*)"', text)) for text in (one, other)]
    assert references[0]
    assert not references[0] & references[1], "ids that figures of a page refer to differ"
    links = re.findall(r'\bhref="([^"]*)"', one)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_a_figure_is_the_same_every_time(tmp_path):
    assert svg(drawn(), "a") == svg(drawn(), "a")
    figure = drawn()
    assert save_png(figure, tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(figure.canvas, FigureCanvasAgg)


def test_names_of_any_length_and_script_leave_room_for_the_values(tmp_path, recwarn):
    names = ["数学", "writing: " + "a long description of a category, " * 5]
    figure = dots_figure([Dot(name, "model", Interval(50.0, 40.0, 60.0)) for name in names], "win rate, %")
    document = svg(figure, "a")
    save_png(figure, tmp_path / "f.png")
    assert [str(each.message) for each in recwarn] == []
    assert figure.axes[0].get_position().width > 0.35
    assert "数学" in document
    assert "writing: a long description of…" not in document
    assert "writing: a long description o…" in document
