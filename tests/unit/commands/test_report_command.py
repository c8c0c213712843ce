"""`lpsel report`: a page from run folders, checked in a real browser."""

import csv
import importlib.util
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands.job import run
from lpsel.commands.report import report
from lpsel.commands.votes import run as count_votes
from lpsel.errors import UserError
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judge import Pair
from lpsel.report.page import link
from lpsel.report.quality_figures import smallest_passing
from lpsel.report.runs import find_runs, points
from lpsel.report.tables import seed_rows

SHOWN = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map(r => r.cells[0].textContent)"
# The smallest text of any figure in CSS pixels, after scaling.
TEXT_SIZES = """Math.min(...[...document.querySelectorAll("figure svg")].flatMap(drawn => {
    const scale = drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width;
    return [...drawn.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
}))"""
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


def write_run(folder, rule, pct, seed=1, **more):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    nll = np.sort(rng.uniform(1, 3, (3, 60)), axis=0)[::-1]
    columns = {f"nll_{e}": nll[e] for e in range(3)} | {"index": np.arange(60), "response_tokens": np.arange(60) + 1}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    chosen = {"index": np.arange(60), "score": rng.normal(size=60), "selected": np.arange(60) < 6}
    pq.write_table(pa.table(chosen), folder / "selection.parquet")
    flops = {"selection": {"flops": 10}, "training": {"flops": 30}, "everything": {"flops": 100}}
    made = {"command": "train", "rule": rule, "pct": pct, "seed": seed, "base_model": {"name": "m"}, "n_selected": 6,
            "scores": str(folder / "scores.parquet"), "ledger": flops | {"saved": {"share": 0.6, "flops": 60}},
            "examples": {"first": [{"index": 3, "score": 0.1, "selected": True, "text": EVIL}]},
            "scorer": {"name": EVIL}}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(made | more))


@pytest.fixture
def sweep(tmp_path):
    runs = tmp_path / "sweep"
    for name, rule, pct, rate in (
        ("0", "lp", 5, 48),
        ("1", "lp", 10, 53),
        ("2", "random", 10, 49),
        ("3", "lp", 25, 58),
    ):
        write_run(runs / name, rule, pct)
        (runs / f"e{name}").mkdir()
        made = {"command": "evaluate", "n": 100, "win_rate": rate, "ci_low": rate - 4, "ci_high": rate + 4,
                "model": str(runs / name / "model"), "baseline": "full"}  # fmt: skip
        (runs / f"e{name}" / "result.json").write_text(json.dumps(made))
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "run_config.json").write_text("{}")
    (runs / "broken").mkdir()
    (runs / "broken" / "result.json").write_text("{")
    return runs


def test_runs_are_found_below_a_folder_and_others_are_skipped_with_the_reason(sweep):
    runs = find_runs([str(sweep), str(sweep / "0")])
    assert len(runs.finished) == 8
    assert {folder.name: reason for folder, reason in runs.skipped} == {
        "unfinished": "not finished: no result.json",
        "broken": "result.json is not readable",
    }


def test_evaluations_are_matched_by_model_folder_and_the_smallest_passing_percentage_is_found(sweep):
    made = points(find_runs([str(sweep)]))
    assert {(p.run.folder.name, p.evaluation.folder.name, p.value) for p in made} == {
        ("0", "e0", 48), ("1", "e1", 53), ("2", "e2", 49), ("3", "e3", 58)}  # fmt: skip
    assert smallest_passing(made) == 10


def test_evaluations_of_several_models_and_their_votes_are_matched_by_the_names_of_answers(sweep):
    evaluation = sweep / "evaluation"
    evaluation.mkdir()
    pairs = [Pair(f"p{i}", f"prompt {i}", "old", "newer", "vicuna", None) for i in range(2)]
    _, key = HumanJudge().write(pairs, evaluation, baseline="full", model="lp, 10 %")
    names = {"full": "elsewhere", "lp, 5 %": "0", "lp, 10 %": "1", "lp, 25 %": "3"}  # as in result.json of pairwise
    answers = [{"name": name, "model": str(sweep / run / "model")} for name, run in names.items()]
    models = [
        {"name": name, "win_rate": 40.0 + i, "ci_low": 30.0, "ci_high": 60.0, "n": 40}
        for i, name in enumerate(list(names)[1:])
    ]
    made = {"command": "evaluate", **models[0], "models": models, "answers": answers, "prompts": ["koala", "lima"],
            "baseline": "full", "judge": {"judge": "openai", "name": "a judge"}}  # fmt: skip
    (evaluation / "result.json").write_text(json.dumps(made))
    secret = read_key(key)
    votes = [
        {"pair": i, "vote": "a" if pair.a == "model" else "b", "at": "2026-01-01T12:00:00.000Z"}
        for i, pair in enumerate(secret.pairs)
    ]
    file = sweep.parent / "ann.json"
    file.write_text(json.dumps({"page": secret.page, "annotator": "Ann", "votes": votes}))
    count_votes([file], key, sweep / "counted")

    measured = points(find_runs([str(sweep)]))
    judged = [p for p in measured if p.evaluation.folder.name == "evaluation"]
    assert {(p.run.folder.name, p.value, p.details["n"]) for p in judged} == {
        ("0", 40, 40),
        ("1", 41, 40),
        ("3", 42, 40),
    }
    assert {p.against for p in judged} == {"against full, judged by a judge, on koala and lima"}
    (human,) = [p for p in measured if p.evaluation.folder.name == "counted"]
    assert (human.run.folder.name, human.value, human.against) == ("1", 100, "against full, judged by people")


