"""Sweeps: jobs that are found, that fail alone, that share what one made, also when they run at the same time."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

import pytest

from lpsel.commands.job import run
from lpsel.sweep_names import job_name, sweep_name

ROOT = Path(__file__).resolve().parents[2]


def given(tmp_path, toy_model, data):
    return [
        f"dataset.path={data}", f"scorer.path={toy_model}", f"model.path={toy_model}", "scorer.recipe.epochs=1",
        "model.recipe.epochs=1", "cluster=none", "trainer=cpu", "tracker=none", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip


@pytest.fixture
def sweep(tmp_path, as_process):
    """Runs a sweep in a process of its own; returns what it printed, standard error behind it."""

    def run(*overrides, command="train", status=0):
        done = as_process(command, "-m", f"hydra.sweep.dir={tmp_path}/sweep", *overrides)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def outcomes(tmp_path):
    """Job -> what became of it in the last call."""
    read = [json.loads(file.read_text()) for file in (tmp_path / "sweep" / ".jobs").glob("[!.]*.json")]
    return {Path(job["folder"]).name: job["state"] for job in read}


def results(tmp_path):
    return {file.parent.name: json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/result.json")}


def test_a_failed_job_does_not_stop_the_others_and_a_second_call_retries_it(sweep, tmp_path, toy_model, instructions):
    there, missing = instructions(rows=8, name="a.jsonl"), tmp_path / "b.jsonl"
    overrides = [o for o in given(tmp_path, toy_model, f"{there},{missing}") if not o.startswith("model")]
    overrides += ["selection=lp_app", "pct=25,50"]
    output = sweep(*overrides, command="select", status=2)
    states = outcomes(tmp_path)
    assert Counter(states.values()) == {"done": 2, "failed": 2}
    assert not any(set(job) & set(",= ") for job in states)
    assert re.findall(r"^Job (\d of \d): ", output, re.MULTILINE) == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    table = [line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0] in states]
    assert sorted(line[1:3] for line in table if line[1] == "done") == [["done", "2"], ["done", "4"]]
    assert all(("b.jsonl" in job) == (state == "failed") for job, state in states.items())
    assert f"dataset.path={missing}: no such file." in output
    assert "2 of 4 jobs failed; run the same command again to retry them." in output
    first = results(tmp_path)
    assert sorted(result["n_selected"] for result in first.values()) == [2, 4]
    assert sorted(result["scores_reused"] for result in first.values()) == [False, True]
    written = {job: (tmp_path / "sweep" / job / "result.json").stat().st_mtime_ns for job in first}

    instructions(rows=9, name="b.jsonl")
    sweep(*overrides, command="select")
    assert Counter(outcomes(tmp_path).values()) == {"already finished": 2, "done": 2}
    assert {job: (tmp_path / "sweep" / job / "result.json").stat().st_mtime_ns for job in first} == written
    assert len(results(tmp_path)) == 4


@pytest.mark.slow
def test_joblib_runs_jobs_in_parallel_and_shared_work_is_done_once(sweep, tmp_path, toy_model, instructions):
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    output = sweep(*side_by_side, *given(tmp_path, toy_model, instructions(rows=8)), "selection=lp_app", "pct=25,50")
    made = results(tmp_path)
    assert sorted(result["n_selected"] for result in made.values()) == [2, 4]
    assert sorted(result["scores_reused"] for result in made.values()) == [False, True]
    assert len(list((tmp_path / "cache" / "scores").glob("*/scores.parquet"))) == 1
    assert len(list((tmp_path / "cache" / "tokens").glob("*/tokens.arrow"))) == 1
    assert Counter(outcomes(tmp_path).values()) == {"done": 2}, output


def one_of_two(ready, folder, overrides):
    status = 1
    try:
        ready.wait(60)
        run("train", overrides, folder, in_sweep=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.parametrize("rule", [pytest.param("full", marks=pytest.mark.slow), "lp_app"])
def test_two_processes_that_start_together_train_once(rule, tmp_path, toy_model, instructions):
    named = ["dataset=local", "scorer=local", "model=local", f"selection={rule}", "pct=50"]
    overrides = [*named, *given(tmp_path, toy_model, instructions(rows=8))]
    context = multiprocessing.get_context("fork")
    ready, folders = context.Barrier(2), [tmp_path / "one", tmp_path / "two"]
    processes = [context.Process(target=one_of_two, args=(ready, folder, overrides)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (json.loads((folder / "result.json").read_text()) for folder in folders)
    assert {one["reused_from"], two["reused_from"]} in ({None, str(folders[0])}, {None, str(folders[1])})
    assert one["training"] == two["training"], "with the seconds that the one training took"
    weights = [(folder / "model" / "model.safetensors").stat() for folder in folders]
    assert weights[0].st_ino == weights[1].st_ino, "linked, not copied"
    if rule == "lp_app":
        assert {one["scores_reused"], two["scores_reused"]} == {True, False}


@pytest.mark.slow
def test_ranks_started_by_lightning_run_their_job_only(tmp_path, toy_model, instructions):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    overrides = [*given(tmp_path, toy_model, instructions(rows=4)), *two, "selection=full", "seed=1,2"]
    command = [sys.executable, "-m", "lpsel", "train", "-m", f"hydra.sweep.dir={tmp_path}/sweep", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    made = results(tmp_path)
    assert sorted(result["seed"] for result in made.values()) == [1, 2]
    assert [result["training"]["world_size"] for result in made.values()] == [2, 2]
    assert Counter(outcomes(tmp_path).values()) == {"done": 2}


def test_the_folder_of_a_sweep_is_the_same_at_every_call():
    name = sweep_name(["pct=5,10", "selection=lp,random", "tracker=none"], {})
    assert re.fullmatch(r"pct-selection-\w{8}", name)
    assert sweep_name(["selection=lp,random", "cache_dir=elsewhere", "pct=5,10"], None) == name
    assert sweep_name(["pct=5,20", "selection=lp,random"], {}) != name
    assert sweep_name(["experiment=figure1"], {"pct": 10}).startswith("figure1-")


@pytest.mark.parametrize(
    ("rule", "overrides", "name"),
    [
        ({"epochs": 1, "pct": None}, ["pct=5", "selection=lp_app", "scorer=a"], "pct-5__scorer-a__selection-lp_app"),
        ({"epochs": None, "pct": None}, ["pct=5", "selection=random", "scorer=a"], "pct-5__selection-random"),
        ({"epochs": None, "pct": 100}, ["pct=5", "selection=full", "scorer=a"], "selection-full"),
        ({"epochs": 1, "pct": None}, ["pct=5", "pct=7", "tracker=none", "trainer=cpu"], "pct-7"),
    ],
)
def test_a_job_is_named_after_the_options_it_uses(rule, overrides, name):
    assert job_name(overrides, "train", _root_={"selection": rule, "cluster": {}}) == name


def test_a_name_that_is_too_long_keeps_rule_percentage_and_seed():
    rule = {"selection": {"epochs": 1, "pct": None}, "cluster": {}}
    long = [f"model.path=/models/{'m' * 60}", f"scorer.path=/models/{'s' * 60}", "selection=lp_app", "seed=2", "pct=5"]
    name = job_name(long, "train", _root_=rule)
    assert re.fullmatch(r"pct-5__seed-2__selection-lp_app__model.path-m+__[0-9a-f]{8}", name)
    assert len(name) <= 100
    assert job_name([*long[:2], "selection=lp", *long[3:]], "train", _root_=rule) != name


def test_options_with_the_separator_of_names_do_not_make_two_jobs_one():
    rule = {"selection": {"epochs": None, "pct": None}, "cluster": {}}
    names = {job_name([f"seed={seed}", *more], "train", _root_=rule) for seed, more in (("1__x-2", []), ("1", ["x=2"]))}
    assert len(names) == 2
