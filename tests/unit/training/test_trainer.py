"""Training on several ranks: what they exchange, and what a checkpoint contains."""

import json
from collections import Counter

import lightning as L
import pytest
import torch
from fixtures.configurations import compose
from hydra import initialize_config_dir
from torch.profiler import ProfilerActivity, profile

from lpsel.commands.job import Job
from lpsel.config import build, config_dir
from lpsel.data.dataset import Source
from lpsel.data.tokens import tokenize
from lpsel.model.load import load_tokenizer
from lpsel.tracking.tracker import Tracker
from lpsel.training.trainer import fit

pytestmark = pytest.mark.distributed


def train(folder, model, data, callback, *overrides):
    """Train for one epoch of five steps, with recording passes before and after it."""
    given = ["model=local", f"model.path={model}", f"dataset.path={data}", "dataset=local", *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=["model.recipe.global_batch=4", "score_tokens=200", *given])
    setup = Job("train", config, folder, folder.parent / "cache", Tracker()).training_setup()
    spec = build(config.model)
    tokens = tokenize(Source(build(config.dataset)), load_tokenizer(spec, spec.path), "alpaca", 512, setup.cache_dir)
    module, rows = setup.fine_tuner("target", spec, spec.path, 5), setup.data_module(tokens, spec, record=True)
    fit(setup, module, rows, epochs=1, title="test", callbacks=[callback], checkpoints=folder / "checkpoints")


class Exchanged(L.Callback):
    """Counts gloo's operations in the third step (DDP arranges its buckets in the second) and batch."""

    def __init__(self):
        self.counts = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count("step", batch_idx)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
        self.count("batch", batch_idx)

    def count(self, kind, number):
        if number == 1 and kind not in self.counts:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        elif number == 2 and kind not in self.counts:
            self.profiler.stop()
            names = [event.name() for event in self.profiler.profiler.kineto_results.events()]
            self.counts[kind] = Counter(name for name in names if name.startswith("gloo:"))


def train_and_count(folder, *arguments):
    exchanged = Exchanged()
    train(folder, *arguments[:2], exchanged, *arguments[2:])
    (folder / "exchanged.json").write_text(json.dumps(exchanged.counts))


def test_ranks_exchange_gradients_and_the_loss_in_a_step_and_nothing_while_they_record(
    tmp_path, toy_model, instructions, as_ranks
):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    (tmp_path / "run").mkdir()
    as_ranks(2, train_and_count, tmp_path / "run", toy_model, instructions(rows=20), *ddp)
    exchanged = json.loads((tmp_path / "run" / "exchanged.json").read_text())
    assert exchanged == {"batch": {}, "step": {"gloo:all_reduce": 2}}  # one bucket of gradients, and the loss


class RecordsAfterSteps(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            for batch in trainer.datamodule.recording():
                trainer.strategy.validation_step(batch, 0)


def train_and_record(folder, *arguments):
    train(folder, *arguments[:2], RecordsAfterSteps(), "checkpoint_steps=1", *arguments[2:])


def test_a_checkpoint_after_a_recording_pass_contains_the_moments_of_all_slices(
    tmp_path, toy_model, instructions, as_ranks
):
    """The pass leaves the root module gathered, whose parameters are then not those of the optimizer."""
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    (tmp_path / "run").mkdir()
    as_ranks(2, train_and_record, tmp_path / "run", toy_model, instructions(rows=20), *fsdp)
    tensors = json.loads((tmp_path / "run/checkpoints/step-00000004/rank00001.json").read_text())["tensors"]
    names = {key: {name.split()[1] for name in tensors if name.startswith(key)} for key in ("weight", "exp_avg ")}
    assert names["weight"] == names["exp_avg "]
    assert "model.embed_tokens.weight" in names["weight"]
