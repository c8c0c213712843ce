"""Run folders, and what evaluations measured of their models."""

import json

import pytest

from lpsel.commands.votes import run as count_votes
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judge import Pair
from lpsel.report.points import metrics_of, points
from lpsel.report.runs import find_runs


def test_runs_are_found_below_a_folder_and_others_are_skipped_with_the_reason(sweep):
    runs = find_runs([str(sweep), str(sweep / "0")])
    assert len(runs.finished) == 8
    assert {folder.name: reason for folder, reason in runs.skipped} == {
        "unfinished": "not finished: no result.json",
        "broken": "result.json is not readable",
    }


def test_evaluations_are_matched_by_model_folder(sweep):
    measured = points(find_runs([str(sweep)]))
    assert {(p.run.folder.name, p.evaluation.folder.name, p.value) for p in measured} == {
        ("0", "e0", 48), ("1", "e1", 53), ("2", "e2", 49), ("3", "e3", 58)}  # fmt: skip


def test_evaluations_of_several_models_and_their_votes_are_matched_by_the_names_of_answers(sweep):
    evaluation = sweep / "evaluation"
    evaluation.mkdir()
    pairs = [Pair(f"p{i}", f"prompt {i}", "old", "newer", "vicuna", None) for i in range(2)]
    _, key = HumanJudge().write(pairs, evaluation, baseline="full", model="lp, 10%")
    names = {"full": "elsewhere", "lp, 5%": "0", "lp, 10%": "1", "lp, 25%": "3"}  # as in result.json of pairwise
    answers = [{"name": name, "model": str(sweep / run / "model")} for name, run in names.items()]
    models = [
        {"name": name, "win_rate": 40.0 + i, "ci_low": 30.0, "ci_high": 60.0, "n": 40}
        for i, name in enumerate(list(names)[1:])
    ]
    result = {"command": "evaluate", **models[0], "models": models, "answers": answers, "prompts": ["koala", "lima"],
            "baseline": "full", "judge": {"judge": "openai", "name": "a judge"}}  # fmt: skip
    (evaluation / "result.json").write_text(json.dumps(result))
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
    assert {p.against for p in judged} == {"against full, judged by a judge, on koala and lima, prompts 40"}
    (human,) = [p for p in measured if p.evaluation.folder.name == "counted"]
    assert (human.run.folder.name, human.value, human.against) == (
        "1",
        100,
        "against full, judged by people, prompts 2",
    )


def settings_of(folder, name, seed, **changes):
    own = {"epochs": 1, "length": "none"} | changes.pop("settings", {})
    result = {"command": "train", "rule": "lp", "pct": 10, "seed": seed, "base_model": {"name": "m"}, "settings": own}
    recipe = {"learning_rate": 1e-5, "seed": seed} | changes.pop("recipe", {})
    (folder / name).mkdir(parents=True)
    (folder / name / "result.json").write_text(json.dumps(result | changes))
    config = {"command": "train", "config": {"model": {"recipe": recipe}, "selection": {"length": own["length"]}}}
    (folder / name / "run_config.json").write_text(json.dumps(config))


def test_runs_that_differ_in_more_than_the_seed_are_different_series(tmp_path):
    settings_of(tmp_path, "0", 1)
    settings_of(tmp_path, "1", 2)
    settings_of(tmp_path, "2", 1, settings={"length": "matched"})
    settings_of(tmp_path, "3", 1, recipe={"learning_rate": 2e-5})
    settings_of(tmp_path, "4", 1, adapter={"method": "lora", "rank": 8})
    settings_of(tmp_path, "5", 1, dataset={"name": "dolly", "fingerprint": "a"})
    settings_of(tmp_path, "6", 1, dataset={"name": "dolly", "fingerprint": "b"})
    series = {run.folder.name: run.series for run in find_runs([tmp_path]).finished}
    assert series["0"] == series["1"]
    assert len(set(series.values())) == 6
    assert "length=matched" in series["2"]


def test_runs_are_trained_the_same_way_unless_they_differ_in_more_than_rows_and_seed(tmp_path):
    settings_of(tmp_path, "lp", 1, dataset={"name": "dolly", "fingerprint": "a"}, settings={"length": "matched"})
    settings_of(tmp_path, "same", 2, rule="random", pct=5, dataset={"name": "copy", "fingerprint": "a"})
    settings_of(tmp_path, "rows", 1, rule="random", dataset={"name": "dolly", "fingerprint": "b"})
    settings_of(tmp_path, "rate", 1, rule="full", dataset={"name": "dolly", "fingerprint": "a"},
                recipe={"learning_rate": 2e-5})  # fmt: skip
    settings_of(tmp_path, "lora", 1, rule="ifd", dataset={"name": "dolly", "fingerprint": "a"},
                adapter={"method": "lora"})  # fmt: skip
    runs = {run.folder.name: run for run in find_runs([tmp_path]).finished}
    assert runs["lp"].trained_as == runs["same"].trained_as
    assert len({run.trained_as for run in runs.values()}) == 4
    assert "learning_rate=2e-05" in runs["rate"].series, "labels say so, also of different rules"
    assert "method=lora" in runs["lora"].series


