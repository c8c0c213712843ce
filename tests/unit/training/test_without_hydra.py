"""Models are scored and trained on machines without Hydra, OmegaConf, W&B and lm-eval."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
from pathlib import Path

sys.modules |= dict.fromkeys(["hydra", "omegaconf", "wandb", "lm_eval"])  # importing them fails
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

model, rows, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
trainer = dict(_target_="lightning.pytorch.Trainer", accelerator="cpu", devices=1, num_nodes=1, strategy="auto",
               precision="32-true")
optimizer = dict(_target_="torch.optim.AdamW", betas=[0.9, 0.999])
setup = TrainingSetup(trainer, optimizer, False, False, 1000, 1000, "auto", folder, folder, Tracker())
spec = ModelSpec("toy", path=model, max_length=256, recipe=Recipe(epochs=1, global_batch=8))
tokens = tokenize(Source(DatasetSpec("rows", path=rows)), load_tokenizer(spec, model), "alpaca", 256, folder)
data = setup.data_module(tokens, spec, record=True)
module = setup.fine_tuner("target", spec, model, data.steps_per_epoch)
trainer, cost = fit(setup, module, data, epochs=1, title="Target", callbacks=[], checkpoints=folder / "checkpoints")
print(trainer.global_step, cost.tokens == 3 * int(tokens.lengths.sum()))
"""


def test_a_model_is_scored_and_trained(tmp_path, toy_model, instructions):
    command = [sys.executable, "-c", CODE, str(toy_model), str(instructions(rows=16)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["2", "True"]
