"""Judgments in the dry run of an experiment."""

import json

import pytest
from omegaconf import OmegaConf

from lpsel.commands.judgment_estimate import judgments


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


def test_an_evaluation_without_a_server_needs_no_judgment(tmp_path, prompts):
    assert lines(tmp_path, "evaluator=reference", "dataset=embedded-held-out") == []
    assert lines(tmp_path, "evaluator=pairwise", prompts, "judge=reference") == []


def test_prompts_that_are_not_found_leave_the_number_open(tmp_path):
    (line,) = lines(tmp_path, "evaluator=pairwise", f"prompts={tmp_path}/missing.jsonl")
    assert line.startswith("Judgments by gpt-4.1-mini: unknown. prompts=")
