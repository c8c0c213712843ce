"""The size of a recording pack, worked out by hand, and the memory of training, compared with its allocations."""

import weakref

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from lpsel.data.packing import MicroBatch, Segment
from lpsel.model import device, memory_estimate
from lpsel.model.adapter import Adapter
from lpsel.model.loss import PerSampleLoss
from lpsel.model.memory_estimate import recording_pack, training_memory
from lpsel.model.spec import ModelSpec


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
    assert recording_pack(config, precision, 10**9, None) == tokens
    assert recording_pack(config, precision, 10**9, 80 * 2**30) // 16 == tokens  # 4 GiB instead of 256 MiB
    assert recording_pack(config, precision, 100, None) == 100


FAMILIES = {
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 256, "dropout": 0.0},
    "llama": {"intermediate_size": 688},
    "gemma3_text": {"intermediate_size": 512, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 64},
}


class Allocated(TorchDispatchMode):
    """The bytes of all tensors that exist at a time, and the largest number so far."""

    def __init__(self, existing):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()
        for tensor in existing:
            self.add(tensor.untyped_storage())

    def add(self, storage):
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, storage._cdata, storage.nbytes())

    def remove(self, storage, size):
        self.known.remove(storage)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result


@pytest.mark.parametrize(
    ("family", "precision", "checkpointing"),
    [
        *((family, "bf16-mixed", False) for family in FAMILIES),
        ("llama", "32-true", False),
        ("opt", "bf16-mixed", True),
    ],
)
def test_the_estimate_is_within_15_percent_of_what_training_allocates(monkeypatch, family, precision, checkpointing):
    """The peak of all tensors of two steps, under autocast as Lightning opens it."""
    monkeypatch.setattr(device, "LOGIT_BYTES", 2**18)  # of a chunk: a small part of so small a model's memory
    sizes = {"hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 512}
    config = AutoConfig.for_model(family, **sizes, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    if checkpointing:
        memory_estimate.checkpoint_layers(model)
    loss, batch = PerSampleLoss(model), pack_of(rows=8, length=128)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    autocast = MixedPrecision("bf16-mixed", "cpu").forward_context if precision == "bf16-mixed" else torch.enable_grad
    with Allocated(model.parameters()) as allocated:
        for _ in range(2):
            with autocast():
                loss(batch, summed=True).backward()
            optimizer.step()
            optimizer.zero_grad()
    spec = ModelSpec("small", path="small", max_length=128)
    how = dict(eight_bits=False, adapter=None, checkpointing=checkpointing, pack=8 * 128, shards=1, gpu=None)
    assert training_memory(model, spec, precision=precision, **how).total == pytest.approx(allocated.peak, rel=0.15)


def pack_of(rows, length):
    tokens = rows * length
    position_T, segments = torch.arange(tokens), [Segment(i * length, (i + 1) * length) for i in range(rows)]
    each_B = torch.full((rows,), length)
    return MicroBatch(
        position_T % 512, position_T % length, position_T, position_T % 512, position_T // length, each_B,
        torch.arange(rows), (), tuple(segments), tokens,
    )  # fmt: skip


def test_layer_norms_on_a_gpu_save_float32(monkeypatch):
    """CUDA's autocast computes them in float32, also of the bfloat16 weights below an adapter; a CPU's does not."""
    pack, hidden, layers = 512, 64, 3
    shape = {"hidden_size": hidden, "ffn_dim": 256, "num_hidden_layers": layers, "num_attention_heads": 4}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(OPTConfig(**shape, vocab_size=100, word_embed_proj_dim=hidden))
    spec = ModelSpec("small", path="small", max_length=128)
    how = dict(precision="bf16-mixed", eight_bits=False, checkpointing=False, pack=pack, shards=1)
    saved = []
    for functions in (memory_estimate._FloatLikeCuda.FUNCTIONS, ()):
        monkeypatch.setattr(memory_estimate._FloatLikeCuda, "FUNCTIONS", functions)
        memory_estimate._counted.clear()
        saved.append(training_memory(model, spec, adapter=Adapter(rank=4), **how).activations)
    memory_estimate._counted.clear()
    # The input of each norm with 4 bytes instead of 2, and its output, in bfloat16 again, for q, k and v each.
    copies = 2 * layers + 1 + 2 * layers
    assert saved[0] - saved[1] == pytest.approx(2 * copies * pack * hidden, rel=0.05)


def test_fsdp_adds_what_it_gathers():
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=100
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    spec = ModelSpec("small", path="small", max_length=128)
    how = dict(precision="bf16-mixed", eight_bits=False, adapter=None, checkpointing=False, pack=256)
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    root = 2 * 100 * 64 + 64
    one = training_memory(model, spec, shards=1, **how)
    assert (one.states, one.buffers) == (16 * (root + 3 * layer), 0)
    # Weights and gradients: the root's in float32, in bfloat16 those of a layer and the prefetched one, or of all
    # layers; and the largest gradient in float32.
    sharded = training_memory(model, spec, shards=4, **how)
    assert sharded.buffers == 2 * 4 * root + 2 * 2 * 2 * layer + 4 * max(root, layer)
    assert sharded.states == one.states / 4
    assert training_memory(model, spec, shards=4, layers_stay=True, **how).buffers == sharded.buffers + 2 * layer
    # Autocast copies no weights that are gathered in bfloat16.
    assert one.activations - sharded.activations == 2 * 3 * (layer - 2 * 64)
