"""Figures of agreement: their numbers, labels and colors."""

import numpy as np
import pytest

from lpsel.report.agreement_figures import decimal, heatmap, percent_ranks, rank_rank, text_color

NAMES = ["small", "$large$", "a name that is much too long for an axis"]
VALUES = np.array([[1.0, 0.79, -0.05], [0.79, 1.0, np.nan], [-0.05, np.nan, 1.0]])


def test_a_matrix_shows_every_number_but_the_diagonal_and_the_undefined():
    (axes,) = heatmap(NAMES, VALUES, "Spearman").axes
    assert [text.get_text() for text in axes.texts] == [".79", "-.05", ".79", "-.05"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*NAMES[:2], "a name that is mu… an axis"]


def test_colors_mean_the_same_in_every_matrix():
    assert heatmap(NAMES, np.abs(VALUES), "").axes[0].images[0].get_clim() == (0, 1)
    assert heatmap(NAMES, VALUES, "").axes[0].images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(("value", "text"), [(0.786, ".79"), (-0.05, "-.05"), (0.999, "1.0"), (0.0, ".00")])
def test_numbers_are_short(value, text):
    assert decimal(value) == text


def test_numbers_are_black_on_light_and_white_on_dark():
    assert [text_color(background) for background in ((1, 1, 0, 1), (0.2, 0, 0.3, 1))] == ["black", "white"]


def test_ranks_go_from_the_hardest_row_to_the_easiest():
    assert percent_ranks(np.array([[0.3, 0.1, 0.3, 0.9]])).tolist() == [[50, 12.5, 50, 87.5]]


@pytest.mark.parametrize("scorers", [2, 3, 4, 7])
def test_every_pair_of_scorers_has_a_panel_and_no_cell_is_empty(scorers):
    figure = rank_rank(["x"] * scorers, np.random.default_rng(0).random((scorers, 50)), [10], "")
    assert len(figure.axes) == scorers * (scorers - 1) // 2


def test_density_is_in_multiples_of_chance():
    # Equal ranks: all rows in the bins of the diagonal, each with as many times chance as there are bins, at most 10.
    scores = np.tile(np.arange(1_600.0), (2, 1))
    panel, scale = rank_rank(["one", "other"], scores, [10], "").axes
    image = panel.images[0].get_array()
    assert image.shape == (20, 20)
    assert np.diag(image).min() == 10
    assert image[0, 1] == pytest.approx(0.1)
    assert scale.get_ylabel() == "rows, in multiples of chance"
