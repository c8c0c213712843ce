"""Batches that a data module plans for a model."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from lpsel.data.datamodule import SubsetDataModule, _EpochPlan


class Tokens(SimpleNamespace):
    """One row of 512 tokens and 31 of 40, of which the last is supervised; no prefix is shared."""

    lengths = np.array([512, *[40] * 31], np.int32)
    response_tokens = np.ones(32, np.int32)
    ids = pa.array([f"{i:032x}" for i in range(32)], pa.large_string())

    def __len__(self):
        return 32


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr("lpsel.data.datamodule.find_prefixes", lambda *_: SimpleNamespace(ids=[], length_N=0))
    module = SubsetDataModule(Tokens(), batch_size=32, seed=0, train_tokens=2048, score_tokens=2048, record=True)

    def of(attention):
        model = SimpleNamespace(loss=SimpleNamespace(attention=attention))
        module.trainer = SimpleNamespace(lightning_module=model, global_rank=0, world_size=1)
        return module

    return of


def sizes(data):
    """Rows of each batch of a recording pass, and of the micro-batches of the first training step."""
    ((micro_batches, _, _),) = _EpochPlan(data)
    return [len(rows) for (rows,) in data.rounds()], [len(rows) for rows in micro_batches]


def test_rows_of_a_model_that_packs_count_with_their_own_tokens(data):
    assert sizes(data(attention=object())) == ([32], [32])  # 512 + 31 x 40 = 1752 tokens


def test_rows_of_a_model_that_pads_count_with_the_tokens_of_the_longest(data):
    assert sizes(data(attention=None)) == ([4, 28], [4, 28])  # 4 x 512 and 28 x 40 tokens
