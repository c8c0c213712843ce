"""Checkpoints of a training run, written and read on one rank."""

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lpsel.errors import UserError
from lpsel.training import checkpoint
from lpsel.training.checkpoint import Checkpoints


def test_the_intact_checkpoint_is_kept_until_a_newer_one_is_complete(tmp_path, monkeypatch):
    checkpoints, model = Checkpoints(tmp_path, SingleDeviceStrategy("cpu")), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        checkpoints.save(step, model, optimizer, {"step": step})
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    assert checkpoints.load(model, optimizer)["step"] == 1

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "_write_slices", full)
    with pytest.raises(UserError, match="cannot be written"):
        checkpoints.save(3, model, optimizer, {"step": 3})
    assert checkpoints.load(model, optimizer)["step"] == 1
