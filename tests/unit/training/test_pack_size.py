"""train_tokens=auto: the largest packs of training that fit into memory."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.tokens import tokenize
from lpsel.model import device
from lpsel.model.load import load_model, load_tokenizer
from lpsel.model.memory_estimate import training_memory, training_pack
from lpsel.model.spec import ModelSpec, Recipe
from lpsel.tracking.tracker import Tracker
from lpsel.training import pack_size
from lpsel.training.pack_size import PackSize
from lpsel.training.setup import TrainingSetup

TRAINER = dict(_target_="lightning.pytorch.Trainer", accelerator="cpu", devices=1, num_nodes=1, strategy="auto",
               precision="32-true")  # fmt: skip
OPTIMIZER = dict(_target_="torch.optim.AdamW")
CPU = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda pack: pack)


@pytest.fixture
def chosen(tmp_path, toy_model, instructions, monkeypatch):
    """The packs that are chosen with so much memory, and the memory that training needs with a size of packs."""
    monkeypatch.setattr(pack_size, "SMALL_MODEL", 0)
    tokenizer = load_tokenizer(ModelSpec("toy", path=str(toy_model)), str(toy_model))
    tokens = tokenize(Source(DatasetSpec("rows", path=str(instructions()))), tokenizer, "alpaca", 512, tmp_path)

    def choose(memory, processes=1, train_tokens="auto", **recipe):
        monkeypatch.setattr(pack_size, "total_memory", lambda device: memory)
        setup = TrainingSetup(TRAINER, OPTIMIZER, False, False, train_tokens, 4000, 1, tmp_path, tmp_path, Tracker())
        spec = ModelSpec("toy", path=str(toy_model), recipe=Recipe(**recipe))
        data = setup.data_module(tokens, spec)
        trainer = SimpleNamespace(strategy=CPU, num_devices=processes, world_size=processes)
        PackSize(setup, "Target toy", data).setup(trainer, setup.fine_tuner("target", spec, spec.path, 1), "fit")
        return data.train_tokens

    return choose


@pytest.fixture(scope="module")
def needed(toy_model):
    spec = ModelSpec("toy", path=str(toy_model))
    how = dict(precision="32-true", eight_bits=False, adapter=None, checkpointing=False, shards=1, gpu=None)
    model = load_model(spec, spec.path, torch.float32)
    return lambda pack, **more: training_memory(model, spec, pack=pack, **how | more).total


def test_packs_are_smaller_where_memory_is_short(chosen, needed, caplog):
    with caplog.at_level(logging.INFO, "lpsel"):
        assert chosen(2 * needed(2048) + 1) == 2048
        assert chosen(20 * needed(2048)) == 2048
        assert not caplog.messages
        assert chosen(2 * needed(2048) - 1) == 1024
    gib = 2**30
    assert caplog.messages == [
        f"Target toy: packs of 1,024 tokens, with which training needs about {needed(1024) / gib:.1f} of "
        f"{2 * needed(2048) / gib:.1f} GiB (train_tokens=auto)"
    ]
    assert chosen(2 * needed(512)) == 512
    assert chosen(1) == 512  # what is left to try


def test_packs_of_a_gpu_are_larger():
    def estimate(pack):
        return SimpleNamespace(total=pack)

    limits = (10_000, 4096, 4095, 1)
    assert [training_pack("cuda", limit, estimate) for limit in limits] == [4096, 4096, 2048, 512]
    assert [training_pack("cpu", limit, estimate) for limit in limits] == [2048, 2048, 2048, 512]


def test_processes_share_the_memory_of_a_machine(chosen, needed):
    assert chosen(4 * needed(2048), processes=2) == 2048
    assert chosen(4 * needed(2048) - 4, processes=2) == 1024


def test_a_size_that_is_set_and_that_of_a_model_with_dropout_do_not_depend_on_memory(chosen):
    assert chosen(1, train_tokens=3000) == 3000
    assert chosen(1, dropout=True) == 4096  # packs change its results


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CONTAINER_LIMIT", limit)
    host = partial(device.total_memory, torch.device("cpu"))
    with open("/proc/meminfo") as lines:
        total = 1024 * int(next(lines).split()[1])
    assert host() == pytest.approx(total, rel=0.01)
    limit.write_text("max\n")
    assert host() == pytest.approx(total, rel=0.01)
    limit.write_text("1073741824\n")
    assert host() == 2**30
