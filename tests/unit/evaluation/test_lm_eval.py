import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from lpsel.errors import UserError
from lpsel.evaluation.evaluator import Candidates, EvaluationContext
from lpsel.evaluation.lm_eval import LmEvalEvaluator, metrics_of
from lpsel.model.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[3]
QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "a fish", "seven"], "label": 0},
    {"question": "Two and two make", "choices": ["five", "four", "red"], "label": 1},
    {"question": "Snow is", "choices": ["hot", "white", "loud and long"], "label": 1},
    {"question": "A dog can", "choices": ["bark", "fly a plane", "rust"], "label": 0},
    {"question": "Ice is", "choices": ["frozen water", "bread", "x"], "label": 0},
]
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of multiple choice and one of generation, over local rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    shared = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.json"}
test_split: test
doc_to_text: "{{{{question}}}}"
metadata:
  version: 3.0
"""
    (folder / "choice.yaml").write_text(
        "task: my_choice\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n" + shared
    )
    (folder / "free.yaml").write_text(
        'task: my_free\noutput_type: generate_until\ndoc_to_target: "{{choices[label]}}"\n'
        "generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: 6\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n    ignore_case: true\n" + shared
    )
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))  # for the command
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    # The harness runs `pip list` for every model, which takes seconds; nothing here reads it.
    monkeypatch.setattr("torch.utils.collect_env.get_pip_packages", lambda run, patterns=None: ("pip", ""))


def run(evaluator, models, tmp_path):
    candidates = Candidates(tuple(models))
    evaluator.check(candidates)
    return evaluator.evaluate(candidates, EvaluationContext(tmp_path, tmp_path, "cpu", "32-true"))


def by_hand(folder):
    """Accuracy by the summed log-likelihood of " CHOICE" after the question, and by it over the choice's length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    right = {"acc": [], "acc_norm": []}
    for row in QUESTIONS:
        likelihood = []
        for choice in row["choices"]:
            prompt = tokenizer(row["question"]).input_ids
            answer = tokenizer(" " + choice).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].double()
            at = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
            likelihood.append(float(logits.log_softmax(-1)[at, torch.tensor(answer)].sum()))
        norm = [value / len(choice) for value, choice in zip(likelihood, row["choices"], strict=True)]
        right["acc"].append(likelihood.index(max(likelihood)) == row["label"])
        right["acc_norm"].append(norm.index(max(norm)) == row["label"])
    return right


@installed
def test_accuracy_matches_log_likelihoods_by_hand(toy_model, tasks, tmp_path):
    evaluator = LmEvalEvaluator(["my_choice", "my_free"], include_path=str(tasks), batch_size=2)
    spec = ModelSpec("toy", str(toy_model), max_length=128)
    result = run(evaluator, [spec, spec], tmp_path)
    assert [model["name"] for model in result["models"]] == ["toy", "toy-2"]
    for model in result["models"]:
        for metric, right in by_hand(toy_model).items():
            mean = sum(right) / 5
            ends = stats.binomtest(round(sum(right)), 5).proportion_ci(method="wilson")
            assert model["metrics"][f"my_choice/{metric}"] == {
                "value": pytest.approx(mean),
                "standard_error": pytest.approx(math.sqrt(mean * (1 - mean) / 4)),
                "low": pytest.approx(ends.low),
                "high": pytest.approx(ends.high),
            }
        assert model["metrics"]["my_free/exact_match"]["value"] == 0  # a random model
        assert model["tasks"]["my_choice"] == {"rows": 5, "num_fewshot": 0, "version": 3.0}
    rows = [json.loads(line) for line in (tmp_path / "generations" / "toy.jsonl").read_text().splitlines()]
    assert [row["acc"] for row in rows if row["task"] == "my_choice"] == [float(x) for x in by_hand(toy_model)["acc"]]
    assert len([row for row in rows if row["task"] == "my_free"]) == 5
    console = Console(width=100)
    with console.capture() as printed:
        console.print(evaluator.table(result))
    assert "my_choice/acc_norm" in printed.get()


def test_one_task_needs_no_list():
    assert LmEvalEvaluator("my_choice").task_names == LmEvalEvaluator(["my_choice"]).task_names == ["my_choice"]


@installed
def test_a_limit_and_few_shot_examples(toy_model, tasks, tmp_path):
    evaluator = LmEvalEvaluator(["my_choice"], include_path=str(tasks), limit=2, num_fewshot=1)
    [model] = run(evaluator, [ModelSpec("toy", str(toy_model), max_length=128)], tmp_path)["models"]
    assert model["tasks"]["my_choice"] == {"rows": 2, "num_fewshot": 1, "version": 3.0}