def test_spread_is_over_seeds_only(sweep):
    for name, seed in (("4", 2), ("5", 1)):
        write_run(sweep / name, "lp", 5, seed)
        (sweep / f"e{name}").mkdir()
        made = json.loads((sweep / "e0" / "result.json").read_text()) | {"win_rate": 52, "model": str(sweep / name)}
        (sweep / f"e{name}" / "result.json").write_text(json.dumps(made))
    (row,) = seed_rows(points(find_runs([str(sweep)])))
    assert (row["seeds"], row["pct"]) == (2, 5)  # two runs with seed 1 count once


def test_no_run_is_an_error_and_a_folder_with_inputs_is_not_replaced(sweep, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Name run folders"):
        report(["nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match=r"which this command reads\. Name another folder"):
        report([str(sweep)], sweep)
    assert (sweep / "0" / "result.json").is_file()


def test_the_page_in_a_browser(sweep, tmp_path, page_in_chromium):
    path = report([str(sweep)], tmp_path / "out")
    assert path.stat().st_size < 6e6
    names = {p.stem for p in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"share-1", "trajectory-1", "lengths-1", "agreement", "costs"} <= names
    assert names == {p.stem for p in (tmp_path / "out" / "figures").glob("*.svg")}
    assert (tmp_path / "out" / "tables" / "runs.csv").read_text().count("\n") == 9
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = page_in_chromium(path, viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert page.title() == "Report of 8 runs"  # scripts in the texts of the runs did not run
        assert page.locator("figure svg").count() == len(names)
        assert all(page.locator("figure svg").nth(i).bounding_box()["height"] > 50 for i in range(len(names)))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("button", name="value").click()
        assert page.evaluate(SHOWN)[:4] == ["sweep/0", "sweep/2", "sweep/1", "sweep/3"]
        assert page.evaluate(TEXT_SIZES) >= 12  # pixels


def test_the_table_is_sorted_and_filtered_from_the_keyboard(sweep, tmp_path, page_in_chromium):
    page = page_in_chromium(report([str(sweep)], tmp_path / "out"))

    def tab_to(target):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id || document.activeElement.textContent") == target:
                return
        raise AssertionError(f"{target} is not reached by Tab")

    def shown():
        return page.evaluate(SHOWN)

    tab_to("filter")
    page.keyboard.type("lp train")
    assert shown() == ["sweep/0", "sweep/1", "sweep/3"]
    assert page.get_by_role("status").text_content() == "3 of 8 shown"
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    tab_to("value")
    page.keyboard.press("Enter")
    assert shown()[:4] == ["sweep/0", "sweep/2", "sweep/1", "sweep/3"]  # 48, 49, 53, 58
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert shown()[:4] == ["sweep/3", "sweep/1", "sweep/2", "sweep/0"]  # undefined ones stay last


def test_links_work_after_page_and_runs_are_moved_together(sweep, tmp_path, page_in_chromium):
    report([str(sweep)], sweep.parent / "out")
    sweep.parent.rename(moved := tmp_path.with_name(f"{tmp_path.name} moved"))
    page = page_in_chromium(moved / "out" / "index.html")
    links = page.evaluate("[...document.querySelectorAll('#runs a, td a')].map(a => a.href)")
    folders = {Path(unquote(urlsplit(link).path)) for link in links}
    assert folders == {moved / "sweep" / name for name in ("0", "1", "2", "3", "e0", "e1", "e2", "e3")}
    assert all(folder.is_dir() for folder in folders)


def test_links_to_runs_elsewhere_are_absolute(sweep, tmp_path):
    assert link(sweep / "0", tmp_path / "deep" / "out") == (sweep / "0").as_uri()
    assert link(tmp_path / "a b", tmp_path / "out") == "../a%20b/"


def test_the_page_fits_on_paper(sweep, tmp_path, page_in_chromium):
    page = page_in_chromium(report([str(sweep)], tmp_path / "out"), viewport={"width": 1047, "height": 700})
    page.emulate_media(media="print")  # 1047 pixels: A4 across, less margins of 1 cm
    assert page.evaluate("document.documentElement.scrollWidth") <= 1047
    assert page.evaluate("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


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
    judged = run("evaluate", config, tmp_path / "runs" / "pairwise")
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
    assert rates == {
        (model["name"], name): of["win_rate"] for model in judged["models"] for name, of in model["by_category"].items()
    }
    annotators = list(csv.DictReader((path.parent / "tables" / "votes.csv").open()))
    assert [row["annotator"] for row in annotators] == ["Ann", "Bob <i>"]
    # One of four pairs is disputed, and 5 of 8 votes are for the model: 1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)).
    assert {row["Krippendorff's alpha"] for row in annotators} == {"0.5333333333333333"}
    assert texts.count("0.533") == 2
    assert {p.stem for p in path.parent.glob("figures/groups-*.svg")} == {"groups-1", "groups-2", "groups-3"}


def test_a_real_sweep_with_buckets_and_scorers(few_runs, tmp_path, page_in_chromium):
    path = report([str(few_runs)], tmp_path / "out")
    page = page_in_chromium(path, viewport={"width": 390, "height": 900})
    names = {p.stem for p in path.parent.glob("figures/*.png")}
    assert {"share-1", "difference-1", "buckets-1", "scorers-1", "agreement", "costs"} <= names
    assert page.locator("figure svg").count() == len(names)
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
    assert page_in_chromium(path).locator("figure svg").count() == 2
