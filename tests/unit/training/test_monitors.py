"""Losses that are not finite end a training, and loss spikes are logged."""

import json
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lpsel.commands.job import run
from lpsel.errors import UserError
from lpsel.model.lightning_module import FineTuner
from lpsel.training.monitors import LossSpikes, spike

EIGHT = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.0]


def test_a_spike_is_far_above_the_steps_before():
    """Median 1, median deviation 0.025: six deviations are 1.22, and 1.5 times the median counts."""
    assert spike(EIGHT, 1.51) == 1.0
    assert spike(EIGHT, 1.49) is None
    assert spike(EIGHT[:7], 9.0) is None, "too few steps to compare with"


def test_steps_with_a_large_spread_need_a_higher_spike():
    """Median 2, median deviation 1: six deviations end at 2 + 6 x 1.4826."""
    before = [1.0, 3.0] * 4 + [2.0]
    assert spike(before, 10.8) is None
    assert spike(before, 10.9) == 2.0


@given(st.lists(st.floats(0, 100), min_size=8, max_size=40), st.floats(0.25, 8))
def test_units_do_not_matter(before, factor):
    nll = 2.5 * max(before) + 1
    assert (spike(before, nll) is None) == (spike([factor * x for x in before], factor * nll) is None)


def test_spikes_are_counted_and_the_log_does_not_fill(caplog):
    spikes = LossSpikes("Scorer a")
    for step in range(1, 401):
        spikes.add(step, 9.0 if step > 32 and step % 4 == 0 else 1.0)
    assert spikes.described()["count"] == 92
    assert spikes.described()["first"][0] == {"step": 36, "nll": 9.0, "median": 1.0}
    assert len(caplog.records) == 5
    assert "Scorer a: loss spike in step 36, NLL 9.000 after 1.000" in caplog.text
    again = LossSpikes("Scorer a")
    again.load_state_dict(json.loads(json.dumps(spikes.state_dict())))
    assert again.described() == spikes.described()


# --- a training that diverges