@installed
def test_chat_models_use_their_template(toy_model, tasks, tmp_path):
    from transformers import AutoTokenizer

    chat = tmp_path / "chat"
    shutil.copytree(toy_model, chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    tokenizer.save_pretrained(chat)
    for asked, template, expected in (
        (None, "chat", "[user] The sky is\n[assistant] "),
        (None, "alpaca", "The sky is"),
        (True, "alpaca", "[user] The sky is\n[assistant] "),
        (False, "chat", "The sky is"),
    ):
        evaluator = LmEvalEvaluator(["my_choice"], include_path=str(tasks), limit=1, apply_chat_template=asked)
        [model] = run(evaluator, [ModelSpec("chat", str(chat), template=template, max_length=128)], tmp_path)["models"]
        [row] = [json.loads(line) for line in (tmp_path / model["generations"]).read_text().splitlines()]
        assert row["prompt"] == expected


@installed
def test_errors_are_raised_before_a_model_is_loaded(toy_model, tasks, tmp_path, monkeypatch):
    from lm_eval import tasks as harness

    from lpsel.evaluation import lm_eval

    # No list of the tasks that the harness brings, which takes seconds: none of them is asked for.
    own = harness.TaskManager.__init__
    monkeypatch.setattr(
        harness.TaskManager, "__init__", lambda self, **how: own(self, **{**how, "include_defaults": False})
    )
    monkeypatch.setattr(lm_eval, "load_model", lambda *_: pytest.fail("loaded"))
    spec = ModelSpec("toy", str(toy_model), max_length=128)
    with pytest.raises(UserError, match=r"^tasks=null: no tasks to run\. Set tasks=\["):
        run(LmEvalEvaluator(), [spec], tmp_path)
    with pytest.raises(
        UserError, match=r"^tasks=hellaswagg: not a task, group or tag of lm_eval, nor a file\. Run `lm_eval ls"
    ):
        run(LmEvalEvaluator(["hellaswagg"]), [spec], tmp_path)
    with (tasks / "free.yaml").open("a") as file:
        file.write("unsafe_code: true\n")
    with pytest.raises(
        UserError, match=r"^tasks=my_free: runs code that the model writes\. Evaluate this task with lm_"
    ):
        run(LmEvalEvaluator(["my_free"], include_path=str(tasks)), [spec], tmp_path)
    (tasks / "rows.json").unlink()
    with pytest.raises(UserError, match=r"^tasks=my_choice: cannot be loaded \(.*rows\.json"):
        run(LmEvalEvaluator(["my_choice"], include_path=str(tasks)), [spec], tmp_path)
    for chat in (True, None):
        with pytest.raises(UserError, match=r"the tokenizer of toy has no chat template\. Set evaluator\.apply_chat"):
            run(
                LmEvalEvaluator(["my_choice"], apply_chat_template=chat),
                [ModelSpec("toy", str(toy_model), template="chat")],
                tmp_path,
            )


@installed
@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ("process_results: !function code.without_reference", "KeyError: 'reference'"),
        ("process_results: !function code.with_text", "TypeError: unsupported operand.*"),
        ("process_results: !function code.without_names", "AttributeError: 'list' object.*"),
        ("num_fewshot: 50", "ValueError: Sample larger than population.*"),
    ],
)
def test_an_error_in_a_task_names_the_task_and_the_cause(lines, cause, toy_model, tasks, tmp_path):
    (tasks / "code.py").write_text(
        "def without_reference(row, results):\n    return {'acc': row['reference']}\n\n\n"
        "def with_text(row, results):\n    return {'acc': 'high'}\n\n\n"
        "def without_names(row, results):\n    return [1.0]\n"
    )
    with (tasks / "choice.yaml").open("a") as file:
        file.write(f"{lines}\n")
    evaluator = LmEvalEvaluator(["my_choice", "my_free"], include_path=str(tasks), limit=2)
    with pytest.raises(UserError) as error:
        run(evaluator, [ModelSpec("toy", str(toy_model), max_length=128)], tmp_path)
    message = (
        rf"tasks=my_choice: cannot be evaluated \({cause}\)\. Check its few-shot examples, metrics and functions\."
    )
    assert re.fullmatch(message, str(error.value))


