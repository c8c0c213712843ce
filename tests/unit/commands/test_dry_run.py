"""Dry runs compared with what the runs then report, and models that do not fit."""

import json
from dataclasses import replace

import pytest
import torch
from fixtures.configurations import compose
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.commands import work_estimate
from lpsel.commands.dry_run import Work, planned_work, print_plan, print_table, short_names
from lpsel.commands.job import run
from lpsel.commands.work_estimate import GIB
from lpsel.config import build, configured
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.load import load_model
from lpsel.model.memory_estimate import training_memory


@pytest.fixture(autouse=True)
def no_lookups(monkeypatch):
    monkeypatch.setattr(work_estimate, "_cache", {})


def given(tmp_path, toy_model, data):
    return [
        "dataset=local", "scorer=local", "model=local", f"dataset.path={data}", f"scorer.path={toy_model}",
        f"model.path={toy_model}", "scorer.recipe.epochs=2", "model.recipe.epochs=1", "cluster=none", "trainer=cpu",
        "tracker=none", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip


def plan(tmp_path, *overrides, command="train"):
    with configured(command):
        config = compose(command, overrides=["dry_run=true", *overrides])
    return planned_work(command, config, tmp_path / "run")


@pytest.mark.parametrize("rule", ["lp_app", "superfilter", "full"])
def test_tokens_and_flops_equal_those_of_the_run(rule, tmp_path, toy_model, instructions):
    overrides = [*given(tmp_path, toy_model, instructions(rows=12)), f"selection={rule}", "pct=100"]
    work = {piece.what: piece for piece in plan(tmp_path, *overrides)}
    result = run("train", overrides, tmp_path / "run")
    if rule != "superfilter":  # rejects rows whose instruction makes the answer less likely
        assert (work["train"].rows, work["train"].tokens) == (12, result["training"]["tokens"])
        assert work["train"].flops == pytest.approx(result["training"]["flops"])
    if rule == "full":
        assert list(work) == ["train"]
        return
    assert work["score"].tokens == result["scoring"]["tokens"]
    assert work["score"].flops == pytest.approx(result["scoring"]["flops"])
    assert plan(tmp_path, *overrides) is None, "already finished"
    scores_there = plan(tmp_path / "another", *overrides)[0]
    assert scores_there.in_cache


def test_given_scores_are_checked(tmp_path, toy_model, instructions):
    overrides = [*given(tmp_path, toy_model, instructions(rows=12)), "pct=50"]
    with pytest.raises(UserError, match="no such file"):
        plan(tmp_path, *overrides, f"scores={tmp_path}/missing.csv")
    table = tmp_path / "scores.csv"
    table.write_text("index,nll_0,nll_1\n" + "".join(f"{row},2.0,1.5\n" for row in range(11)))
    with pytest.raises(UserError, match="have 11 rows"):
        plan(tmp_path, *overrides, f"scores={table}")
    table.write_text(table.read_text() + "11,2.0,1.5\n")
    assert [work.what for work in plan(tmp_path, *overrides, f"scores={table}")] == ["train"]


ADD = {"instruction": "Add.", "input": "2, 3", "output": "5"}
TASK = "selection=task_lp query.path"
UNFIT = {
    "no known columns": ([{"a": "x", "b": "y"}], "", "columns a, b: not a known form"),
    "no usable row": ([{"a": "x"}], "dataset.bad_rows=skip", "none of 4 rows can be used: an unknown form (4)"),
    "no answers": (
        [{"messages": [{"role": "user", "content": "Hi"}]}],
        "",
        "none of 4 rows can be selected (no superv",
    ),
    "empty answers": ([{"prompt": "a", "completion": ""}], "selection=random", "rows can be selected (empty answer)"),
    "no column to rank by": (
        [ADD],
        "selection=score_column selection.column=gain",
        "selection.column=gain: neither in",
    ),
    "no column of clusters": ([ADD], "selection=random cluster=column", "dataset rows has no cluster_column"),
    "no column of prompts": (
        [ADD],
        "selection=grape selection.group=problem",
        "selection.group=problem: row 0 has only",
    ),
    "too few epochs": ([ADD], "selection=lp", "scorer.recipe.epochs=2: the selection needs 3 recorded epochs"),
    "fewer examples": (
        [ADD],
        f"{TASK}=QUERY query.columns={{prompt:a,completion:b}} scorer.train_fraction=.5",
        "scorer.train_fraction: selection=task_lp trains on all rows of query.path",
    ),
    "no examples": ([ADD], f"{TASK}=missing.jsonl", "query.path=missing.jsonl: no such file"),
    "examples without known columns": ([ADD], f"{TASK}=QUERY", "columns a, b: not a known form"),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("command", ["train", "select"])
def test_a_dry_run_ends_with_the_error_of_the_run_if_the_rows_are_unfit(case, command, tmp_path, toy_model):
    rows, options, message = UNFIT[case]
    data, query = tmp_path / "rows.jsonl", tmp_path / "query.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in 4 * rows))
    query.write_text('{"a": "x", "b": "y"}')
    overrides = {name: value for name, _, value in (each.partition("=") for each in given(tmp_path, toy_model, data))}
    options = f"selection=full pct=50 {options}".replace("QUERY", str(query)).split()
    overrides |= {name: value for name, _, value in (each.partition("=") for each in options)}
    overrides = [f"{name}={value}" for name, value in overrides.items()]
    if command == "select":
        overrides = [override for override in overrides if not override.startswith("model")]
    with pytest.raises(UserError) as planned:
        plan(tmp_path, *overrides, command=command)
    with pytest.raises(UserError) as ended:
        run(command, overrides, tmp_path / "run")
    assert message in str(planned.value)
    assert str(ended.value) == str(planned.value)


def test_the_rows_to_train_on_are_rounded_as_those_of_the_run(tmp_path, toy_model, instructions):
    """57% of 50 rows is 28.5, which is below that in floats; the released code selects 1 of round(100/57) parts."""
    overrides = [*given(tmp_path, toy_model, instructions(rows=50)), "selection=random", "pct=57"]
    assert plan(tmp_path, *overrides)[0].rows == 29
    assert plan(tmp_path, *overrides, "selection.budget=paper")[0].rows == 25
    assert plan(tmp_path, *overrides, "selection.budget=paper", "pct=67")[0].rows == 50


def test_lengths_of_many_rows_are_estimated_from_a_sample(tmp_path, toy_model, instructions, monkeypatch):
    overrides = [*given(tmp_path, toy_model, instructions(rows=700)), "selection=full"]
    exact = plan(tmp_path, *overrides)[0]
    monkeypatch.setattr(work_estimate, "SAMPLE", 99)
    monkeypatch.setattr(work_estimate, "_cache", {})
    sampled = plan(tmp_path, *overrides)[0]
    assert (exact.lengths, sampled.lengths) == ("counted", "estimated from 1,000 rows")
    assert sampled.tokens != exact.tokens
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.02)


def test_plans_of_the_papers_models_need_no_network_and_no_gpu(tmp_path, instructions, capsys):
    overrides = ["model=opt-13b", "scorer=opt-350m", "dataset=local", f"dataset.path={instructions(rows=100)}",
                 "selection=lp", "pct=10", "tracker=none", f"cache_dir={tmp_path}/cache"]  # fmt: skip
    score, train = _, eight = plan(tmp_path, *overrides, "trainer=fsdp", "trainer.devices=8", "gpu_memory_gib=80")
    assert (score.model, score.rows, train.model, train.rows) == ("opt-350m", 100, "opt-13b", 10)
    assert train.lengths == "estimated at 4 characters each"
    # 12.85 B weights in OPT-13B, 16 bytes each over 8 GPUs; weights and gradients of embeddings and head (0.27 B) in
    # float32 and of two layers (0.31 B each) in bfloat16, and a layer's gradients in float32; 4,096 tokens in 40
    # layers, each of which saves two hidden states in float32 (before two norms), eight in bfloat16 (query, key and
    # value, their inputs, attended and the MLP's input) and the MLP's 20,480 values; the gradients of the head and of
    # its input, and three times all logits of a pack.
    expected = 16 * 12.85e9 / 8 + 8 * 0.27e9 + 4 * 2 * 0.31e9 + 4 * 0.31e9
    expected += 4096 * 40 * (4 * 2 * 5120 + 2 * 8 * 5120 + 2 * 20480)
    expected += 4 * 5120 * (50272 + 4096) + 3 * 4 * 4096 * 50272
    assert train.bytes == pytest.approx(expected, rel=0.01)
    assert (score.problem, train.problem) == ("", "")

    _, train = plan(tmp_path, *overrides, "gpu_memory_gib=80")
    assert train.problem.startswith("needs 219")
    assert train.problem.endswith(" GiB on each GPU, which has 80, a tenth of it in reserve")
    assert train.hint.startswith("set trainer=fsdp trainer.devices=4; ")  # with packs of 512 tokens
    with configured("train"):
        config = compose("train", overrides=[*overrides, "gpu_memory_gib=80"])
    with pytest.raises(UserError, match="opt-13b: needs 219"):
        print_plan("train", config, tmp_path / "run")
    assert "train opt-13b" in capsys.readouterr().out, "the plan is printed before the reason"
    # FLOPs over eight A100s at 40% of 312 TFLOP/s; two checkpoints of 12 bytes per weight; weights in float32.
    assert eight.hours == pytest.approx(eight.flops / (8 * 312e12 * 0.4) / 3600)
    assert eight.checkpoints == pytest.approx(2 * 12 * 12.85e9, rel=0.01)
    assert (eight.model_bytes, score.model_bytes) == (pytest.approx(4 * 12.85e9, rel=0.01), 0)
    print_table([("job", [score, eight])])
    said = capsys.readouterr().out
    assert " of 80" in said
    assert "Less than 0.1 hours at 40% of gpu_tflops." in said
    print_table([("job", [replace(score, hours=1.5), replace(eight, hours=2.5)])])
    assert "\n4.0 hours at 40% of gpu_tflops." in capsys.readouterr().out
    assert "Disk: 51.4 GB of models, and up to 308.5 GB of checkpoints in training." in said
    with pytest.raises(UserError, match="gpu_tflops=0: must be a number greater than 0"):
        plan(tmp_path, *overrides, "gpu_tflops=0", "gpu_memory_gib=80")
    with pytest.raises(UserError, match="gpu_memory_gib=0: must be a number greater than 0"):
        plan(tmp_path, *overrides, "gpu_memory_gib=0")


def test_shared_scores_are_counted_once(capsys):
    def scores(epochs, *columns):
        return Work("score", "small", 100, 1e6, "counted", 1e12, GIB, "key", epochs, columns)

    target = Work("train", "large", 10, 2e6, "counted", None, None)
    print_table(
        [("a", [scores(3), target]), ("b", [scores(1), target]), ("c", [scores(0, "el2n_0")]), ("d", None), ("e", [])]
    )
    said = capsys.readouterr().out
    assert [" ".join(line.split()) for line in said.splitlines()[1:8]] == [
        "a score with small, 3 epochs 100 1 M 1e+12 1.0",
        "train large 10 2 M unknown unknown",
        "b scores of small, as above",
        "train large 10 2 M unknown unknown",
        "c score with small, 0 epochs 100 1 M 1e+12 1.0",
        "d already finished",
        "e no model to run",
    ]
    assert "Total: 6 M tokens, at least 2e+12 FLOPs." in said


def test_jobs_are_named_without_the_options_that_all_share():
    jobs = {"a": ["pct-5", "scorer-s", "selection-lp"], "b": ["pct-9", "scorer-s", "selection-lp"]}
    assert short_names(jobs) == {"a": "pct-5", "b": "pct-9"}
    assert short_names({"a": ["pct-5", "seed-1"]}) == {"a": "pct-5 seed-1"}
    assert short_names({"a": ["pct-5"], "b": ["pct-5", "seed-1"]}) == {"a": "pct-5", "b": "seed-1"}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_estimated_states_equal_those_of_training(optimizer, toy_model):
    with configured("train"):
        config = compose("train", overrides=["model=local", f"model.path={toy_model}", f"optimizer={optimizer}"])
    spec = build(config.model)
    model = load_model(spec, str(toy_model), torch.float32)
    stepping = build(config.optimizer)(model.parameters(), lr=1e-3)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    stepping.step()
    moments = [t for state in stepping.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    held = sum(t.numel() * t.element_size() for p in model.parameters() for t in (p, p.grad))
    kept = held + sum(t.numel() * t.element_size() for t in moments)
    eight_bits = optimizer == "adamw8bit"
    said = training_memory(model, spec, precision="32-true", eight_bits=eight_bits, adapter=None, checkpointing=False,
                     pack=1, shards=1)  # fmt: skip
    # In 8 bits, small tensors keep larger moments, and there are a few tables.
    assert said.states == pytest.approx(kept, rel=0.6 if eight_bits else 1e-12)


def test_llama_2_7b_as_in_docs_memory():
    with configured("train"):
        spec = build(compose("train", overrides=["model=llama2-7b"]).model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**spec.architecture))

    def states(adapter=None, eight_bits=False, shards=1):
        how = dict(precision="bf16-mixed", checkpointing=False, pack=4096)
        return training_memory(model, spec, eight_bits=eight_bits, adapter=adapter, shards=shards, **how).states / 1e9

    assert [round(size, 1) for size in (
        states(), states(eight_bits=True), states(Adapter()), states(Adapter(quantization="nf4")),
    )] == [107.8, 67.6, 14.1, 4.5]  # fmt: skip
    assert states(shards=8) == pytest.approx(states() / 8)
    whole = training_memory(model, spec, precision="bf16-mixed", eight_bits=False, adapter=None, checkpointing=False,
                      pack=4096, shards=1)  # fmt: skip
    less = training_memory(model, spec, precision="bf16-mixed", eight_bits=False, adapter=None, checkpointing=True,
                     pack=4096, shards=1)  # fmt: skip
    # 55.5 bytes per token, layer and hidden unit by a review of the code, and two per weight that autocast has cast.
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    # The gradients of the head and three times its logits.
    head = 4 * 4096 * (32000 + 4096) + 3 * 4 * 4096 * 32000
    assert whole.activations == pytest.approx(55.5 * 32 * 4096 * 4096 + 2 * layers + head, rel=0.05)
    # The residual stream of every layer, and all of one layer
    one_layer = (whole.activations - head) / 32
    assert less.activations == pytest.approx(4 * 32 * 4096 * 4096 + one_layer + head, rel=0.05)
