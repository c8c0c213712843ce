"""train.py with an adapter, 8-bit AdamW and activation checkpointing, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lpsel.commands.job import run
from lpsel.errors import UserError

SMALL = ["model.tiny.hidden=64", "model.tiny.layers=1", "model.tiny.vocabulary=400", "model.tiny.pretrain_steps=5"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def embedded(cache):
    """The embedded data and target, almost untrained, on randomly selected rows."""
    return [
        "selection=random", "pct=25", "dataset.limit=64", *SMALL, "model.recipe.epochs=2",
        "model.recipe.learning_rate=2e-2", "trainer=cpu", "tracker=none", f"cache_dir={cache}",
    ]  # fmt: skip


def nll_of(model, text):
    ids = torch.tensor([text])
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_trained_saved_merged_and_evaluated(embedded, cache, method, tmp_path):
    folder = tmp_path / method
    saving = [f"adapter={method}", "adapter.rank=4", "optimizer=adamw8bit", "activation_checkpointing=true"]
    run("train", [*embedded, *saving], folder)
    assert json.loads((folder / "result.json").read_text())["adapter"] == {
        "method": method, "rank": 4, "alpha": 32, "target_modules": "all-linear",
        "quantization": "nf4" if method == "qlora" else None, "merge": True,
        "trainable_parameters": 4 * (4 * 128 + 3 * 192), "folder": str(folder / "adapter"),
    }  # fmt: skip

    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    base_path = settings["base_model_name_or_path"]
    answers = " ".join(json.loads(row)["output"] for row in (folder / "subset.jsonl").read_text().splitlines())
    text = AutoTokenizer.from_pretrained(folder / "model")(answers)["input_ids"]
    base, merged = (AutoModelForCausalLM.from_pretrained(p) for p in (base_path, folder / "model"))
    before, after = nll_of(base, text), nll_of(merged, text)
    again = PeftModel.from_pretrained(base, folder / "adapter")
    assert before - after > 0.1
    assert nll_of(again, text) == pytest.approx(after, abs=1e-5)
    assert (
        load_file(folder / "model" / "model.safetensors").keys() == load_file(f"{base_path}/model.safetensors").keys()
    )

    limits = ["dataset.limit=4", "evaluator.max_new_tokens=2", "trainer=cpu", "tracker=none", f"cache_dir={cache}"]
    evaluated = run("evaluate", [*limits, f"models=[{folder}]", f"baseline={base_path}"], tmp_path / "evaluation")
    assert evaluated["models"][1]["name"] == f"tiny-target, random, 25%, {method}"


def test_evaluating_an_unmerged_run_explains_how_to_merge_it(embedded, tmp_path):
    folder = tmp_path / "lora"
    result = run("train", [*embedded, "adapter=lora", "adapter.merge=false", "tracker=csv"], folder)
    assert result["model"] is None
    assert not (folder / "model").exists()
    with pytest.raises(UserError) as caught:
        run("evaluate", ["tracker=none", "trainer=cpu", f"models=[{folder}]"], tmp_path / "evaluation")
    assert (caught.value.name, caught.value.value) == ("model", str(folder))
    assert caught.value.problem == "its adapter is not merged (adapter.merge=false)"
    assert f"merge it into {folder}/model" in caught.value.hint


def test_checkpointing_does_not_change_the_result(embedded, tmp_path):
    runs = [
        run("train", [*embedded, f"activation_checkpointing={on}"], tmp_path / str(on).lower())
        for on in ("true", "false")
    ]
    ours, theirs = (load_file(Path(result["model"]) / "model.safetensors") for result in runs)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-6)
    assert runs[0]["adapter"] is None
    assert runs[0]["training"]["flops"] == runs[1]["training"]["flops"]


def test_errors_are_detected_before_data_and_models_are_read(tmp_path):
    sharded = "trainer.strategy={_target_:lightning.pytorch.strategies.ModelParallelStrategy}"
    base = ["tracker=none", "dataset=local", "dataset.path=absent.jsonl", sharded]
    with pytest.raises(UserError, match=r"^adapter=lora: does not support trainer=fsdp"):
        run("train", [*base, "adapter=lora"], tmp_path)
    with pytest.raises(UserError, match=r"^optimizer=adamw8bit: does not support trainer=fsdp"):
        run("train", [*base, "optimizer=adamw8bit"], tmp_path)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(embedded, tmp_path):
    common = [*embedded, "adapter=lora", "adapter.merge=false", "activation_checkpointing=true"]
    run("train", common, tmp_path / "one")
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={tmp_path}/two"]
    command = [sys.executable, "-m", "lpsel", "train", *(a for a in common if a != "trainer=cpu"), *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "result.json").read_text())["training"]["world_size"] == 2
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.real
def test_a_real_model_learns_in_four_bits(real_models, shared_data, tmp_path):
    base = real_models / "smollm2-135m"
    overrides = [
        "dataset=local", f"dataset.path={shared_data}/dolly.jsonl.xz", "dataset.limit=12", "selection=full",
        "model=smollm2-135m", f"model.path={base}", "model.max_length=128", "model.recipe.global_batch=6",
        "model.recipe.epochs=2", "adapter=qlora", "trainer=cpu", "tracker=none", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    result = run("train", overrides, tmp_path / "run")
    assert result["adapter"]["trainable_parameters"] == 4_884_480  # of 134,515,008: rank 16 on 210 layers
    common = [*overrides[:2], "dataset.limit=12", "max_length=128", "trainer=cpu", "tracker=none"]
    models = [f"models=[{tmp_path}/run]", f"baseline={base}", "evaluator.max_new_tokens=1"]
    untrained, trained = run("evaluate", [*common, *models, f"cache_dir={tmp_path}/cache"], tmp_path / "e")["models"]
    assert trained["metrics"]["nll"]["value"] < untrained["metrics"]["nll"]["value"] - 0.02
