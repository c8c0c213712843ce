"""Tables as the page shows them."""

import pytest

from lpsel.report.cells import readable, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(58.131, "58.1"), (0.88079, "0.881"), (8.287, "8.287"), (1234.5, "1,234"), (3000, "3,000"), (25.0, "25"),
     (2.6986e11, "2.70e11"), (0.0000999, "9.99e-05"), (None, "–"), (True, "yes"), ("lp", "lp")],
)  # fmt: skip
def test_numbers_have_three_or_four_digits(value, text):
    assert shown(value) == text


def test_an_interval_is_in_the_cell_of_its_value_and_empty_columns_are_left_out():
    difference = {"minus random": -0.05, "minus random low": -0.12, "minus random high": 0.02}
    ends = {"low": 54.02, "high": 62.2}
    first = {"run": "a", "metric": "nll", "value": 58.131, **ends, **difference, "saved %": 75.013, "bucket": None}
    second = dict.fromkeys(first) | {"run": "b", "metric": "win_rate", "value": 9.512}
    table = [first | {"folder": "runs/a"}, second | {"folder": "runs/b"}]
    columns, rows = readable(table)
    assert columns == {"run": False, "metric": False, "value": True, "minus random": True, "saved %": True}
    (folder, cells), (_, others) = rows
    assert folder == "runs/a"
    assert [cell.text for cell in cells] == ["a", "nll", "58.1 [54.0, 62.2]", "-0.050 [-0.120, 0.020]", "75.0"]
    assert [cell.value for cell in cells] == ["a", "nll", 58.131, -0.05, 75.013], "sorted by all digits"
    assert [cell.text for cell in others] == ["b", "win_rate", "9.5", "–", "–"]


def test_counts_and_ranges_of_counts_are_sorted_by_their_lowest_number():
    _, rows = readable([{"run": "a", "rows": text} for text in ("12,345", "900 to 1,000", "7", None, "lp, 3")])
    assert [cells[1].text for _, cells in rows] == ["12,345", "900 to 1,000", "7", "–", "lp, 3"]
    assert [cells[1].value for _, cells in rows] == ["12345", "900", "7", "", "lp, 3"]
