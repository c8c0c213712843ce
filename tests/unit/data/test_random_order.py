"""Random orders follow from content and seed: equal to plain Python, the same wherever a row is."""

import numpy as np
import pyarrow as pa
import pytest

from lpsel.data.random_order import epoch_order, random_keys, splitmix64

GAMMA = 0x9E3779B97F4A7C15
IDS = [f"row-{i}" for i in range(20_000)]
INDEX = np.arange(20_000)


def content_ids(n):
    return [f"{i * 2654435761 % 2**64:016x}{'0' * 16}" for i in range(n)]


def mixed(x):
    mask = 2**64 - 1
    x = (x + GAMMA) & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def key_in_plain_python(text, seed):
    data = text.encode()
    state = mixed(mixed(seed) ^ len(data))
    for start in range(0, len(data), 8):
        state = mixed(state ^ int.from_bytes(data[start : start + 8], "little"))
    return (state >> 11) / 2**53


def later_keys_in_plain_python(text, seed, rows):
    data = text.encode()
    state = mixed(mixed(mixed(seed) ^ len(data)) ^ int.from_bytes(data, "little"))
    return [(mixed(state ^ turn) >> 11) / 2**53 for turn in range(1, rows + 1)]


def test_splitmix64_gives_the_published_outputs():
    # The first outputs of the reference implementation with seed 1234567.
    inputs = np.array([(1234567 + i * GAMMA) % 2**64 for i in range(3)], np.uint64)
    assert splitmix64(inputs).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_equal_an_implementation_in_plain_python():
    keys = random_keys(IDS, INDEX, seed=42)
    assert [keys[i] for i in (0, 7, 19_999)] == [key_in_plain_python(f"row-{i}", 42) for i in (0, 7, 19_999)]


def test_keys_are_uniform():
    keys = random_keys(IDS, INDEX, seed=0)
    assert len(set(keys)) == len(keys)
    counts, _ = np.histogram(keys, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared of 19 degrees: 50 has a probability of 1e-4


def test_keys_of_two_seeds_are_uncorrelated():
    assert abs(np.corrcoef(random_keys(IDS, INDEX, seed=1), random_keys(IDS, INDEX, seed=2))[0, 1]) < 0.03


def test_a_key_depends_on_the_content_and_not_on_the_position():
    assert (random_keys(IDS[::-1], INDEX, 5) == random_keys(IDS, INDEX, 5)[::-1]).all()


def test_a_slice_of_ids_has_the_keys_of_its_rows():
    ids = pa.array(["é", "row-0", "row-1", "row-2", "row-3", "row-4"]).slice(1)
    assert (random_keys(ids, INDEX[:5], 5) == random_keys(IDS[:5], INDEX[:5], 5)).all()


def test_a_key_does_not_depend_on_the_length_of_other_ids():
    ids = ["row-0", "x" * 1000, ""]
    assert random_keys(ids, INDEX[:3], 5).tolist() == [key_in_plain_python(text, 5) for text in ids]


def test_rows_of_one_content_have_keys_of_their_own_in_the_order_of_their_row_numbers():
    first, second, third = (key_in_plain_python("a", 5), *later_keys_in_plain_python("a", 5, 2))
    keys = random_keys(["a", "b", "a", "a"], np.array([7, 0, 3, 9]), 5)
    assert keys.tolist() == [second, key_in_plain_python("b", 5), first, third]


def test_without_ids_the_key_follows_from_the_row_number():
    keys = random_keys(None, INDEX[:5], 3)
    assert len(set(keys)) == 5
    assert (random_keys(None, INDEX[:5][::-1], 3) == keys[::-1]).all()


def test_the_order_of_an_epoch_depends_on_content_and_not_on_position():
    ids = content_ids(50)
    shuffled = np.random.default_rng(3).permutation(50)
    order = [ids[i] for i in epoch_order(ids, seed=42, epoch=1)]
    moved = [ids[i] for i in shuffled]
    assert [moved[i] for i in epoch_order(moved, seed=42, epoch=1)] == order


@pytest.mark.parametrize("other", [dict(seed=43, epoch=0), dict(seed=42, epoch=1)])
def test_another_seed_or_epoch_gives_another_order(other):
    ids = content_ids(50)
    assert epoch_order(ids, **other).tolist() != epoch_order(ids, seed=42, epoch=0).tolist()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_negative_and_huge_seeds_give_orders(seed):
    assert sorted(epoch_order(content_ids(9), seed=seed, epoch=0)) == list(range(9))
