"""The order of random choices."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lpsel.scoring.random_place import random_place


@pytest.fixture
def table(make_table):
    return make_table(np.ones(20_000))


def splitmix64(x):
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def place_by_hand(text, seed):
    data = text.encode()
    state = splitmix64(splitmix64(seed) ^ len(data))
    for start in range(0, len(data), 8):
        state = splitmix64(state ^ int.from_bytes(data[start : start + 8], "little"))
    return (state >> 11) / 2**53


def test_splitmix64_is_the_published_one():
    # The first outputs of the reference implementation with seed 1234567.
    gamma, outputs = 0x9E3779B97F4A7C15, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64((1234567 + i * gamma) % 2**64) for i in range(3)] == outputs


def test_places_are_those_of_an_implementation_in_plain_python(table):
    places = random_place(table, seed=42)
    assert [places[i] for i in (0, 7, 19_999)] == [place_by_hand(f"row-{i}", 42) for i in (0, 7, 19_999)]


def test_places_are_spread_evenly_over_zero_to_one(table):
    places = random_place(table, seed=0)
    assert len(set(places)) == len(places)
    counts, _ = np.histogram(places, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared of 19 degrees: 50 has a probability of 1e-4


def test_seeds_give_unrelated_orders(table):
    assert abs(np.corrcoef(random_place(table, seed=1), random_place(table, seed=2))[0, 1]) < 0.03


def test_a_place_depends_on_the_content_and_not_on_other_rows(table):
    other = replace(table, id=table.id.take(pa.array(np.arange(20_000)[::-1])))
    assert (random_place(other, 5) == random_place(table, 5)[::-1]).all()


def test_a_slice_of_ids_has_the_places_of_its_rows(make_table):
    few = make_table(np.ones(5))
    many = replace(few, id=pa.array(["é", "row-0", "row-1", "row-2", "row-3", "row-4"]).slice(1))
    assert (random_place(many, 5) == random_place(few, 5)).all()


def test_a_place_does_not_depend_on_how_long_other_ids_are(make_table):
    few = make_table(np.ones(3))
    other = replace(few, id=["row-0", "x" * 1000, ""])
    assert random_place(other, 5)[0] == random_place(few, 5)[0]
    assert random_place(other, 5).tolist() == [place_by_hand(id_, 5) for id_ in ("row-0", "x" * 1000, "")]


def test_without_ids_the_row_number_decides(make_table):
    table = replace(make_table(np.ones(5)), id=None)
    places = random_place(table, 3)
    assert len(set(places)) == 5
    assert (random_place(replace(table, index=table.index[::-1]), 3) == places[::-1]).all()
