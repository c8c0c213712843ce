"""`lpsel report`: real files in, one page out, looked at in a real browser."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.errors import UserError
from lpsel.jobs.report import report
from lpsel.jobs.votes import run as count_votes
from lpsel.judging.human import HumanJudge, read_key
from lpsel.judging.judgement import Pair
from lpsel.report.run_figures import smallest_passing
from lpsel.report.run_page import seed_rows
from lpsel.report.runs import collect, points

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
    (runs / "unfinished" / "train.log").write_text("started")
    (runs / "broken").mkdir()
    (runs / "broken" / "result.json").write_text("{")
    return runs


def test_runs_are_found_below_a_folder_and_the_others_are_listed_with_the_reason(sweep):
    found = collect([str(sweep), str(sweep / "0")])
    assert len(found.runs) == 8
    assert {folder.name: why for folder, why in found.left_out} == {
        "unfinished": "not finished: no result.json",
        "broken": "result.json cannot be read",
    }


def test_evaluations_are_linked_by_the_folder_of_the_model_and_the_smallest_share_that_passes_is_found(sweep):
    made = points(collect([str(sweep)]))
    assert {(p.run.folder.name, p.evaluation.folder.name, p.value) for p in made} == {
        ("0", "e0", 48), ("1", "e1", 53), ("2", "e2", 49), ("3", "e3", 58)}  # fmt: skip
    assert smallest_passing(made) == 10


def test_one_evaluation_of_several_models_and_votes_on_its_page_are_linked_by_the_names_of_answers(sweep):
    asked = sweep / "asked"
    asked.mkdir()
    pairs = [Pair(f"p{i}", f"prompt {i}", "old", "newer", "vicuna", None) for i in range(2)]
    _, key = HumanJudge().write(pairs, asked, baseline="full", model="lp, 10 %")
    names = {"full": "elsewhere", "lp, 5 %": "0", "lp, 10 %": "1", "lp, 25 %": "3"}  # as in result.json of pairwise
    answers = [{"name": name, "model": str(sweep / run / "model")} for name, run in names.items()]
    models = [
        {"name": name, "win_rate": 40.0 + i, "ci_low": 30.0, "ci_high": 60.0, "n": 40}
        for i, name in enumerate(list(names)[1:])
    ]
    made = {"command": "evaluate", **models[0], "models": models, "answers": answers, "prompts": ["koala", "lima"],
            "baseline": "full", "judge": {"judge": "openai", "name": "a judge"}}  # fmt: skip
    (asked / "result.json").write_text(json.dumps(made))
    secret = read_key(key)
    votes = [
        {"pair": i, "vote": "a" if pair.a == "model" else "b", "at": "2026-01-01T12:00:00.000Z"}
        for i, pair in enumerate(secret.pairs)
    ]
    file = sweep.parent / "ann.json"
    file.write_text(json.dumps({"page": secret.page, "annotator": "Ann", "votes": votes}))
    count_votes([file], key, sweep / "counted")

    found = points(collect([str(sweep)]))
    judged = [p for p in found if p.evaluation.folder.name == "asked"]
    assert {(p.run.folder.name, p.value, p.beside["n"]) for p in judged} == {
        ("0", 40, 40),
        ("1", 41, 40),
        ("3", 42, 40),
    }
    assert {p.against for p in judged} == {"against full, judged by a judge, on koala and lima"}
    (people,) = [p for p in found if p.evaluation.folder.name == "counted"]
    assert (people.run.folder.name, people.value, people.against) == ("1", 100, "against full, judged by people")


def test_spread_is_over_seeds_alone(sweep):
    for name, seed in (("4", 2), ("5", 1)):
        write_run(sweep / name, "lp", 5, seed)
        (sweep / f"e{name}").mkdir()
        made = json.loads((sweep / "e0" / "result.json").read_text()) | {"win_rate": 52, "model": str(sweep / name)}
        (sweep / f"e{name}" / "result.json").write_text(json.dumps(made))
    (row,) = seed_rows(points(collect([str(sweep)])))
    assert (row["seeds"], row["pct"]) == (2, 5)  # two runs of seed 1 are one seed


def test_no_run_is_a_mistake_and_a_folder_that_is_no_report_is_left_alone(sweep, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; name run folders"):
        report(["nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match="is there and no report; name another folder"):
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
        assert page.title() == "Report of 8 runs"  # texts of the runs did nothing
        assert page.locator("figure svg").count() == len(names)
        assert all(page.locator("figure svg").nth(i).bounding_box()["height"] > 50 for i in range(len(names)))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shares = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map(r => r.cells[0].textContent)"
        head = page.get_by_role("button", name="value")
        head.focus()
        page.keyboard.press("Enter")
        assert page.evaluate(shares)[:4] == ["0", "2", "1", "3"]
        head.click()
        assert page.evaluate(shares)[:4] == ["3", "1", "2", "0"]  # undefined ones stay last
        page.get_by_label("Filter").fill("random")
        assert page.evaluate(shares) == ["2"]
