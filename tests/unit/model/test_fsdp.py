"""Sharded training against one process: losses, gradients, weights and the exported folder, by architecture."""

import shutil

import lightning as L
import numpy as np
import pytest
import torch
from fixtures.configurations import compose
from hydra import initialize_config_dir
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.commands.job import Job
from lpsel.config import build, config_dir
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.dataset import Source
from lpsel.data.tokens import tokenize
from lpsel.errors import UserError
from lpsel.model.decoder_layers import decoder_layers
from lpsel.model.device import resolve_precision
from lpsel.model.export import save_model
from lpsel.model.lightning_module import FineTuner
from lpsel.model.load import load_tokenizer, stored_dtype
from lpsel.model.spec import ModelSpec
from lpsel.scoring.recorder import NLLRecorder
from lpsel.scoring.store import Parts
from lpsel.tracking.tracker import Tracker
from lpsel.training.trainer import fit

pytestmark = pytest.mark.distributed

SMALL = dict(vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512)
LLAMA_LIKE = SMALL | dict(intermediate_size=48, num_key_value_heads=2)
ARCHITECTURES = {
    "llama, tied": ("llama", LLAMA_LIKE | dict(tie_word_embeddings=True)),
    "llama, untied": ("llama", LLAMA_LIKE | dict(tie_word_embeddings=False)),
    "opt": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "gemma3": ("gemma3_text", LLAMA_LIKE | dict(head_dim=8, sliding_window=8)),
}


@pytest.fixture
def model(request, tmp_path, toy_model):
    """A random model of the architecture with the toy's tokenizer, in a folder."""
    kind, sizes = ARCHITECTURES[request.param]
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, eos_token_id=256, bos_token_id=None, pad_token_id=None, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class FirstGradients(L.Callback):
    """Saves the full gradients of the first optimizer step, by parameter name."""

    def __init__(self, path):
        self.path = path

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            gradients = {
                name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone()
                for name, p in pl_module.language_model.named_parameters()
                if p.grad is not None
            }
            if trainer.is_global_zero:
                save_file(gradients, self.path)


def train(folder, model, data, *overrides):
    """Three steps per epoch, two epochs, recorded before and after; the results are in `folder`."""
    given = ["model=local", f"model.path={model}", f"dataset.path={data}", "dataset=local", *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=given)
    job = Job("train", config, folder, folder.parent / "cache", Tracker())
    spec = build(config.model)
    tokenizer = load_tokenizer(spec, spec.path)
    tokens = tokenize(Source(build(config.dataset)), tokenizer, "alpaca", spec.max_length, job.cache_dir)
    data = SubsetDataModule(tokens, batch_size=8, seed=0, train_tokens=1000, score_tokens=2000, record=True)
    # AdamW divides a gradient that is only rounding error by itself, hence the larger eps.
    module = FineTuner(
        "target",
        spec,
        spec.path,
        lambda w, lr: torch.optim.AdamW(w, lr=lr, eps=1e-3),
        6,
        precision=resolve_precision(config.trainer.precision, config.trainer.accelerator),
    )
    parts = Parts(folder / "parts")
    hooks = [NLLRecorder(parts), FirstGradients(folder / "gradients.safetensors")]
    trainer, cost = fit(
        job.training_setup(), module, data, epochs=2, title="test", callbacks=hooks, checkpoints=folder / "checkpoints"
    )
    save_model(trainer, module, tokenizer, folder / "model")
    if trainer.is_global_zero:
        np.savez(folder / "result.npz", nll=parts.collect(2, len(tokens)), flops=cost.flops, tokens=cost.tokens)


