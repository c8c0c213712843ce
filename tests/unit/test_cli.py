"""The command line: its checks, and how user errors are printed."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from lpsel import cli, sweep
from lpsel.cli import FLAG_COMMANDS, HYDRA_COMMANDS
from lpsel.command_line import _option_names, check_arguments
from lpsel.commands import experiment
from lpsel.config import configured
from lpsel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_lpsel_alone_lists_the_commands_with_an_example_each(as_process):
    listed = as_process().stdout
    assert as_process("--help").stdout == as_process("help").stdout == listed
    names = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
    assert names == [*HYDRA_COMMANDS, *FLAG_COMMANDS] == re.findall(r"\$ lpsel (\w+) \S", listed)
    assert max(map(len, listed.splitlines())) <= 80


def test_version(as_process):
    assert as_process("--version").stdout == f"lpsel {version('lpsel')}\n"


def test_commands_with_flags_answer_before_torch_is_imported():
    code = "import importlib, sys; [importlib.import_module(f'lpsel.commands.{name}') for name in sys.argv[1:]]"
    code += "; print('torch' in sys.modules)"  # which takes seconds
    done = subprocess.run([sys.executable, "-c", code, *FLAG_COMMANDS], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", HYDRA_COMMANDS)
def test_help_fits_the_terminal_and_lists_ten_options_that_exist_and_how_to_see_all(command):
    with configured(command):
        text = compose(command, overrides=[f"hydra.job.name={command}"], return_hydra_config=True).hydra.help.template
    assert max(map(len, text.splitlines())) <= 80
    options = re.findall(r"^  ([\w.]+)=[A-Za-z]+ ", text, re.MULTILINE)
    assert len(set(options)) == 10
    known = _option_names(command) | {"hydra.run.dir"} | ({"model"} if command == "evaluate" else set())
    assert set(options) <= known
    assert f"lpsel {command} --cfg job\n" in text
    if command != "evaluate":
        assert {"lp_app,", "facility_location,"} <= set(text.split())


def test_completion_in_bash_after_the_documented_line(tmp_path):
    guide = (ROOT / "docs" / "guides" / "terminal.md").read_text()
    install = 'eval "$(lpsel -sc install=bash)"'
    assert f"\n{install}\n" in guide
    (tmp_path / "selected.json").touch()
    script = tmp_path / "completed.sh"
    script.write_text(
        install
        + r"""
