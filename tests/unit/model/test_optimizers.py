"""AdamW with its moments in 8 bits, as configured in conf/optimizer/adamw8bit.yaml."""

import warnings
from pathlib import Path

import pytest
import torch
from fixtures.configurations import compose
from hydra import initialize_config_dir

from lpsel import errors
from lpsel.config import build, config_dir
from lpsel.errors import UserError
from lpsel.tracking.tracker import Tracker
from lpsel.training.setup import TrainingSetup


def configured(*overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("select", overrides=list(overrides))


def check(config):
    TrainingSetup.of(config, Path("cache"), Path("run"), Tracker())


def made(name, parameters):
    return build(configured(f"optimizer={name}").optimizer)(parameters, lr=1e-2)


def stepped(name, steps=5):
    generator = torch.Generator().manual_seed(0)
    large = torch.nn.Parameter(torch.randn(64, 96, generator=generator))
    small = torch.nn.Parameter(torch.randn(96, generator=generator))
    optimizer = made(name, [large, small])
    for _ in range(steps):
        for parameter in (large, small):
            parameter.grad = parameter.detach() * torch.rand(parameter.shape, generator=generator)
        optimizer.step()
    return large, small, optimizer


def test_moments_of_large_tensors_take_two_bytes_per_weight():
    large, small, optimizer = stepped("adamw8bit")
    moments = [optimizer.state[large][name] for name in ("state1", "state2")]
    assert [m.dtype for m in moments] == [torch.uint8, torch.uint8]
    assert sum(m.numel() * m.element_size() for m in moments) == 2 * large.numel()
    # a scale in float32 for every block of 256 weights, twice
    scales = [optimizer.state[large][name] for name in ("absmax1", "absmax2")]
    assert [s.numel() * s.element_size() for s in scales] == [4 * large.numel() // 256] * 2
    assert optimizer.state[small]["state1"].dtype == torch.float32, "fewer than 4,096 weights: not worth it"


def test_steps_are_adamws_up_to_the_rounding_of_the_moments():
    large, small, _ = stepped("adamw8bit")
    exact_large, exact_small, _ = stepped("adamw")
    torch.testing.assert_close(small, exact_small, rtol=0, atol=1e-6)
    # Five steps of at most 0.01 each: their mean error is a few percent of the way.
    assert (large - exact_large).abs().mean() < 0.03 * 5 * 1e-2


def test_same_settings_as_the_papers_adamw():
    eight, exact = configured("optimizer=adamw8bit").optimizer, configured("optimizer=adamw").optimizer
    own = {"_target_", "fused"}  # how they compute
    assert {k: v for k, v in eight.items() if k not in own} == {k: v for k, v in exact.items() if k not in own}


@pytest.mark.parametrize(
    ("strategy", "rejected"),
    [
        ("auto", False),
        ("ddp", False),
        ("fsdp", True),
        ({"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}, True),
        ({"_target_": "lightning.pytorch.strategies.DDPStrategy"}, False),
    ],
)
def test_sharded_weights_are_rejected(strategy, rejected):
    config = configured("optimizer=adamw8bit")
    config.trainer.strategy = strategy
    if not rejected:
        check(config)
        return
    with pytest.raises(UserError) as caught:
        check(config)
    assert (caught.value.name, caught.value.value) == ("optimizer", "adamw8bit")
    assert caught.value.hint == "set optimizer=adamw, or trainer=ddp"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    check(configured("optimizer=adamw"))
    with pytest.raises(UserError) as caught:
        check(configured("optimizer=adamw8bit"))
    assert (caught.value.name, caught.value.value) == ("optimizer", "adamw8bit")
    assert caught.value.hint == "run pip install 'lpsel[quantized]'"


def test_activation_checkpointing_must_be_true_or_false():
    with pytest.raises(UserError, match="activation_checkpointing=some"):
        check(configured("activation_checkpointing=some"))


def test_a_training_run_has_one_parameter_group_with_the_recipes_rate():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = made("adamw8bit", [torch.nn.Parameter(torch.zeros(4096))])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2]


@pytest.mark.parametrize("every", [0, -1, 1.5, "often", "true", "null"])
def test_checkpoint_steps_must_be_auto_or_a_number_of_steps(every):
    with pytest.raises(UserError) as caught:
        check(configured(f"checkpoint_steps={every}"))
    assert caught.value.name == "checkpoint_steps"
