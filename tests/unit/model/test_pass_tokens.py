"""The size of a recording pack, by hand; what becomes of memory that a pass has freed."""

import platform
import subprocess
import sys

import pytest
from transformers import GPT2Config, LlamaConfig, OPTConfig

from lpsel.model.pass_tokens import pass_tokens


@pytest.mark.parametrize(
    ("config", "precision", "tokens"),
    [
        # SmolLM2-135M: 4 x (6 x 576 + 4 x 1536) + 12 x 576 bytes a token
        (LlamaConfig(hidden_size=576, intermediate_size=1536), "32-true", 2**28 // 45312),
        (LlamaConfig(hidden_size=576, intermediate_size=1536), "bf16-mixed", 2**28 // 26112),
        (OPTConfig(hidden_size=2048, ffn_dim=8192), "bf16-true", 2**28 // 114688),
        (GPT2Config(n_embd=768), "32-true", 2**28 // (4 * (6 * 768 + 16 * 768) + 12 * 768)),
    ],
)
def test_activations_bound_a_pack_whatever_was_asked_for(config, precision, tokens):
    assert pass_tokens(config, precision, 10**9, "cpu") == tokens
    assert pass_tokens(config, precision, 10**9, "cuda") in (2 * tokens, 2 * tokens + 1)
    assert pass_tokens(config, precision, 100, "cpu") == 100


PASSES = """
import resource, torch
from lpsel.model.pass_tokens import reuse_freed_memory

def faults():
    counts = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(20, 2**20).add(1)  # two blocks of 80 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)

print(faults())
reuse_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_memory_that_was_freed_is_not_cleared_again():
    """160 MiB are 40,960 pages, each of which the kernel would hand out anew."""
    done = subprocess.run([sys.executable, "-c", PASSES], check=True, capture_output=True, text=True)
    as_it_is, reused = map(int, done.stdout.split())
    assert as_it_is > 10_000
    assert reused < 100
