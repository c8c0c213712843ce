"""Activation checkpointing: the same losses and gradients, less memory saved for the backward pass."""

import shutil
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch._inductor.config
from torch._inductor import codecache
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.runtime import cache_dir_utils
from torch.autograd.graph import saved_tensors_hooks

from lpsel.data.packing import collate
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.decoder_layers import (
    WORTH_COMPILING,
    _keep_compiled_code_private,
    can_compile,
    checkpoint_layers,
    compile_layers,
    decoder_layers,
)
from lpsel.model.lightning_module import FineTuner
from lpsel.model.loss import PerSampleLoss
from lpsel.model.spec import ModelSpec

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def run(model, batch):
    """Loss, gradients, and the bytes that a forward pass saves in addition to weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its address is not used again
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = PerSampleLoss(model)(batch, summed=True) / len(batch.labels_N)
    held = sum(size for size, _ in saved.values())
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("kind", ["llama", "tied", "opt-350m-like", "gpt2"])
def test_gradients_are_the_same_and_fewer_activations_are_saved(make_model, kind, batch):
    layers = {"n_layer" if kind == "gpt2" else "num_hidden_layers": 6}
    plain, checkpointed = make_model(kind, **layers), make_model(kind, **layers)
    names = [name for name, _ in checkpointed.named_parameters()]
    checkpoint_layers(checkpointed)
    assert [name for name, _ in checkpointed.named_parameters()] == names
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    loss, gradients, held = run(plain, batch)
    again, recomputed, held_now = run(checkpointed, batch)
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    assert recomputed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6)
    assert held_now < held / 3


@pytest.mark.parametrize("quantization", [None, "nf4"], ids=["lora", "qlora"])
def test_an_adapters_gradients_are_the_same(make_folder, batch, quantization):
    path = make_folder()

    def made():
        adapter = Adapter(rank=4, quantization=quantization)
        model = adapter.load(ModelSpec("small", path=path, max_length=64), path, "32-true", torch.device("cpu")).model
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.constant_(parameter, 0.01)
        return model

    plain, checkpointed = made(), made()
    checkpoint_layers(checkpointed)
    loss, gradients, held = run(plain, batch)
    again, recomputed, held_now = run(checkpointed, batch)
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-6)
    assert held_now < held


def test_a_layer_runs_twice_in_training_and_once_in_a_recording_pass(make_model, batch):
    model = make_model()
    runs = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    checkpoint_layers(model)
    loss = PerSampleLoss(model)
    with torch.no_grad():
        loss(batch)
    assert len(runs) == 2
    (loss(batch, summed=True) / len(batch.labels_N)).backward()
    assert len(runs) == 2 + 2 * 2


def test_a_model_without_a_list_of_layers_is_rejected(make_model):
    model = make_model()
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError) as caught:
        checkpoint_layers(model)
    assert (caught.value.name, caught.value.problem) == ("llama", "has no list of 7 decoder layers")


@pytest.fixture
def compiled_and_plain(make_model):
    """The same model twice, the first one with compiled layers and loss."""
    torch._dynamo.reset()
    assert can_compile()
    torch._dynamo.utils.counters.clear()
    plain, model = make_model(), make_model()
    compile_layers(model)
    ours = PerSampleLoss(model)
    ours.compile_nll()
    return ours, PerSampleLoss(plain)


@needs_compiler
def test_layers_and_loss_are_compiled_once_for_packs_of_any_size(compiled_and_plain):
    ours, expected = compiled_and_plain
    graphs = []
    for lengths in ([20, 11], [9, 9, 9], [25], [3, 30, 6, 2], [31, 8]):
        rows = Rows(lengths)
        batch = collate(rows, np.arange(len(lengths)))
        with torch.no_grad():
            torch.testing.assert_close(ours(batch), expected(batch), rtol=1e-4, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == graphs[:1] * 5
    assert graphs[0] > 0


@needs_compiler
def test_compiled_layers_have_the_gradients_of_plain_ones(compiled_and_plain):
    batch = collate(Rows([31, 8]), np.arange(2))
    for loss in compiled_and_plain:
        loss(batch, summed=True).backward()
    compiled, plain = (loss.model.parameters() for loss in compiled_and_plain)
    for ours, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_nothing_is_compiled_for_the_check_of_the_head(make_folder):
    path = make_folder()
    spec = ModelSpec("small", path=path, max_length=64)
    module = FineTuner("target", spec, path, partial(torch.optim.AdamW), 1, compiled=True)
    torch._dynamo.utils.counters.clear()
    configured(module)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    assert is_compiled(module)


@needs_compiler
@pytest.mark.parametrize(
    ("more", "adapter", "works", "expected"),
    [
        (1, None, True, True),
        (0, None, True, False),
        (1, Adapter(rank=4), True, False),
        (1, None, False, False),
    ],
    ids=["a long run", "a short run", "an adapter", "no compiler"],
)
def test_auto_compiles_the_layers_where_it_saves_time(make_model, make_folder, caplog, more, adapter, works, expected):
    path = make_folder()
    spec = ModelSpec("small", path=path, max_length=64)
    can_compile.cache_clear()
    torch._dynamo.reset()
    missing = {} if works else {"force_disable_caches": True, "cpp.cxx": ("no-such-compiler",)}
    module = FineTuner("target", spec, path, partial(torch.optim.AdamW), 1, compiled="auto", adapter=adapter)
    weights = sum(p.numel() for p in make_model().model.layers.parameters())
    module.tokens_ahead = int(WORTH_COMPILING / (2 * weights)) + more
    with caplog.at_level("INFO"), torch._inductor.config.patch(missing):
        configured(module)
    can_compile.cache_clear()
    assert is_compiled(module) == expected
    assert ("torch.compile fails here" in caplog.text) == (not works)


@needs_compiler
@pytest.mark.slow
def test_where_the_compiler_does_not_know_the_cpu_pytorch_looks_for_what_it_knows(monkeypatch, tmp_path):
    old = tmp_path / "old-g++"
    old.write_text('#!/bin/sh\ncase "$*" in *-mavx512*|*-mamx*) exit 1;; esac\nexec g++ "$@"\n')
    old.chmod(0o700)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    can_compile.cache_clear()
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": (str(old),), "cpp.vec_isa_ok": None}):
        assert can_compile()
        assert torch._inductor.config.cpp.vec_isa_ok is None
        assert "avx512" not in str(pick_vec_isa())
    can_compile.cache_clear()
    assert can_compile()  # also by the compiler that is there


@pytest.mark.parametrize("named", [None, "mine"])
def test_compiled_code_is_in_a_folder_of_the_process_or_the_users_own(monkeypatch, tmp_path, named):
    """By default, PyTorch loads code from a folder in /tmp that other users could make first."""
    _keep_compiled_code_private.cache_clear()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if named:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / named))
    _keep_compiled_code_private()
    used = Path(cache_dir_utils.cache_dir())
    assert (used == tmp_path / "mine") == (named == "mine")
    assert used != Path(cache_dir_utils.default_cache_dir())
    assert named or used.stat().st_mode & 0o077 == 0
    assert used in Path(codecache._HEADER_DIR).parents
    _keep_compiled_code_private.cache_clear()


def configured(module):
    module.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    module.configure_model()


def is_compiled(module):
    return all(layer._compiled_call_impl is not None for layer in decoder_layers(module.language_model))


class Rows:
    """Rows of random tokens with the interface of Tokens, supervised from the second token on."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, dtype=np.int32)

    def input_ids(self, i):
        return np.random.default_rng(i).integers(3, 97, self.lengths[i]).astype(np.int32)

    def supervised(self, i):
        return np.arange(self.lengths[i]) > 0
