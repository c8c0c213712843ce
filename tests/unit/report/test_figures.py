"""Figures of agreement: what stands in them, and that they fit into any page."""

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lpsel.report import figures

NAMES = ["small", "$large$", "a name that is much too long for an axis"]
VALUES = np.array([[1.0, 0.79, -0.05], [0.79, 1.0, np.nan], [-0.05, np.nan, 1.0]])


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_matrix_shows_every_number_but_the_diagonal_and_the_undefined():
    figure = figures.heatmap(NAMES, VALUES, "Spearman")
    assert texts(figure) == [".79", "-.05", ".79", "-.05"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [*NAMES[:2], "a name that is mu… an axis"]


def test_colours_mean_the_same_in_every_matrix():
    assert figures.heatmap(NAMES, np.abs(VALUES), "").axes[0].images[0].get_clim() == (0, 1)
    assert figures.heatmap(NAMES, VALUES, "").axes[0].images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(("value", "text"), [(0.786, ".79"), (-0.05, "-.05"), (0.999, "1.0"), (0.0, ".00")])
def test_numbers_are_short(value, text):
    assert figures._decimal(value) == text


def test_numbers_are_black_on_light_and_white_on_dark():
    assert [figures._readable_on(colour) for colour in ((1, 1, 0, 1), (0.2, 0, 0.3, 1))] == ["black", "white"]


def test_ranks_go_from_the_hardest_row_to_the_easiest():
    assert figures.percent_ranks(np.array([[0.3, 0.1, 0.3, 0.9]])).tolist() == [[50, 12.5, 50, 87.5]]


@pytest.mark.parametrize("scorers", [2, 3, 4, 7])
def test_every_two_scorers_have_a_panel_and_no_place_is_empty(scorers):
    figure = figures.rank_rank(["x"] * scorers, np.random.default_rng(0).random((scorers, 50)), [10], "")
    assert len(figure.axes) == scorers * (scorers - 1) // 2


def test_density_is_in_multiples_of_chance():
    # Equal ranks: all rows in the bins of the diagonal, each with as many times chance as there are bins, at most 10.
    rank = figures.percent_ranks(np.arange(1_600.0)[None])[0]
    image = figures.rank_panel(rank, rank, [10]).axes[0].images[0].get_array()
    assert image.shape == (20, 20)
    assert np.diag(image).min() == 10
    assert image[0, 1] == pytest.approx(0.1)


def test_a_figure_for_a_page_takes_its_text_colour_and_refers_to_nothing_outside():
    one, two = (
        figures.svg(figures.heatmap(NAMES, VALUES, "<b>", figures.INK_IN_SVG), name, "label") for name in ("a", "b")
    )
    assert one.startswith('<svg role="img" aria-label="label"')
    assert "currentColor" in one
    assert "http" not in one
    assert "<b>" not in one
    assert "$large$" in one
    ids = [re.findall(r' id="([^"]*)"', drawn) for drawn in (one, two)]
    assert not set(ids[0]) & set(ids[1])


def test_a_drawing_is_the_same_every_time(tmp_path):
    drawn = [figures.svg(figures.heatmap(NAMES, VALUES, ""), "a", "label") for _ in range(2)]
    assert drawn[0] == drawn[1]
    figure = figures.heatmap(NAMES, VALUES, "")
    assert figures.save_png(figure, tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(figure.canvas, FigureCanvasAgg)
