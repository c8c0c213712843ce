"""The size of a recording pack, worked out by hand."""

import pytest
from transformers import GPT2Config, LlamaConfig, OPTConfig

from lpsel.model.memory_estimate import recording_pack


@pytest.mark.parametrize(
    ("config", "precision", "tokens"),
    [
        # SmolLM2-135M: 4 x (6 x 576 + 4 x 1536) + 12 x 576 bytes per token
        (LlamaConfig(hidden_size=576, intermediate_size=1536), "32-true", 2**28 // 45312),
        (LlamaConfig(hidden_size=576, intermediate_size=1536), "bf16-mixed", 2**28 // 26112),
        (OPTConfig(hidden_size=2048, ffn_dim=8192), "bf16-true", 2**28 // 114688),
        (GPT2Config(n_embd=768), "32-true", 2**28 // (4 * (6 * 768 + 16 * 768) + 12 * 768)),
    ],
)
def test_activations_limit_a_pack_whatever_is_requested(config, precision, tokens):
    assert recording_pack(config, precision, 10**9, "cpu") == tokens
    assert recording_pack(config, precision, 10**9, "cuda") in (2 * tokens, 2 * tokens + 1)
    assert recording_pack(config, precision, 100, "cpu") == 100
