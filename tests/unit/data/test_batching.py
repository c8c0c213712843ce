"""Batches: every row once, never over budget, the same number of passes on every rank."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lpsel.data.batching import packed, padded, recording_rounds, training_plan

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(lambda x: np.array(x, dtype=np.int32))
WORLDS = st.integers(1, 5)


def test_longest_rows_come_first_and_padding_counts():
    lengths = np.array([3, 10, 5, 4], dtype=np.int32)
    assert [batch.tolist() for batch in padded(np.arange(4), lengths, budget=10)] == [[1], [2, 3], [0]]


def test_packs_do_not_count_padding():
    lengths = np.array([3, 10, 5, 4, 1], dtype=np.int32)
    assert [batch.tolist() for batch in packed(np.arange(5), lengths, budget=13)] == [[1], [2, 3, 0, 4]]


@pytest.mark.parametrize("cut", [padded, packed])
def test_a_row_longer_than_the_budget_is_a_batch_of_its_own(cut):
    assert [b.tolist() for b in cut(np.arange(2), np.array([50, 2], dtype=np.int32), budget=8)] == [[0], [1]]


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_batch_within_the_budget(lengths, budget):
    for cut, size in [(padded, lambda row: len(row) * row.max()), (packed, lambda row: row.sum())]:
        batches = cut(np.arange(len(lengths)), lengths, budget)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert all(len(batch) == 1 or size(lengths[batch]) <= budget for batch in batches)


@given(LENGTHS, st.integers(1, 200), WORLDS)
@example(np.arange(1, 12, dtype=np.int32), 20, 12)
def test_recording_reaches_every_row_with_equal_passes_on_every_rank(lengths, budget, world):
    rounds = recording_rounds(np.arange(len(lengths)), lengths, budget, world)
    assert {len(batches) for batches in rounds} == {world}
    assert set(np.concatenate([rows for batches in rounds for rows in batches]).tolist()) == set(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200), st.integers(1, 40), WORLDS)
@example(np.arange(1, 12, dtype=np.int32), 20, 4, 12)
def test_training_steps_are_the_same_rows_for_any_budget_and_world_size(lengths, budget, batch_size, world):
    order = np.random.default_rng(0).permutation(len(lengths))
    plans = [training_plan(order, lengths, batch_size, budget, rank, world) for rank in range(world)]
    assert {len(plan) for plan in plans} == {-(-len(lengths) // batch_size)}
    for i, step in enumerate(zip(*plans, strict=True)):
        assert len({len(micro_batches) for micro_batches in step}) == 1
        rows = np.concatenate([rows for micro_batches in step for rows in micro_batches])
        assert sorted(rows) == sorted(order[i * batch_size : (i + 1) * batch_size])


def test_ranks_get_equal_numbers_of_tokens():
    lengths = np.arange(1, 65, dtype=np.int32)
    plans = [training_plan(np.arange(64), lengths, 64, 512, rank, 4) for rank in range(4)]
    assert {sum(int(lengths[rows].sum()) for rows in plan[0]) for plan in plans} == {520}
