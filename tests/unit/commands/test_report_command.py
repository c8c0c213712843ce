"""`lpsel report`: a page from run folders, checked in a real browser."""

import csv
import importlib.util
import json

import pytest

from lpsel.commands.job import run
from lpsel.commands.report import report
from lpsel.commands.votes import run as count_votes
from lpsel.errors import UserError
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judge import Pair

# The smallest text of any figure in CSS pixels, after scaling.
TEXT_SIZES = """Math.min(...[...document.querySelectorAll("figure svg")].flatMap(drawn => {
    const scale = drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width;
    if (scale === 0) return [];  // the other one of the phone's and the desktop's
    return [...drawn.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
}))"""


def test_no_run_is_an_error_and_a_folder_with_inputs_is_not_replaced(sweep, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Name run folders"):
        report(["nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match=r"which this command reads\. Name another folder"):
        report([str(sweep)], sweep)
    assert (sweep / "0" / "result.json").is_file()


def test_win_rates_by_category_and_the_agreement_of_annotators_are_on_the_page(few_runs, tmp_path, page_in_chromium):
    prompts = [
        {
            "id": str(i),
            "instruction": f"Count to {i}.",
            "reference_output": "1 2",
            "category": ("<b>sums", "words")[i % 2],
        }
        for i in range(6)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    config = ["evaluator=pairwise", "judge=reference", f"prompts={tmp_path}/mine.jsonl", "evaluator.max_new_tokens=4",
             f"models=[{few_runs}/train/toy-llama-low,{few_runs}/train/toy-llama-high]", "trainer=cpu", "tracker=none",
             f"baseline={few_runs}/train/full", f"cache_dir={tmp_path}/cache"]  # fmt: skip
    cut = run("evaluate", config, tmp_path / "cut")
    assert {model["informative"] for model in cut["models"]} == {False}, "all answers are cut off"
    given = ["evaluator=pairwise", f"judgements={cut['judgements']}", "tracker=none", f"cache_dir={tmp_path}/cache"]
    judged = run("evaluate", given, tmp_path / "runs" / "pairwise")
    pairs = [Pair(f"p{i}", f"prompt {i}", "old", "newer", "vicuna", None) for i in range(4)]
    _, key = HumanJudge().write(pairs, tmp_path, baseline="full", model="low")
    files = []
    for name, for_model in (("Ann", [1, 1, 0, 0]), ("Bob <i>", [1, 1, 1, 0])):
        votes = [
            {"pair": i, "vote": "a" if (pair.a == "model") == wanted else "b", "at": "2026-01-01T12:00:00.000Z"}
            for i, (pair, wanted) in enumerate(zip(read_key(key).pairs, for_model, strict=True))
        ]
        files.append(tmp_path / f"{name[:3]}.json")
        files[-1].write_text(json.dumps({"page": read_key(key).page, "annotator": name, "votes": votes}))
    count_votes(files, key, tmp_path / "runs" / "votes")

    path = report([str(tmp_path / "runs")], tmp_path / "out")
    page = page_in_chromium(path)
    texts = [text.strip() for text in page.locator("td").all_text_contents()]
    assert {"<b>sums", "words", "mine", "vicuna", "Ann", "Bob <i>"} <= set(texts)
    groups = list(csv.DictReader((path.parent / "tables" / "groups.csv").open()))
    rates = {(row["model"], row["group"]): float(row["value"]) for row in groups if row["kind"] == "category"}
    informative = [model for model in judged["models"] if model["informative"]]  # of the other one, all pairs are ties
    assert len(informative) == 1
    assert rates == {
        (model["name"], name): of["win_rate"] for model in informative for name, of in model["by_category"].items()
    }
    annotators = list(csv.DictReader((path.parent / "tables" / "votes.csv").open()))
    assert [row["annotator"] for row in annotators] == ["Ann", "Bob <i>"]
    # One of four pairs is disputed, and 5 of 8 votes are for the model: 1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)).
    assert {row["Krippendorff's alpha"] for row in annotators} == {"0.5333333333333333"}
    assert texts.count("0.533") == 2
    assert {p.stem for p in path.parent.glob("figures/groups-*.svg")} == {"groups-1", "groups-2", "groups-3"}


@pytest.mark.slow
def test_a_real_sweep_with_buckets_and_scorers(few_runs, tmp_path, page_in_chromium):
    path = report([str(few_runs)], tmp_path / "out")
    page = page_in_chromium(path, viewport={"width": 390, "height": 900})
    names = {p.stem for p in path.parent.glob("figures/*.png")}
    assert {"share-1", "difference-1", "buckets-1", "scorers-1", "agreement", "costs"} <= names
    assert page.locator("figure svg:visible").count() == len(names)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(TEXT_SIZES) >= 12
    assert "cut-off: not finished" in page.locator("li").text_content()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_results_have_a_table_and_a_figure(few_runs, toy_model, tmp_path, monkeypatch, page_in_chromium):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = [{"question": f"{i} and 1 make", "choices": [str(i + 1), "a fish"], "label": 0} for i in range(4)]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "sums", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/rows.json"}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
            "doc_to_choice": "choices", "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}  # fmt: skip
    (tmp_path / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML
    config = ["evaluator=lm_eval", f"evaluator.tasks=[{tmp_path}/sums.yaml]", "trainer=cpu", "tracker=none",
             f"cache_dir={tmp_path}/cache", f"models=[{few_runs}/train/full,{toy_model}]"]  # fmt: skip
    result = run("evaluate", config, tmp_path / "harness")
    path = report([str(tmp_path / "harness")], tmp_path / "out")
    table = list(csv.DictReader((path.parent / "tables" / "harness.csv").open()))
    assert [(row["model"], row["task"], row["kind"]) for row in table] == [
        (model["name"], "sums", metric) for model in result["models"] for metric in ("acc", "acc_norm")
    ]
    assert float(table[0]["value"]) == result["models"][0]["metrics"]["sums/acc"]["value"]
    assert {p.stem for p in path.parent.glob("figures/*.svg")} == {"harness-1", "harness-2"}
    assert page_in_chromium(path).locator("figure svg:visible").count() == 2
