"""Run folders, and what evaluations measured of their models."""

import json

import pytest

from lpsel.commands.votes import run as count_votes
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judge import Pair
from lpsel.report.runs import find_runs, metrics_of, points


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
    _, key = HumanJudge().write(pairs, evaluation, baseline="full", model="lp, 10 %")
    names = {"full": "elsewhere", "lp, 5 %": "0", "lp, 10 %": "1", "lp, 25 %": "3"}  # as in result.json of pairwise
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
    assert {p.against for p in judged} == {"against full, judged by a judge, on koala and lima"}
    (human,) = [p for p in measured if p.evaluation.folder.name == "counted"]
    assert (human.run.folder.name, human.value, human.against) == ("1", 100, "against full, judged by people")


def test_a_standard_error_becomes_a_95_percent_interval():
    entry = {"metrics": {"task/acc": {"value": 0.5, "standard_error": 0.1}, "undefined": {"value": None}}}
    assert metrics_of(entry) == {"task/acc": pytest.approx((0.5, 0.304, 0.696))}