@pytest.fixture
def broken_rows(tmp_path, toy_model, instructions):
    """Rows of which the fourth has a token, "é", whose embedding is NaN; the model, the file of the rows."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    weights = load_file(folder / "model.safetensors")
    alphabet = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    weights["model.embed_tokens.weight"][alphabet["Ã"]] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    data = instructions(rows=12)
    lines = data.read_text().splitlines()
    lines[3] = json.dumps({"instruction": "Say é.", "output": "no"})
    data.write_text("\n".join(lines) + "\n")
    return folder, data


def overrides(model, data, tmp_path, *more):
    return [
        "dataset=local", f"dataset.path={data}", "scorer=local", f"scorer.path={model}", "scorer.recipe.global_batch=4",
        "trainer=cpu", "tracker=none", "cluster=none", "pct=25", f"cache_dir={tmp_path}/cache", *more,
    ]  # fmt: skip


DIVERGED = re.compile(
    r"NLL (?P<nll>\S+) and gradient norm \S+ in step (?P<step>\d+) of training the (scorer|target) \(epoch 1, learning "
    r"rate \S+\), rows (?P<rows>[\d, ]+)( \(not finite on their own: (?P<alone>[\d, ]+)\))?\. Weights were not updated"
)


def test_a_loss_of_nan_ends_training_with_step_rate_and_rows(broken_rows, tmp_path):
    with pytest.raises(UserError) as caught:
        run("select", overrides(*broken_rows, tmp_path), tmp_path / "run")
    assert (caught.value.name, caught.value.value) == ("scorer.recipe.learning_rate", "2e-05")
    problem = DIVERGED.match(caught.value.problem)
    assert problem["nll"] == "nan"
    assert 1 <= int(problem["step"]) <= 3
    rows = [int(row) for row in problem["rows"].split(", ")]
    assert len(rows) == 4
    assert 3 in rows
    assert problem["alone"] == "3"
    assert not list((tmp_path / "cache").rglob("scores.parquet"))


def test_the_checkpoint_of_the_previous_step_is_complete_and_finite(broken_rows, tmp_path):
    model, data = broken_rows
    target = ["model=local", f"model.path={model}", "model.recipe.global_batch=4"]
    target += ["selection=full", "checkpoint_steps=1"]
    for seed in range(5):  # until the row is not in the first batch
        asked = [*overrides(model, data, tmp_path), *target, f"model.recipe.seed={seed}"]
        with pytest.raises(UserError, match="NLL nan") as caught:
            run("train", asked, tmp_path / f"run{seed}")
        assert caught.value.name == "model.recipe.learning_rate"
        step = int(DIVERGED.match(caught.value.problem)["step"])
        assert (tmp_path / f"run{seed}/run_config.json").is_file() == (step > 1), "there is a checkpoint to resume from"
        if step > 1:
            break
    newest = max((tmp_path / "cache/trained").rglob("step-*/checkpoint.json")).parent
    assert newest.name == f"step-{step - 1:08d}"
    tensors = load_file(next(newest.glob("*.safetensors")))
    broken = sum(not tensor.isfinite().all() for tensor in tensors.values())
    whole = load_file(model / "model.safetensors")
    assert broken == sum(not tensor.isfinite().all() for tensor in whole.values()) == 1


def test_the_weights_are_those_of_the_previous_step(broken_rows, tmp_path, monkeypatch):
    seen = []

    def watched(fine_tuner, *rest):
        seen.append([p.detach().clone() for p in fine_tuner.language_model.parameters()])
        return UserError("stopped")

    monkeypatch.setattr(FineTuner, "_diverged", watched)
    with pytest.raises(UserError, match="stopped"):
        run("select", overrides(*broken_rows, tmp_path, "scorer.recipe.learning_rate=1e-2"), tmp_path / "run")
    whole = load_file(broken_rows[0] / "model.safetensors")
    same = [torch.isfinite(weight).all(dim=-1).sum() for weight in seen[0]]
    finite = [torch.isfinite(weight).all(dim=-1).sum() for weight in whole.values()]
    assert sorted(map(int, same)) == sorted(map(int, finite)), "all other weights are finite"


def select_and_write_error(tmp_path, *given):
    with pytest.raises(UserError) as caught:
        run("select", list(given), tmp_path / "run")
    (tmp_path / f"error{os.environ['RANK']}").write_text(f"{caught.type.__name__} {caught.value}")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_all_ranks_end_together(broken_rows, tmp_path, as_ranks, strategy):
    more = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"]
    as_ranks(2, select_and_write_error, tmp_path, *overrides(*broken_rows, tmp_path, *more))
    one, two = ((tmp_path / f"error{i}").read_text() for i in range(2))
    assert one.startswith("UserError scorer.recipe.learning_rate=2e-05: NLL nan")
    assert "(not finite on their own: 3)" in one
    assert two == one.replace("UserError", "ReportedByMainProcess", 1)


def test_a_learning_rate_that_is_much_too_high_is_named(tmp_path, toy_model, instructions):
    asked = overrides(toy_model, instructions(), tmp_path, "scorer.recipe.learning_rate=1e30")
    with pytest.raises(UserError, match=r"scorer\.recipe\.learning_rate=1e\+30: .* in step \d+ of training the scorer"):
        run("select", asked, tmp_path / "run")


# --- a row whose recorded loss is not finite


def test_a_row_without_a_finite_loss_is_recorded_and_excluded_with_a_reason(broken_rows, tmp_path):
    import pyarrow.parquet as pq

    result = run("select", overrides(*broken_rows, tmp_path, "selection=perplexity"), tmp_path / "run")
    recorded = pq.read_table(result["scores"])["nll_0"].to_pylist()
    assert recorded[3] == np.inf
    assert np.isfinite([nll for row, nll in enumerate(recorded) if row != 3]).all()
    manifest = json.loads((tmp_path / "run" / result["scores"]).with_name("manifest.json").read_text())
    assert manifest["rows_not_finite"] == 1
    reasons = pq.read_table(result["selection"])["reason"].to_pylist()
    assert reasons == [None] * 3 + ["nll is not finite"] + [None] * 8
    assert result["n_eligible"] == 11
    assert result["reasons"] == {"nll is not finite": 1}
