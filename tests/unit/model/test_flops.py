"""Floating-point operations counted by hand, and against those that torch counts itself."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lpsel.model.adapter import Adapter
from lpsel.model.flops import forward_flops, training_flops
from lpsel.model.loss import PerSampleLoss, token_nll
from lpsel.model.spec import ModelSpec

# A layer: q and o 32 x 32, k and v 32 x 16, three of 32 x 48, two norms of 32; two layers and the last norm.
LAYERS = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
HEAD = 97 * 32
ADAPTER = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)  # rank 4 on the seven linear layers of both layers
LENGTHS, SUPERVISED = np.array([10, 30], dtype=np.int32), np.array([4, 11], dtype=np.int32)
ATTENTION = 2 * 2 * 32 * (10**2 + 30**2)  # 2 x layers x hidden x T^2


def adapted(path, quantization):
    adapter = Adapter(rank=4, quantization=quantization)
    return adapter.load(ModelSpec("small", path=path, max_length=64), path, "32-true", torch.device("cpu")).model


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_training_all_weights_is_three_forward_passes(make_model, kind):
    model = make_model(kind)
    forward = 2 * LAYERS * 40 + ATTENTION + 2 * HEAD * 15
    assert forward_flops(model, LENGTHS, SUPERVISED) == forward
    assert training_flops(model, LENGTHS, SUPERVISED) == 3 * forward


def test_attention_counts_the_width_of_the_heads():
    # Gemma 3: 4 heads of 16 at a hidden size of 32
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Gemma3TextConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    model = Gemma3ForCausalLM(config)
    once = forward_flops(model, np.array([10], np.int32), np.array([0], np.int32))
    twice = forward_flops(model, np.array([20], np.int32), np.array([0], np.int32))
    assert twice - 2 * once == 2 * 2 * 64 * (20**2 - 2 * 10**2)


def test_experts_count_as_far_as_tokens_are_routed_to_them():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MixtralConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2
    )
    model = MixtralForCausalLM(config)
    # a layer: attention, a router of 32 x 8, two norms, and 2 of 8 experts of three 32 x 48
    layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 32 * 8 + 2 * 3 * 32 * 48 + 2 * 32) + 32
    assert forward_flops(model, LENGTHS, SUPERVISED) == 2 * layers * 40 + ATTENTION + 2 * HEAD * 15


@pytest.mark.parametrize("quantization", [None, "nf4"], ids=["lora", "qlora"])
def test_frozen_weights_cost_two_thirds_whatever_their_bits(make_folder, quantization):
    model = adapted(make_folder(), quantization)
    assert forward_flops(model, LENGTHS, SUPERVISED) == 2 * (LAYERS + ADAPTER) * 40 + ATTENTION + 2 * HEAD * 15
    expected = (4 * LAYERS + 6 * ADAPTER) * 40 + 3 * ATTENTION + 4 * HEAD * 15
    assert training_flops(model, LENGTHS, SUPERVISED) == expected


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "lora"])
def test_torch_counts_about_as_many(make_model, make_folder, batch, adapter):
    model = adapted(make_folder(), None) if adapter else make_model()
    lengths, supervised = np.full(4, 24, dtype=np.int32), np.array([19, 18, 17, 16], dtype=np.int32)
    assert len(batch.labels_N) == supervised.sum()
    loss = PerSampleLoss(model)
    loss.attention = None  # rows padded, with products that the counter sees
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        token_nll(loss.logits(loss.hidden(batch)), batch.labels_N).sum().backward()
    # It also counts attention to the right, but not norms nor the first layer's input gradient where that is
    # not needed: 4 rows, 2 layers, 3 x 2 x 32 x 24^2 more, and 2 x 32 x (32 + 16 + 16) less for each of 96 tokens.
    ours = training_flops(model, lengths, supervised)
    ours += 3 * 4 * 2 * 2 * 32 * 24**2
    ours -= (4 if adapter else 6) * 5 * 32 * 96
    ours -= 2 * 32 * (32 + 16 + 16) * 96 if adapter else 0
    # peft multiplies by A in the first layer, whose input has no gradient either: 3 of rank 4.
    ours -= 3 * 2 * 32 * 4 * 96 if adapter else 0
    assert counter.get_total_flops() == pytest.approx(ours, rel=1e-9)
