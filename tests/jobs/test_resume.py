"""A command that is cut off at any moment goes on and comes to the same numbers, with few steps made twice."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from lpsel.config import run
from lpsel.errors import UserError
from lpsel.model.module import FineTuner

ROWS, STEPS, EPOCHS = 40, 5, 2  # rows, optimiser steps an epoch, epochs of the scorer


class Cut(BaseException):
    """Stands in for a kill: nothing catches it."""


@pytest.fixture
def cut(monkeypatch):
    """Lets a number of calls of a method of FineTuner through and cuts the next off; None lets all through.

    Returns the count of calls, which goes on from one process, or attempt, to the next.
    """
    calls = {"training_step": 0, "validation_step": 0}
    left = {}

    def counting(name):
        whole = getattr(FineTuner, name)

        def step(self, batch, i):
            if not getattr(batch, "micro_batches", True):
                return whole(self, batch, i)
            if left.get(name) == 0:
                raise Cut
            calls[name] += 1
            left[name] = left.get(name, -1) - 1
            return whole(self, batch, i)

        return step

    for name in calls:
        monkeypatch.setattr(FineTuner, name, counting(name))

    def at(name=None, after=0):
        left.clear()
        if name:
            left[name] = after
        return calls

    return at


def arguments(model, data, cache, *overrides):
    return [
        "scorer=local", f"scorer.path={model}", "dataset=local", f"dataset.path={data}", "trainer=cpu", "tracker=none",
        "scorer.recipe.learning_rate=1e-3", "scorer.recipe.batch_size=8", f"scorer.recipe.epochs={EPOCHS}",
        "scorer.max_length=256", "score_tokens=300", "selection=lp", f"selection.epochs={EPOCHS}", "pct=20",
        "cluster=none", "checkpoint_steps=2", f"cache_dir={cache}", *overrides,
    ]  # fmt: skip


def losses(result):
    table = pq.read_table(result["scores"])
    return np.array([table[name].to_numpy() for name in table.column_names if name.startswith("nll_")])


# A pass over the 40 rows has 8 batches, an epoch 5 steps.
MOMENTS = {
    "before training": ("validation_step", 5),
    "at the first step": ("training_step", 0),
    "in the first epoch": ("training_step", 3),
    "after the first epoch": ("validation_step", 13),
    "in the second epoch": ("training_step", 8),
    "after the second epoch": ("validation_step", 23),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_scores_are_the_same_to_the_last_bit_wherever_they_were_cut_off(tmp_path, toy_model, instructions, cut, moment):
    data = instructions(rows=ROWS)
    calls = cut()
    whole = run("select", arguments(toy_model, data, tmp_path / "whole"), tmp_path / "a")
    alone = dict(calls)
    assert alone == {"training_step": STEPS * EPOCHS, "validation_step": 8 * (EPOCHS + 1)}
    again = arguments(toy_model, data, tmp_path / "cut")
    cut(*MOMENTS[moment])
    with pytest.raises(Cut):
        run("select", again, tmp_path / "b")
    cut()
    resumed = run("select", again, tmp_path / "c")
    np.testing.assert_array_equal(losses(resumed), losses(whole))
    assert Path(resumed["subset"]).read_bytes() == Path(whole["subset"]).read_bytes()
    assert resumed["scoring"]["tokens"] == whole["scoring"]["tokens"]
    assert calls["training_step"] - alone["training_step"] <= STEPS * EPOCHS + 1  # checkpoint_steps=2: one twice
    assert not list((tmp_path / "cut" / "scores").glob("*.parts"))
