"""Models are scored and trained on machines without Hydra, OmegaConf, W&B and lm-eval."""

import importlib
import pkgutil
import sys
from pathlib import Path

MISSING = ("hydra", "omegaconf", "wandb", "lm_eval")


def score_and_train(model, rows, folder):
    """In a process of its own, in which importing these libraries fails and lpsel is imported anew."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("lpsel", *MISSING)]:
        del sys.modules[name]
    sys.modules |= dict.fromkeys(MISSING)
    for package in ("model", "data"):
        for module in pkgutil.iter_modules([str(Path(importlib.import_module(f"lpsel.{package}").__file__).parent)]):
            importlib.import_module(f"lpsel.{package}.{module.name}")

    from lpsel.data.dataset import DatasetSpec, Source
    from lpsel.data.tokens import tokenize
    from lpsel.model.load import load_tokenizer
    from lpsel.model.spec import ModelSpec, Recipe
    from lpsel.tracking.tracker import Tracker
    from lpsel.training.setup import TrainingSetup
    from lpsel.training.trainer import fit

    trainer = dict(_target_="lightning.pytorch.Trainer", accelerator="cpu", devices=1, num_nodes=1, strategy="auto",
                   precision="32-true")  # fmt: skip
    optimizer = dict(_target_="torch.optim.AdamW", betas=[0.9, 0.999])
    setup = TrainingSetup(trainer, optimizer, False, False, 1000, 1000, "auto", folder, folder, Tracker())
    spec = ModelSpec("toy", path=str(model), max_length=256, recipe=Recipe(epochs=1, global_batch=8))
    source = Source(DatasetSpec("rows", path=str(rows)))
    tokens = tokenize(source, load_tokenizer(spec, spec.path), "alpaca", 256, folder)
    data = setup.data_module(tokens, spec, record=True)
    module = setup.fine_tuner("target", spec, spec.path, data.steps_per_epoch)
    trained, cost = fit(setup, module, data, epochs=1, title="Target", callbacks=[], checkpoints=folder / "checkpoints")
    print(trained.global_step, cost.tokens == 3 * int(tokens.lengths.sum()))


def test_a_model_is_scored_and_trained(tmp_path, toy_model, instructions, as_ranks):
    as_ranks(1, score_and_train, toy_model, instructions(rows=16), tmp_path, environment=lambda *_: {})
    assert (tmp_path / "out0").read_text().split()[-2:] == ["2", "True"]
