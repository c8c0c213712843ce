"""Shared prefixes: found where they save tokens, and never beyond the first label of a row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import SHORTEST, find_prefixes
from lpsel.data.tokens import Batch


class Rows:
    """Rows as Tokens has them: (token ids, first supervised position)."""

    def __init__(self, rows):
        self.rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)

    def __len__(self):
        return len(self.rows)

    def batches(self):
        for part in (self.rows[:3], self.rows[3:]):
            spans = [(first, len(ids)) for ids, first in part]  # one of two numbers per row
            yield Batch(
                ids=np.array([token for ids, _ in part for token in ids], dtype=np.int32),
                id_offsets=np.cumsum([0] + [len(ids) for ids, _ in part]),
                spans=np.array(spans, dtype=np.int32).reshape(-1),
                span_offsets=2 * np.arange(len(part) + 1),
            )

    def input_ids(self, i):
        return np.array(self.rows[i][0], dtype=np.int32)

    def supervised(self, i):
        ids, first = self.rows[i]
        return np.arange(len(ids)) >= first


def test_two_preambles_are_found_without_the_instructions_after_them():
    with_input, without = [1, 2, 3, *range(10, 20)], [1, 2, 3, *range(30, 50)]
    rows = Rows([([*(with_input if i % 2 else without), 90 + i, 80, 81, 82], 25 - 10 * (i % 2)) for i in range(10)])
    prefixes = find_prefixes(rows)
    assert [ids.tolist() for ids in prefixes.ids] == [[], with_input, without]
    assert prefixes.group_N.tolist() == [2, 1] * 5
    assert prefixes.length_N.tolist() == [23, 13] * 5


def test_a_prefix_ends_before_the_first_label():
    beginning = list(range(12))
    rows = Rows([([*beginning, 70 + i, 80], 12) for i in range(8)] + [([*beginning, 99], 5)])
    assert find_prefixes(rows).length_N.tolist() == [12] * 8 + [0]


def test_rows_that_begin_differently_share_nothing():
    assert find_prefixes(Rows([([i] * 20, 10) for i in range(9)])).length_N.tolist() == [0] * 9


def test_prefixes_take_at_most_half_of_a_pack():
    """Five system turns of 100 tokens, of which the last two are those of more rows."""
    kinds = [*range(5), *range(5), 3, 4]
    rows = Rows([([*range(100 * kind, 100 * kind + 100), 900 + i, 1, 2], 101) for i, kind in enumerate(kinds)])
    rows.response_tokens = np.full(len(rows), 2)
    assert len(find_prefixes(rows).ids) == 6
    data = SubsetDataModule(rows, batch_size=4, seed=0, train_tokens=1000, score_tokens=500, record=True)
    assert [ids[:1].tolist() for ids in data.prefixes.ids] == [[], [300], [400]]
    assert data.prefixes.length_N.tolist() == [100 * (kind >= 3) for kind in kinds]
    assert data.packing(500)[1] == 300
    assert [len(pack) for [pack] in data.rounds()] == [2, 2, 8], "6 rows of 103 tokens, then 6 of 3"
    assert len(find_prefixes(rows, 99).ids) == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=40))
def test_every_row_is_in_its_pack_once_and_complete(drawn):
    beginnings = [[], list(range(SHORTEST)), list(range(100, 120))]
    rows = Rows([([*beginnings[b], *([7 + i] * own), *([3] * said)], 1) for i, (b, own, said) in enumerate(drawn)])
    rows.rows = [(ids, max(1, len(ids) - said)) for (ids, _), (_, _, said) in zip(rows.rows, drawn, strict=True)]
    prefixes = find_prefixes(rows)
    batch = collate(rows, np.arange(len(rows)), prefixes, varlen=True)
    for i, segment in enumerate(batch.rows):
        seen = [*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, segment.stop)]
        assert batch.input_ids_T[seen].tolist() == rows.rows[i][0]
        assert batch.positions_T[seen].tolist() == list(range(rows.lengths[i]))
        assert batch.labels_N[batch.row_N == i].tolist() == rows.rows[i][0][rows.rows[i][1] :]
    assert batch.supervised_B.tolist() == [len(ids) - first for ids, first in rows.rows]
    assert (batch.positions_T[batch.predicts_N] >= 0).all()
    assert batch.tokens == rows.lengths.sum()
    varlen = batch.varlen
    ends = zip(varlen.key_ends_S1[:-1].tolist(), varlen.key_ends_S1[1:].tolist(), strict=True)
    keys = [varlen.seen_K[start:stop].tolist() for start, stop in ends]
    for i, segment in enumerate(batch.rows):
        assert keys[len(batch.shared) + i] == [
            *range(segment.prefix_start, segment.prefix_stop),
            *range(segment.start, segment.stop),
        ]
