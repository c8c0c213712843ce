"""The learning-rate schedule."""

import pytest
import torch
from transformers import get_scheduler

from lpsel.model.lightning_module import FineTuner, learning_rate_factor
from lpsel.model.spec import SCHEDULES, ModelSpec, Recipe


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 7), (0.03, 1), (0.1, 97), (0.9, 5)])
def test_the_learning_rate_is_that_of_transformers(schedule, warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=round(warmup * steps), num_training_steps=steps)
    for step in range(steps + 1):
        assert learning_rate_factor(Recipe(schedule=schedule, warmup=warmup), steps, step) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


def test_the_teardown_of_a_trainer_does_not_copy_weights_from_a_device_to_the_host():
    module = FineTuner("scorer", ModelSpec("a model", "folder"), "folder", torch.optim.AdamW, 1)
    module.loss = torch.nn.Linear(2, 2)
    assert module.cpu().loss.weight.device.type == "cpu"
    assert module.to("meta").cpu().loss.weight.is_meta