def reloaded_nll(folder, data, cache):
    """The loss of transformers for every row with the exported model."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(
            "train", overrides=["model=local", f"model.path={folder}", "dataset=local", f"dataset.path={data}"]
        )
    spec = build(config.model)
    tokens = tokenize(Source(build(config.dataset)), load_tokenizer(spec, spec.path), "alpaca", spec.max_length, cache)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses = []
    for i in range(len(tokens)):
        ids = torch.as_tensor(np.array(tokens.input_ids(i), dtype=np.int64))[None]
        labels = ids.where(torch.as_tensor(np.array(tokens.supervised(i)))[None], -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return losses


RECIPE = ["model.recipe.learning_rate=1e-2", "model.recipe.max_grad_norm=0.5"]
CASES = [
    ("llama, tied", 2, 11, []),
    pytest.param("gemma3", 2, 11, [], marks=pytest.mark.slow),
    pytest.param("llama, untied", 3, 23, [], marks=pytest.mark.slow),
    pytest.param("opt", 2, 23, [], marks=pytest.mark.slow),
    pytest.param("llama, tied", 1, 11, [], marks=pytest.mark.slow),
    pytest.param("llama, tied", 2, 11, ["trainer.strategy.reshard_after_forward=false"], marks=pytest.mark.slow),
    pytest.param("llama, untied", 4, 23, ["trainer.strategy.replicate=2"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "ranks", "rows", "options"), CASES, indirect=["model"])
def test_slices_train_as_one_process_does(tmp_path, model, instructions, as_ranks, ranks, rows, options):
    data = instructions(rows=rows)
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    train(one, model, data, "trainer=cpu", *RECIPE)
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", f"trainer.devices={ranks}", *options]
    as_ranks(ranks, train, several, model, data, *fsdp, *RECIPE)

    ours, theirs = (np.load(folder / "result.npz") for folder in (several, one))
    assert theirs["nll"][0].mean() > theirs["nll"][2].mean()
    np.testing.assert_allclose(ours["nll"], theirs["nll"], rtol=1e-5)
    assert (ours["flops"], ours["tokens"]) == (theirs["flops"], theirs["tokens"])
    for file in ("gradients.safetensors", "model/model.safetensors"):
        got, expected = load_file(several / file), load_file(one / file)
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert sorted(p.name for p in (several / "model").iterdir()) == sorted(p.name for p in (one / "model").iterdir())
    np.testing.assert_allclose(reloaded_nll(several / "model", data, tmp_path / "cache"), ours["nll"][2], rtol=1e-5)


def test_gradients_are_clipped_over_all_slices(tmp_path, toy_model, instructions, as_ranks):
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "model.recipe.max_grad_norm=0.01"]
    as_ranks(2, train, tmp_path / "run", toy_model, instructions(rows=8), *fsdp)
    gradients = load_file(tmp_path / "run" / "gradients.safetensors")
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama, tied", []),
        pytest.param("gemma3", [], marks=pytest.mark.slow),
        pytest.param("llama, tied", ["activation_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param("opt", ["activation_checkpointing=true"], marks=pytest.mark.slow),  # ends with a norm
    ],
    indirect=["model"],
)
def test_mixed_precision_rounds_what_one_process_rounds(tmp_path, model, instructions, as_ranks, options):
    data, mixed = instructions(rows=11), "trainer.precision=bf16-mixed"
    for name, precision in (("one", mixed), ("full", "trainer.precision=32-true")):
        (tmp_path / name).mkdir()
        train(tmp_path / name, model, data, "trainer=cpu", precision)
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", mixed, *options]
    as_ranks(2, train, tmp_path / "several", model, data, *fsdp)
    several, one, full = (np.load(tmp_path / name / "result.npz")["nll"] for name in ("several", "one", "full"))
    off = np.abs(one - full)[0].mean()
    assert np.abs(several - one)[0].mean() < off / 20, "packs differ, and with them the order of sums"
    np.testing.assert_allclose(several, one, rtol=1e-3)
    weights = load_file(tmp_path / "several" / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize("stored", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["gemma3"], indirect=True)
def test_slices_are_cast_to_float32_and_buffers_that_no_file_contains_are_exact(
    model, tmp_path, instructions, as_ranks, stored
):
    """Gemma's embedding scale, sqrt(32), is 5.65625 in bfloat16."""
    AutoModelForCausalLM.from_pretrained(model, dtype=stored).save_pretrained(model)
    assert stored_dtype(ModelSpec("gemma", path=str(model)), str(model)) == stored
    data = instructions(rows=11)
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    train(one, model, data, "trainer=cpu", *RECIPE)
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    as_ranks(2, train, several, model, data, *fsdp, *RECIPE)
    ours, theirs = (np.load(folder / "result.npz")["nll"] for folder in (several, one))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert {w.dtype for w in load_file(several / "model" / "model.safetensors").values()} == {torch.float32}


def test_a_model_without_a_list_of_layers_is_rejected(toy_model):
    model = AutoModelForCausalLM.from_pretrained(toy_model)
    model.model.layers = model.model.layers[:1]
    with pytest.raises(UserError, match="llama: has no list of 2 decoder layers"):
        decoder_layers(model)
