"""What the released recipe does and defaults leave out: reductions, dropout, batches of several GPUs."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from lightning import Callback
from numpy.random import SeedSequence
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.data.batching import token_weights
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.tokens import tokenize
from lpsel.errors import UserError
from lpsel.model.load import load_tokenizer
from lpsel.model.spec import ModelSpec, Recipe
from lpsel.scoring.recorder import NLLRecorder
from lpsel.scoring.store import Parts
from lpsel.tracking.tracker import Tracker
from lpsel.training.setup import TrainingSetup
from lpsel.training.trainer import fit

TRAINER = dict(_target_="lightning.pytorch.Trainer", accelerator="cpu", devices=1, num_nodes=1, strategy="auto",
               precision="32-true")  # fmt: skip
# AdamW divides a gradient that is only rounding error by itself, hence the larger eps.
OPTIMIZER = dict(_target_="torch.optim.AdamW", weight_decay=0.0, eps=1e-3)
ROWS, BATCH, RATE = 13, 6, 1e-2  # the last step has one row


@pytest.fixture
def opt(tmp_path, toy_model):
    """A random OPT with dropout in its layers and in its attention, and the byte tokenizer."""
    folder = tmp_path / "opt"
    load_tokenizer(ModelSpec("toy", path=str(toy_model)), str(toy_model)).save_pretrained(folder)
    config = AutoConfig.for_model(
        "opt", vocab_size=257, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.3,
        attention_dropout=0.2, max_position_embeddings=512, word_embed_proj_dim=32, eos_token_id=256,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokens(tmp_path, opt, instructions):
    source = Source(DatasetSpec("rows", path=str(instructions(rows=ROWS))))
    return tokenize(source, load_tokenizer(ModelSpec("opt", path=opt), opt), "alpaca", 512, tmp_path / "cache")


def trained(tmp_path, opt, tokens, callbacks=(), **settings):
    """The trained weights, the records before and after, and the order of the rows."""
    recipe = Recipe(
        epochs=1, global_batch=BATCH, learning_rate=RATE, warmup=0, schedule="constant", max_grad_norm=0.5, **settings
    )
    spec = ModelSpec("opt", path=opt, recipe=recipe)
    setup = TrainingSetup(TRAINER, OPTIMIZER, settings.get("dropout", False), False, 4000, 4000, 1, tmp_path,
                          tmp_path, Tracker())  # fmt: skip
    data = setup.data_module(tokens, spec, record=True)
    module, parts = setup.fine_tuner("target", spec, opt, data.steps_per_epoch), Parts(tmp_path / "parts")
    callbacks = [NLLRecorder(parts), *callbacks]
    fit(setup, module, data, epochs=1, title="opt", callbacks=callbacks, checkpoints=tmp_path / "checkpoints")
    return module.language_model.state_dict(), parts.collect(1, ROWS), data.order(0)


def losses(model, tokens, rows):
    """NLL of every token of padded rows, 0 where it is not supervised, and the number of supervised tokens."""
    width = int(tokens.lengths[rows].max())
    ids = torch.stack([torch.from_numpy(np.pad(tokens.input_ids(i), (0, width - tokens.lengths[i]), mode="edge"))
                       for i in rows.tolist()]).long()  # fmt: skip
    used = torch.stack([torch.from_numpy(np.pad(tokens.supervised(i), (0, width - tokens.lengths[i])))
                        for i in rows.tolist()])[:, 1:]  # fmt: skip
    logits = model(input_ids=ids).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return nll * used, used.sum(1)


def mean(nll, used, rows, order, reduction):
    if reduction == "token":
        return nll.sum() / used.sum()
    size = {"row": 1, "micro_batch": 4}[reduction]
    place = {row: i for i, row in enumerate(rows.tolist())}
    groups = [[place[row] for row in order[i : i + size].tolist()] for i in range(0, len(order), size)]
    return torch.stack([nll[group].sum() / used[group].sum() for group in groups]).mean()


def reference(opt, tokens, order, reduction="token", dropout=False):
    """The padded training loop: the trained weights, and the NLL of every row before and after."""
    model = AutoModelForCausalLM.from_pretrained(opt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0, eps=1e-3)
    recorded = [measured(model, tokens)]
    for step in range(-(-len(order) // BATCH)):
        batch = order[step * BATCH : (step + 1) * BATCH]
        rows = batch[np.lexsort((batch, -tokens.lengths[batch]))]
        if dropout:
            torch.manual_seed(int(SeedSequence((42, step, 0)).generate_state(1)[0]))
        model.train(dropout)
        mean(*losses(model, tokens, rows), rows, batch, reduction).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), np.stack([*recorded, measured(model, tokens)])


def measured(model, tokens):
    with torch.no_grad():
        nll, used = losses(model.eval(), tokens, np.arange(ROWS))
    return (nll.sum(1) / used).numpy()


SETTINGS = [{"reduction": "token"}, {"reduction": "row"}, {"reduction": "micro_batch"},
            {"reduction": "micro_batch", "dropout": True}]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_training_is_that_of_a_padded_loop(tmp_path, opt, tokens, settings):
    weights, nll_EN, order = trained(tmp_path, opt, tokens, **settings)
    expected, nll = reference(opt, tokens, order, **settings)
    np.testing.assert_allclose(nll_EN, nll, rtol=1e-4)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-5, msg=lambda text, name=name: name + text)
    if settings != {"reduction": "token"}:
        other, _ = reference(opt, tokens, order)
        assert max(float((weights[name] - other[name]).abs().max()) for name in other) > 1e-3


class Cut(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("cut off")


def test_dropout_draws_the_same_masks_when_training_resumes(tmp_path, opt, tokens):
    weights, _, _ = trained(tmp_path / "whole", opt, tokens, dropout=True)
    with pytest.raises(RuntimeError, match="cut off"):
        trained(tmp_path / "cut", opt, tokens, [Cut()], dropout=True)
    assert list((tmp_path / "cut" / "checkpoints").glob("step-*"))
    torch.rand(7)
    resumed, _, _ = trained(tmp_path / "cut", opt, tokens, dropout=True)
    assert all(resumed[name].equal(weights[name]) for name in weights)


def test_short_answers_weigh_more_by_row_than_by_micro_batch():
    """Two steps of five rows and one: micro-batches of four and of one row, and of one."""
    order, supervised_N = np.array([4, 0, 2, 5, 1, 3]), np.array([1, 2, 3, 4, 10, 5])
    assert token_weights(order, supervised_N, 5, "token") == (None, [20 + 1, 4])
    weight_N, divisors = token_weights(order, supervised_N, 5, "row")
    assert (weight_N * supervised_N).tolist() == pytest.approx([1] * 6)
    assert divisors == [5, 1]
    weight_N, divisors = token_weights(order, supervised_N, 5, "micro_batch")
    np.testing.assert_allclose(weight_N, [1 / 19, 1 / 2, 1 / 19, 1 / 4, 1 / 19, 1 / 19], rtol=1e-6)
    assert divisors == [2, 1]


def test_gpus_stand_for_the_global_batch_of_the_released_settings():
    """4 rows x 8 micro-batches x GPUs: Alpaca's 52,002 rows are 203 whole batches on eight, 1,625 on one."""
    assert asdict(Recipe(gpus=8)) == asdict(Recipe(global_batch=256))
    assert [52_002 // recipe.global_batch for recipe in (Recipe(), Recipe(gpus=1), Recipe(gpus=8))] == [1625, 1625, 203]
    with pytest.raises(UserError) as caught:
        Recipe(gpus=0)
    assert (caught.value.name, caught.value.value) == ("recipe.gpus", 0)


@pytest.mark.parametrize("setting", [{"max_steps": 2}, {"limit_train_batches": 0.5}, {"gradient_clip_val": 1.0}])
def test_arguments_of_the_trainer_do_not_change_what_the_recipe_trains(tmp_path, setting):
    """Caches and run folders do not know them, so a shorter training would be reused as a whole one."""
    with pytest.raises(UserError, match="changes what the recipe trains") as caught:
        TrainingSetup(TRAINER | setting, OPTIMIZER, False, False, 4000, 4000, 1, tmp_path, tmp_path, Tracker())
    assert caught.value.name == f"trainer.{next(iter(setting))}"


def test_the_recipe_has_the_learning_rate_and_the_optimizer_has_none(tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.01: is not used\. Set model\.recipe\.learning_rate"):
        TrainingSetup(TRAINER, OPTIMIZER | {"lr": 0.01}, False, False, 4000, 4000, 1, tmp_path, tmp_path, Tracker())
