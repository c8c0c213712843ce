"""The check of a GPU's attention kernel; the kernel is stood in for by its documented definition."""

import pytest
import torch
from torch.nn.attention import varlen
from transformers import LlamaConfig, MistralConfig, OPTConfig

from lpsel.errors import UserError
from lpsel.model import attention
from lpsel.model.kernel_check import PACK, Heads, attention_errors, check_kernel
from tests.unit.model.test_attention import defined

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def kernel(monkeypatch):
    """Makes PackedAttention call this function as if a GPU did."""

    def use(function):
        monkeypatch.setattr(attention, "flash_supports", lambda query, value: True)
        monkeypatch.setattr(
            varlen, "varlen_attn", lambda *given, enable_gqa, **how: function(*given, enable_gqa=enable_gqa, **how)
        )

    return use


def without_window(*given, **how):
    return defined(*given, **(how | {"window_size": (-1, 0)}))


def without_gradients_of_values(query, key, value, *given, **how):
    return defined(query, key, value.detach(), *given, **how)


def with_gradients_of_values_that_are_nan(query, key, value, *given, **how):
    value = value.clone()
    value.register_hook(lambda gradient: gradient * float("nan"))
    return defined(query, key, value, *given, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), MistralConfig(**SMALL, sliding_window=4096)])
def test_a_kernel_that_does_what_it_documents_passes(kernel, config, dtype):
    kernel(defined)
    check_kernel(config, dtype, CPU)


@pytest.mark.parametrize(
    ("wrong", "config"),
    [
        (without_window, MistralConfig(**SMALL, sliding_window=4096)),
        (without_gradients_of_values, LlamaConfig(**SMALL)),
        (with_gradients_of_values_that_are_nan, LlamaConfig(**SMALL)),
        (lambda *given, **how: defined(*given, **how) * 1.02, LlamaConfig(**SMALL)),
        (lambda *given, **how: defined(*given, **how) * float("nan"), LlamaConfig(**SMALL)),
    ],
    ids=[
        "a window ignored",
        "no gradient of the values",
        "NaN as gradient of the values",
        "two percent too large",
        "NaN",
    ],
)
def test_a_wrong_kernel_ends_the_run_before_training(kernel, wrong, config):
    kernel(wrong)
    with pytest.raises(UserError) as caught:
        check_kernel(config, torch.bfloat16, CPU)
    assert caught.value.name == config.model_type
    assert "attention in bfloat16 is off by" in caught.value.problem
    assert "trainer.precision=32-true" in caught.value.hint


def test_heads_are_those_of_the_configuration():
    assert Heads.of(LlamaConfig(**SMALL)) == (4, 2, 8)
    assert Heads.of(LlamaConfig(**SMALL, head_dim=16)) == (4, 2, 16)
    assert Heads.of(OPTConfig(hidden_size=64, num_attention_heads=4)) == (4, 4, 16)


@pytest.mark.parametrize("gpu", [True, False], ids=["the kernel of a GPU", "segments on a CPU"])
def test_gradients_of_a_shared_prefix_are_summed_in_float32(kernel, gpu):
    """Summed in bfloat16, those of 200 rows lose more digits than all other roundings together."""
    if gpu:
        kernel(defined)
    rows = [PACK[0], *(type(PACK[0])(41 + 3 * i, 44 + 3 * i, 0, 41) for i in range(200))]
    errors = attention_errors(rows, Heads(4, 2, 8), None, torch.bfloat16, CPU)
    assert max(errors["key"], errors["value"]) < 4e-3