@installed
def test_a_function_as_metric_that_the_harness_ignores_is_an_error(tasks, tmp_path):
    (tasks / "code.py").write_text("def length(items):\n    return 1.0\n\n\ndef values(row, results):\n    return {}\n")
    metric = "  - metric: !function code.length\n    aggregation: mean\n    higher_is_better: true\n"
    for file in ("choice.yaml", "free.yaml"):
        text = (tasks / file).read_text()
        (tasks / file).write_text(text.replace("metric_list:\n", "metric_list:\n" + metric))
    evaluator = LmEvalEvaluator(["my_free", "my_choice"], include_path=str(tasks))
    message = r"^tasks=my_choice: lm_eval ignores its metric length, which is a function\. Return its values from"
    with pytest.raises(UserError, match=message):
        evaluator._task_manager()
    with (tasks / "choice.yaml").open("a") as file:
        file.write("process_results: !function code.values\n")
    evaluator._task_manager()


@installed
def test_a_task_file_that_breaks_the_list_of_tasks_is_an_error(tasks):
    (tasks / "other.yaml").write_text("task: 5\ndataset_path: json\n")
    with pytest.raises(
        UserError, match=r"^evaluator\.include_path=.*tasks: a task file in it cannot be read \(TypeError"
    ):
        LmEvalEvaluator(["my_choice"], include_path=str(tasks))._task_manager()


@installed
def test_an_error_in_the_model_is_not_blamed_on_a_task(toy_model, tasks, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def fail(*_, **__):
        raise RuntimeError("model failed")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    with pytest.raises(RuntimeError, match=r"^model failed$"):
        run(LmEvalEvaluator(["my_choice"], include_path=str(tasks)), [ModelSpec("toy", str(toy_model))], tmp_path)


def test_invalid_settings_are_rejected(tmp_path):
    for tasks in (5, [5], {"hellaswag": 1}):
        with pytest.raises(UserError, match=r"^tasks=.*: must be names of tasks\. Set tasks=\[hellaswag,arc_easy\]\.$"):
            LmEvalEvaluator(tasks)
    with pytest.raises(UserError, match=r"^evaluator\.limit=0: must be an integer, at least 1\.$"):
        LmEvalEvaluator(["x"], limit=0)
    with pytest.raises(UserError, match=r"^evaluator\.include_path=.*gone: no such folder"):
        LmEvalEvaluator(["x"], include_path=str(tmp_path / "gone"))


def test_a_missing_package_is_an_error_with_the_extra_to_install(toy_model, tmp_path, monkeypatch):
    from lpsel import errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^evaluator=lm_eval: needs the package lm_eval\. Run pip install 'lpsel\[lm-eval\]'\.$"
    ):
        run(LmEvalEvaluator(["x"]), [ModelSpec("toy", str(toy_model))], tmp_path)


def test_filters_are_separate_metrics_and_missing_errors_are_none():
    assert metrics_of(
        {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.5,
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.75,
                "exact_match_stderr,flexible-extract": "N/A",
                "sample_len": 4,
            }
        },
        {"gsm8k": {"original": 4, "effective": 4}},
    ) == {
        "gsm8k/exact_match,strict-match": {
            "value": 0.5, "standard_error": 0.1, "low": pytest.approx(0.304), "high": pytest.approx(0.696)
        },
        "gsm8k/exact_match,flexible-extract": {"value": 0.75, "standard_error": None, "low": None, "high": None},
    }  # fmt: skip


@pytest.mark.parametrize(("right", "rows"), [(20, 20), (0, 8), (7, 10)])
def test_proportions_have_wilsons_interval(right, rows):
    error = np.std([1] * right + [0] * (rows - right), ddof=1) / rows**0.5  # as the harness computes it
    found = metrics_of(
        {"task": {"acc,none": right / rows, "acc_stderr,none": error}}, {"task": {"original": 99, "effective": rows}}
    )["task/acc"]
    expected = stats.binomtest(right, rows).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.slow
@installed
def test_the_command_runs_next_to_evaluate_py(toy_model, tasks, tmp_path):
    # a metric of the package `evaluate`, whose name evaluate.py has as well
    (tasks / "choice.yaml").write_text(
        (tasks / "choice.yaml").read_text() + "process_docs: !function rows.as_they_are\n"
    )
    (tasks / "rows.py").write_text(
        "import evaluate\n\nassert evaluate.EvaluationModule\n\n\ndef as_they_are(rows):\n    return rows\n"
    )
    done = subprocess.run(
        [
            sys.executable, "evaluate.py", "evaluator=lm_eval", "tasks=[my_choice]", f"evaluator.include_path={tasks}",
            f"model={toy_model}", "max_length=128", "tracker=none", "trainer=cpu", f"hydra.run.dir={tmp_path / 'run'}",
        ],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LPSEL_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["models"][0]["metrics"]["my_choice/acc"]["value"] == sum(by_hand(toy_model)["acc"]) / 5
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