def test_runs_that_differ_in_the_seed_only_have_no_settings_in_their_label(tmp_path):
    for seed in range(3):
        settings_of(tmp_path, str(seed), seed)
    assert {run.series for run in find_runs([tmp_path]).finished} == {"lp → m"}


def test_rules_are_named_with_the_columns_and_rules_that_they_rank_by(tmp_path):
    combine = {"combine": {"lp_app_nll": 1, "quality": 0.5, "ifd": -1}}
    settings_of(tmp_path, "0", 1, rule="combine", settings=combine)
    settings_of(tmp_path, "1", 1, rule="combine", settings={"combine": {"quality": 1}})
    settings_of(tmp_path, "2", 1, rule="score_column", settings={"column": "reward"})
    assert {run.folder.name: run.series for run in find_runs([tmp_path]).finished} == {
        "0": "combine(lp_app_nll, 0.5 quality, -1 ifd) → m", "1": "combine(quality) → m",
        "2": "score_column(reward) → m"}  # fmt: skip


def test_a_win_rate_without_information_is_left_out():
    entry = {"win_rate": 50.0, "ci_low": 50.0, "ci_high": 50.0, "n": 100, "informative": False}
    assert metrics_of(entry) == {}
    assert metrics_of(entry | {"informative": True}) == {"win_rate": (50, 50, 50)}


def test_few_verdicts_have_wilsons_interval():
    entry = {
        "win_rate": 100.0,
        "ci_low": 100.0,
        "ci_high": 100.0,
        "wilson_low": 83.9,
        "wilson_high": 100.0,
        "n": 20,
        "wins": 20,
    }
    assert metrics_of(entry) == {"win_rate": (100, 83.9, 100)}


@pytest.mark.parametrize("differing", ["tokenizer", "supervised_tokens"])
def test_nll_of_different_tokenizers_or_tokens_is_not_comparable(tmp_path, differing):
    for name in "ab":
        settings_of(tmp_path, name, 1)
    models = [
        {
            "name": name,
            "model": str(tmp_path / name / "model"),
            "tokenizer": "t" * 64,
            "supervised_tokens": 2000,
            "metrics": {"nll": {"value": 2.0}},
        }
        for name in "ab"
    ]
    (tmp_path / "e").mkdir()
    evaluation = {"command": "evaluate", "dataset": "held-out", "n": 8, "models": models}
    for change, conditions in ((0, 1), (1, 2)):
        models[0][differing] = {"tokenizer": "tu", "supervised_tokens": (2000, 1000)}[differing][change]
        models[0][differing] *= 64 if differing == "tokenizer" else 1
        (tmp_path / "e" / "result.json").write_text(json.dumps(evaluation))
        assert len({p.against for p in points(find_runs([tmp_path]))}) == conditions


@pytest.mark.parametrize(
    "differing",
    [
        {"judge": {"name": "j", "prompt": "Be strict."}},
        {"sampling": {"temperature": 1.0}},
        {"prompts_fingerprint": "b"},
    ],
)
def test_win_rates_by_another_judge_of_the_same_name_are_not_comparable(tmp_path, differing):
    conditions = {"judge": {"name": "j", "prompt": "Decide."}, "sampling": {"temperature": 0.0}, "n_prompts": 9}
    for change, different in (({}, 1), (differing, 2)):
        for name in "ab":
            settings_of(tmp_path / f"{different}", name, 1)
            models = [{"name": name, "model": str(tmp_path / f"{different}" / name / "model"), "win_rate": 50.0}]
            evaluation = {"command": "evaluate", "baseline": "full", **conditions, "models": models}
            folder = tmp_path / f"{different}" / f"evaluated-{name}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(evaluation | (change if name == "b" else {})))
        measured = points(find_runs([tmp_path / f"{different}"]))
        assert len(measured) == 2
        assert len({p.against for p in measured}) == different
        assert ("settings" in measured[0].against) == (different == 2)


def test_a_metric_without_a_value_is_left_out():
    entry = {"metrics": {"task/acc": {"value": 0.5, "low": 0.3, "high": 0.7}, "undefined": {"value": None}}}
    assert metrics_of(entry) == {"task/acc": (0.5, 0.3, 0.7)}


def test_evaluations_still_belong_to_their_runs_after_a_sweep_is_moved(sweep, tmp_path):
    for name in "0123":
        file = sweep / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model": str(sweep / name / "model")}))
    before = {p.run.name: p.value for p in points(find_runs([sweep]))}
    moved = sweep.rename(tmp_path / "elsewhere")
    after = {p.run.name: p.value for p in points(find_runs([moved]))}
    assert after == {f"elsewhere/{name[-1]}": value for name, value in before.items()}
    assert sorted(after.values()) == [48, 49, 53, 58]
