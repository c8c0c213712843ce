"""Dry runs of evaluations: the work of each model, and judgments with their price."""

import json

import numpy as np
import pytest
from fixtures.configurations import compose
from omegaconf import OmegaConf

from lpsel.commands.dry_run import planned_work, print_plan
from lpsel.commands.evaluation_estimate import judgments
from lpsel.commands.job import run
from lpsel.commands.work_estimate import model_shape
from lpsel.config import configured
from lpsel.errors import UserError
from lpsel.model.flops import forward_flops
from lpsel.model.spec import ModelSpec


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "instruction": f"Count to {i}."}) + "\n" for i in range(5)))
    return f"prompts={path}"


def lines(tmp_path, *overrides):
    return list(judgments(OmegaConf.create({"evaluate": list(overrides)}), tmp_path, models=3))


def test_every_model_is_judged_on_every_prompt_in_both_orders(tmp_path, prompts):
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts, "judge=openai")
    assert line.startswith("Judgments: 3 models x 5 prompts x 2 orders = 30, gpt-4.1-mini, ")
    assert line.endswith(": set judge.prompt_price and judge.completion_price.")


def test_the_price_is_that_of_the_longest_answers_and_replies(tmp_path, prompts):
    prices = ["judge.prompt_price=0", "judge.completion_price=1000"]  # dollars per million tokens
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts, *prices)
    assert "up to about $30.72" in line, "30 replies of 1,024 tokens"
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts, "judge.prompt_price=1000", "judge.completion_price=0")
    price = float(line.split("$")[1].rstrip("."))
    assert price > 30 * 2 * 512 / 1000, "two answers of 512 tokens, the question and the prompt of the judge"
    assert price < 30 * 3 * 512 / 1000


def test_replies_without_a_limit_have_no_highest_price(tmp_path, prompts):
    prices = ["judge.prompt_price=1", "judge.completion_price=1"]
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts, "judge.request.max_tokens=null", *prices)
    assert line.endswith("replies without a limit: set judge.request.max_tokens.")


def test_prompts_that_the_evaluation_skips_are_not_counted(tmp_path, prompts):
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write(json.dumps({"id": "empty", "instruction": ""}) + "\n")
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts, "dataset.bad_rows=skip")
    assert " x 5 prompts x " in line
    (line,) = lines(tmp_path, "evaluator=pairwise", prompts)
    assert line.startswith("Judgments by gpt-4.1-mini: unknown. prompts=mine, row 5: ")


def test_an_evaluation_without_a_server_needs_no_judgment(tmp_path, prompts):
    assert lines(tmp_path, "evaluator=reference", "dataset=embedded-held-out") == []
    assert lines(tmp_path, "evaluator=pairwise", prompts, "judge=reference") == []


def test_prompts_that_are_not_found_leave_the_number_open(tmp_path):
    (line,) = lines(tmp_path, "evaluator=pairwise", f"prompts={tmp_path}/missing.jsonl")
    assert line.startswith("Judgments by gpt-4.1-mini: unknown. prompts=")


def plan(tmp_path, *overrides, command="evaluate"):
    with configured(command):
        config = compose(command, overrides=["dry_run=true", "tracker=none", f"cache_dir={tmp_path}", *overrides])
        return planned_work(command, config, tmp_path / "run")


def test_held_out_rows_are_read_once_and_answered_at_the_longest(tmp_path, toy_model, instructions):
    data = ["dataset=local", f"dataset.path={instructions(rows=12)}", "trainer=cpu"]
    models = [*data, f"models=[{toy_model}]", f"baseline={toy_model}"]
    read, _ = plan(tmp_path, *models, "evaluator.max_new_tokens=0")
    (trained,) = plan(tmp_path, *data, "model=local", f"model.path={toy_model}", "selection=full",
                      "model.recipe.epochs=1", command="train")  # fmt: skip
    assert (read.what, read.model, read.rows, read.tokens) == ("evaluate", "toy-llama", 12, trained.tokens)
    assert read.bytes == trained.model_bytes, "the weights"

    answered, _ = plan(tmp_path, *models, "evaluator.max_new_tokens=4")
    given = [*models, "evaluator.max_new_tokens=4", "tracker=none", f"cache_dir={tmp_path}"]
    measured = run("evaluate", given, tmp_path / "evaluation")["models"][0]
    prompts = read.tokens - measured["supervised_tokens"]
    assert answered.tokens == read.tokens + prompts + 12 * 4
    assert answered.flops > read.flops


def test_answers_to_prompts_are_estimated_for_models_on_this_machine(tmp_path, toy_model, prompts, capsys):
    judged = ["evaluator=pairwise", prompts, "evaluator.max_new_tokens=7", f"models=[{toy_model}]", "trainer=cpu",
              "judge.prompt_price=1", "judge.completion_price=1"]  # fmt: skip
    (work,) = plan(tmp_path, *judged, "baseline=gpt@http://127.0.0.1:9/v1")
    shape = model_shape(ModelSpec("toy", str(toy_model)), tmp_path).shapes
    lengths = np.full(5, 11 // 4 + 1 + 7, np.int32)  # "Count to 0." has eleven characters
    assert (work.rows, work.tokens) == (5, 50)
    assert work.flops == forward_flops(shape, lengths, np.full(5, 7, np.int32))
    with configured("evaluate"):
        config = compose("evaluate", overrides=["dry_run=true", *judged, f"baseline={toy_model}"])
    print_plan("evaluate", config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "evaluate toy-llama" in printed
    assert "Judgments: 1 models x 5 prompts x 2 orders = 10, gpt-4.1-mini, " in printed
    assert printed.splitlines()[-1] == str(tmp_path / "run")


def test_a_dry_run_of_tasks_of_the_harness_is_an_error(tmp_path, toy_model):
    with pytest.raises(UserError, match=r"^dry_run=True: evaluator=lm_eval has no estimate"):
        plan(tmp_path, "evaluator=lm_eval", "tasks=[x]", f"models=[{toy_model}]")