completed() {
    COMP_LINE="$1"; read -ra COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_POINT=${#1}
    COMPREPLY=(); "$(complete -p lpsel | grep -o 'hydra_bash_completion')"; echo "${COMPREPLY[*]}"
}
completed "lpsel s"
completed "lpsel train selection=bucket"
completed "lpsel show sel"
"""
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "select show",
        "selection=buckets selection=buckets_high selection=buckets_mid",
        "selected.json",
    ]


@pytest.mark.parametrize(
    ("shell", "script"),
    [("fish", '{}; for line in "lpsel s" "lpsel train selection=bucket"; complete -C $line; end'),
     ("zsh", "{}; print -l $_comps[lpsel]")],  # which calls bash's; it completes on a terminal only
)  # fmt: skip
def test_completion_in_other_shells_after_the_documented_line(shell, script, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    guide = (ROOT / "docs" / "guides" / "terminal.md").read_text()
    install = re.search(rf"```{shell}\n(.*)\n```", guide)[1].replace("&& compinit", "&& compinit -u")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path),
    }
    done = subprocess.run([shell, "-c", script.format(install)], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
    assert (
        done.stdout.split()
        == {
            "fish": ["select", "show", "selection=buckets", "selection=buckets_high", "selection=buckets_mid"],
            "zsh": ["_bash_complete", "-o", "nospace", "-o", "default", "-F", "hydra_bash_completion"],
        }[shell]
    )


def test_lightning_does_not_log_about_itself_in_commands_with_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path))
    library = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # "GPU available: False", a tip, ...
    library.setLevel(logging.INFO)
    cli.run_flag_command("cache", [])
    assert not library.isEnabledFor(logging.INFO)


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


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--pct=5"], "use pct=5"),
        (["-scorer", "tiny"], "use scorer=tiny"),
        (["selection=lp", "--pct", "dataset=x"], "use pct=VALUE"),
        (["--compile"], "use compile=VALUE"),
        (["--dry-run=true"], "use dry_run=true"),
        (["pct", "10"], "use pct=10"),
        (["dataset", "=", "rows.jsonl"], "use dataset=rows.jsonl"),
        (["dataset", "=rows.jsonl"], "use dataset=rows.jsonl"),
        (["pct=5", "dry_run"], "use dry_run=VALUE"),
        (["rows.jsonl", "pct=5"], "use dataset=rows.jsonl"),
        (["runs/a", "runs/b"], "use model=runs/a"),
    ],
)
def test_a_habit_is_answered_with_the_option(arguments, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()
    Path("runs/a").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        check_arguments(arguments)
    assert error.value.hint == meant


@pytest.mark.parametrize("name", ["--api_key", "api_key"])
def test_a_key_after_a_name_without_an_equals_sign_is_not_repeated(name):
    with pytest.raises(UserError, match="a key on the command line") as error:
        check_arguments([name, "canary"])
    assert "canary" not in str(error.value)


def test_hydras_own_flags_pass():
    check_arguments(["--multirun", "-m", "--cfg", "job", "--help", "--config-dir=x", "-cn", "y", "~tracker"])


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("judge.request={extra_headers:{api-key:abc}}", "api-key"),
        ("judge.request={extra_headers:{X-Api-Key: abc}}", "X-Api-Key"),
        ("judge.request={extra_headers:{Cookie: session}}", "Cookie"),
        ("judge.request={extra_headers:{X-Auth: abc}}", "X-Auth"),
        ("judge.request={extra_headers:{Ocp-Apim-Subscription-Key: abc}}", "Ocp-Apim-Subscription-Key"),
        ("judge.request={extra_query:{key:abc}}", "key"),
        ("judge.request={extra_body:{secret_key:abc}}", "secret_key"),
        ("+openai_api_key=abc", "openai_api_key"),
        ("tracker.group=sk-proj-aB3_dE-0123456789abcdef", "sk-"),
        ("judge.request={extra_headers:{access_token: abc}}", "access_token"),
        ("+judge.request.extra_headers.X=eyJhbGciOiJIUzI1NiJ9.e30.abc", "eyJ"),
        ("tracker.group=pplx-0123456789abcdefghij", "pplx-"),
        ("tracker.group=nvapi-0123456789abcdefghij", "nvapi-"),
        ("prompts=hf_abcdefghijklmnopqrstuvwxyz", "hf_"),
        ("judge.base_url=https://host/v1?user=abc", "https://host"),
        ("prompts=https://host/p.jsonl?sv=2024&sig=abc", "https://host"),
        ("dataset.path=s3://bucket/rows.jsonl?X-Amz-Signature=abc", "s3://bucket"),
        ("judge.base_url=https://user:p,w@host/v1", "https://...@host"),
        ("model=[a@http://x:1,b@http://user:pw@y/v1]", "http://...@y"),
    ],
)
def test_secrets_on_the_command_line_are_rejected_before_anything_is_written(argument, name):
    with pytest.raises(UserError) as caught:
        check_arguments(["pct=5", argument])
    assert caught.value.name == name
    assert "would be written to the run folder" in caught.value.problem
    assert not {"abc", "sig", "p,w", "aB3"} & set(re.split(r"\W+", str(caught.value)))


@pytest.mark.parametrize(
    "argument",
    [
        "judge.key_env=MY_KEY",
        "judge.request={extra_headers:{api-key:${oc.env:MY_KEY}}}",
        "judge.request={extra_headers:{Authorization:Bearer ${oc.env:MY_KEY}}}",
        "evaluator.max_new_tokens=12",
        "selection.min_response_tokens=4",
        "model=[a@http://x:8000,b@http://y:8000]",
        "model=gpt@http://127.0.0.1:9/v1",
        "prompts=https://host/p.jsonl",
        "dataset.path=hf://datasets/org/name@refs/convert/parquet/train.parquet",
        "hydra.run.dir=runs/sk-learn-experiment",
        "scorer.path=xai-org/grok-1",
    ],
)
def test_what_only_resembles_a_secret_is_accepted(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_arguments([argument])


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Ends a sweep of an experiment with outcomes of two jobs, one of them finished; returns what is concluded."""

    def end(folder, **config):
        (tmp_path / folder).mkdir()
        for number, state in enumerate(("already finished", "planned")):
            outcome = sweep.Outcome(number, str(tmp_path / f"job-{number}"), state)
            (tmp_path / folder / f"{number}.json").write_text(json.dumps(asdict(outcome)))
        concluded = []
        monkeypatch.setattr(sweep, "sweep_dir", lambda: tmp_path)
        monkeypatch.setattr(sweep, "print_outcomes", lambda *_: None)
        monkeypatch.setattr(experiment, "conclude", lambda _, folder, runs: concluded.extend(runs) or folder)
        assert cli._end_sweep(OmegaConf.create({"experiment": {"name": "e"}, **config})) == 0
        return concluded

    return end


def test_a_dry_run_of_a_partly_finished_experiment_evaluates_nothing(ended, tmp_path, capsys):
    assert ended(".plans", dry_run=True) == []
    assert capsys.readouterr().out == f"{tmp_path}\n"
    assert ended(".jobs") == [tmp_path / "job-0"]
