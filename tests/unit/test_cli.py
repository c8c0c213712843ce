"""The command line: what is implied, and how a mistake ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpsel.cli import overrides
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


def test_a_path_alone_means_local():
    assert overrides("select", ["scorer.path=x", "dataset.path=y"]) == [
        "scorer=local", "dataset=local", "scorer.path=x", "dataset.path=y",
    ]  # fmt: skip


def test_a_path_with_a_name_keeps_the_name():
    given = ["scorer=smollm2-135m", "scorer.path=x"]
    assert overrides("select", given) == given


def test_a_real_model_brings_the_papers_data_set_and_scorer():
    given = ["model=opt-13b", "selection=lp_app", "pct=10"]
    assert overrides("train", given) == ["dataset=alpaca", "scorer=opt-350m", *given]
    assert overrides("train", ["model.path=x", "dataset=dolly"]) == [
        "model=local", "scorer=opt-350m", "model.path=x", "dataset=dolly",
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [["--multirun"], ["--cfg", "job"]])
def test_what_is_implied_stands_beside_the_users_overrides(flags):
    assert overrides("select", [*flags, "scorer.path=x"]) == [*flags, "scorer=local", "scorer.path=x"]
    assert overrides("select", ["scorer.path=x", *flags]) == ["scorer=local", "scorer.path=x", *flags]


@pytest.mark.parametrize("given", [[], ["pct=5"], ["model=tiny-target"], ["-m", "model=tiny,tiny-target"]])
def test_the_embedded_default_stays_whole(given):
    assert overrides("train", given) == given


def test_evaluate_takes_run_folders_as_models():
    assert overrides("evaluate", ["model=[runs/a,runs/b]"]) == ["models=[runs/a,runs/b]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["select", "pct=0"],
            "lpsel select: pct=0: must be above 0 and at most 100.",
        ),
        (["select", "selectoin=lp"], "selectoin: no such setting; did you mean selection"),
        (["select", "selection=lpp"], "selection=lpp: no such choice; did you mean lp or lp_app? give one of"),
        (["select", "dataset.path=nowhere.jsonl"], "dataset.path=nowhere.jsonl: no such file."),
        (["select", "scorer.path=./nowhere"], "./nowhere: no such folder; give a model folder or a Hugging Face id."),
        (["select", "scorer.max_length=1"], "max_length=1: must be at least 2 tokens."),
        (["select", "scorer.recipe.epochs=0"], "recipe.epochs=0: must be at least 1."),
        (["train", "model.recipe.schedule=zigzag"], "recipe.schedule=zigzag: must be one of cosine, linear, constant."),
        (["select", "trainer=gpu"], "trainer.accelerator=gpu: this machine has no CUDA device; say trainer=cpu."),
        (["select", "tracker.mode=sometimes"], "tracker.mode=sometimes: must be online or offline"),
        (["evaluate", "model=./nowhere"], "./nowhere: no such folder"),
        (["evaluate"], "lpsel evaluate: model: none given; say model=RUN_OR_MODEL, or model=[A,B] for several."),
        (["select", "trainer.precision=16-mixed"], "trainer.precision=16-mixed: must be auto, 32-true, bf16-mixed"),
        (["select", "dataset.limit=1.5"], "dataset.limit=1.5: must be at least 1 row"),
        (["select", "seed=abc"], "recipe.seed=abc: must be a whole number."),
        (["select", "cache_dir=/proc/nowhere"], "cache_dir=/proc/nowhere: cannot be written"),
        (
            ["evaluate", "evaluator=pairwise", "judge=hf", "model=a"],
            "judge.model.path: not given, and judge cannot do without; say judge.model.path=...",
        ),
        (
            ["publsh"],
            "lpsel: publsh: no such command; give one of train, select, evaluate, agreement, votes, publish, report, "
            "runs, show, rows.",
        ),
        (
            ["agreement", "nowhere.csv", "b.csv"],
            "lpsel agreement: nowhere.csv: no such file. Name a scores folder, or a",
        ),
        (
            ["agreement", "--pct", "ten", "a", "b"],
            "lpsel agreement: --pct ten: give numbers above 0 and at most 100, with",
        ),
        (["agreement", "--pct", "0", "a", "b"], "lpsel agreement: pct=0.0: must be above 0 and at most 100."),
        (["agreement"], "the following arguments are required: TABLE; see lpsel agreement --help."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path):
    run_dir = [] if arguments[0] in ("publsh", "agreement") else [f"hydra.run.dir={tmp_path}/run"]
    done = lpsel(*arguments, *run_dir, cwd=tmp_path, LPSEL_CACHE=str(tmp_path / "cache"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_help_names_the_commands():
    names = [line.split()[0] for line in lpsel("--help").stdout.splitlines()[2:]]
    assert names == ["train", "select", "evaluate", "agreement", "votes", "publish", "report", "runs", "show", "rows"]


def test_output_that_nobody_reads_any_more_ends_a_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lpsel", "train", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_quoted_run_folder_is_looked_at_without_its_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_arguments([f'hydra.run.dir="{tmp_path}/a,b"'])
    assert [path.name for path in tmp_path.iterdir()] == ["a,b"]
