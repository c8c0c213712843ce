"""The command line: implied overrides, and how user errors are printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpsel.cli import hydra_arguments
from lpsel.command_line import check_arguments

ROOT = Path(__file__).resolve().parents[2]


def lpsel(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lpsel", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_path_alone_implies_local():
    assert hydra_arguments("select", ["scorer.path=x", "dataset.path=y"]) == [
        "scorer=local", "dataset=local", "scorer.path=x", "dataset.path=y",
    ]  # fmt: skip


def test_a_path_with_a_name_keeps_the_name():
    given = ["scorer=smollm2-135m", "scorer.path=x"]
    assert hydra_arguments("select", given) == given


def test_a_real_model_implies_the_papers_dataset_and_scorer():
    given = ["model=opt-13b", "selection=lp_app", "pct=10"]
    assert hydra_arguments("train", given) == ["dataset=alpaca", "scorer=opt-350m", *given]
    assert hydra_arguments("train", ["model.path=x", "dataset=dolly"]) == [
        "model=local", "scorer=opt-350m", "model.path=x", "dataset=dolly",
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [["--multirun"], ["--cfg", "job"]])
def test_what_is_implied_stands_beside_the_users_hydra_arguments(flags):
    assert hydra_arguments("select", [*flags, "scorer.path=x"]) == [*flags, "scorer=local", "scorer.path=x"]
    assert hydra_arguments("select", ["scorer.path=x", *flags]) == ["scorer=local", "scorer.path=x", *flags]


@pytest.mark.parametrize("given", [[], ["pct=5"], ["model=tiny-target"], ["-m", "model=tiny,tiny-target"]])
def test_embedded_models_imply_nothing(given):
    assert hydra_arguments("train", given) == given


def test_evaluate_takes_run_folders_as_models():
    assert hydra_arguments("evaluate", ["model=[runs/a,runs/b]"]) == ["models=[runs/a,runs/b]"]


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        (["select", "pct=0"], "lpsel select: pct=0: "),
        (["select", "selectoin=lp"], "lpsel select: selectoin: unknown option. Did you mean selection"),
        (["select", "selection=lpp"], "selection=lpp: unknown choice. Did you mean lp or lp_app? Use one of "),
        (["select", "selection=lp,random"], "selection=lp,random: several values. Use -m selection=lp,random for one"),
        (["select", "pct"], "not NAME=VALUE. Quote values with special characters"),
        (["select", "dataset.path=nowhere.jsonl"], "dataset.path=nowhere.jsonl: "),
        (["train", "model.recipe.schedule=zigzag"], "recipe.schedule=zigzag: "),
        (["select", "trainer=gpu"], "trainer.accelerator=gpu: "),
        (["evaluate"], "lpsel evaluate: model=null: no model to evaluate. Set "),
        (["select", "cache_dir=/proc/nowhere"], "cache_dir=/proc/nowhere: not writable"),
        (
            ["evaluate", "evaluator=pairwise", "judge=hf", "model=a"],
            "judge.model.path: required and not set. Set ",
        ),
        (["publsh"], "lpsel: publsh: unknown command. Use one of train, select, evaluate, agreement, votes, publish, "),
        (["agreement"], "lpsel agreement: the following arguments are required: TABLE. See lpsel agreement --help."),
    ],
)
def test_a_user_error_is_one_line_and_status_2(arguments, subject, tmp_path):
    run_dir = [] if arguments[0] in ("publsh", "agreement") else [f"hydra.run.dir={tmp_path}/run"]
    done = lpsel(*arguments, *run_dir, cwd=tmp_path, LPSEL_CACHE=str(tmp_path / "cache"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert subject in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_help_lists_the_commands():
    names = [line.split()[0] for line in lpsel("--help").stdout.splitlines()[2:]]
    assert names == ["train", "select", "evaluate", "agreement", "votes", "publish", "report", "runs", "show", "rows"]


def test_a_closed_pipe_ends_a_command_without_a_message():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lpsel", "train", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_quotes_around_a_run_folder_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_arguments([f'hydra.run.dir="{tmp_path}/a,b"'])
    assert [path.name for path in tmp_path.iterdir()] == ["a,b"]
