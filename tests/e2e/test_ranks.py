"""Commands on several ranks: started by srun, with an error on the main rank only, and as SLURM jobs."""

import atexit
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel import cli, command_line, distributed
from lpsel.cli import run as run_command
from lpsel.commands.job import run
from lpsel.errors import UserError
from tests.fixtures.processes import torchrun


def srun(rank, world, port):
    """The environment variables that srun sets in a job with one task per node."""
    return {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": str(world),
        "SLURM_NTASKS": str(world), "SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_NUM_TASKS": str(world),
        "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0", "MASTER_PORT": port,
    }  # fmt: skip


def from_command_line(command, *overrides):
    command_line.SECONDS_FOR_MAIN_PROCESS = 0.1
    sys.argv = [command]
    run_command(command, list(overrides))


def given(model, data, cache):
    return [
        f"model.path={model}", f"scorer.path={model}", f"dataset.path={data}", "cluster=none", "pct=30", "tracker=csv",
        "scorer.recipe.global_batch=8", "model.recipe.epochs=1", f"cache_dir={cache}",
    ]  # fmt: skip


FSDP = ["trainer=fsdp", "trainer.accelerator=cpu"]


@pytest.mark.distributed
def test_ranks_that_srun_starts_score_select_and_train_together(tmp_path, toy_model, instructions, as_ranks):
    common = given(toy_model, instructions(rows=11), tmp_path / "cache")
    nodes = [*FSDP, "trainer.num_nodes=2", "trainer.devices=1", f"hydra.run.dir={tmp_path}/run"]
    as_ranks(2, from_command_line, "train", *common, *nodes, environment=srun)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["training"]["world_size"] == 2
    tracked = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert sum(row["target/tokens_per_second"] != "" for row in tracked) == result["training"]["steps"]
    assert (tmp_path / "out0").read_text().splitlines()[-1] == f"{tmp_path}/run"
    assert str(tmp_path) not in (tmp_path / "out1").read_text()
    one = run("select", ["scorer=local", "dataset=local", "trainer=cpu", *common[1:-2], f"cache_dir={tmp_path}/one"],
              tmp_path / "select")  # fmt: skip
    assert Path(result["subset"]).read_text() == Path(one["subset"]).read_text()
    several, alone = (pq.read_table(r["scores"])["nll_1"].to_numpy() for r in (result, one))
    np.testing.assert_allclose(several, alone, rtol=1e-5)


@pytest.mark.distributed
def test_an_error_that_only_the_main_rank_detects_ends_all_with_one_line(tmp_path, toy_model, instructions, as_ranks):
    cut = tmp_path / "cut"
    shutil.copytree(toy_model, cut)
    os.truncate(cut / "model.safetensors", 500)
    common = given(cut, instructions(rows=11), tmp_path / "cache")
    overrides = [*common, *FSDP, "trainer.devices=2", "selection=full", f"hydra.run.dir={tmp_path}/run"]
    assert as_ranks(2, from_command_line, "train", *overrides, may_fail=True) == [2, 2]
    lines = [
        line
        for rank in range(2)
        for line in (tmp_path / f"err{rank}").read_text().splitlines()
        if line.startswith("lpsel train:")
    ]
    assert len(lines) == 1
    assert lines[0].startswith(f"lpsel train: {cut}: cannot be loaded as a causal language model (")
    assert "Traceback" not in (tmp_path / "err0").read_text() + (tmp_path / "err1").read_text()


def train_and_kill_rank_1(*overrides):
    from lpsel.model.lightning_module import FineTuner

    step = FineTuner.training_step

    def killed(self, batch, i):
        if self.trainer.global_rank == 1 and i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, i)

    FineTuner.training_step = killed
    from_command_line("train", *overrides)


def the_line(tmp_path, rank):
    errors = (tmp_path / f"err{rank}").read_text()
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("lpsel"))
    return line


@pytest.mark.distributed
@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_others_with_one_line(tmp_path, toy_model, instructions, as_ranks, trainer):
    common = given(toy_model, instructions(rows=24), tmp_path / "cache")
    devices = [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2", "selection=full"]
    run_dir = f"hydra.run.dir={tmp_path}/run"
    small = "model.recipe.global_batch=4"
    started = time.monotonic()
    statuses = as_ranks(2, train_and_kill_rank_1, *common, *devices, small, run_dir, may_fail=True)
    assert statuses == [1, -signal.SIGKILL]  # rank 0 ended by itself
    assert time.monotonic() - started < 120, "docs/explanation/parallel.md: within seconds, here with loading"
    line = the_line(tmp_path, 0)
    assert line.startswith("lpsel train: another rank has ended or does not respond (")
    assert line.endswith("run the same command again to resume")


def fail_on_rank_0(error, *overrides):
    from lpsel.model.lightning_module import FineTuner

    step = FineTuner.training_step

    def failing(self, batch, i):
        if self.trainer.global_rank == 0 and i == 1:
            raise {"user": UserError("disk", "full", "no space"), "other": ValueError("a bug")}[error]
        return step(self, batch, i)

    FineTuner.training_step = failing
    atexit.register(print, "exit handlers")  # NCCL's waits for ranks that have not failed
    try:
        from_command_line("train", *overrides)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing does not call them


@pytest.mark.distributed
@pytest.mark.parametrize(("error", "status"), [("user", 2), pytest.param("other", 1, marks=pytest.mark.slow)])
def test_a_rank_with_an_error_does_not_wait_for_the_others(tmp_path, toy_model, instructions, as_ranks, error, status):
    common = given(toy_model, instructions(rows=24), tmp_path / "cache")
    devices = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "selection=full"]
    options = [*common, *devices, "model.recipe.global_batch=4", f"hydra.run.dir={tmp_path}/run"]
    assert as_ranks(2, fail_on_rank_0, error, *options, may_fail=True) == [status, 1]
    line = "lpsel train: disk=full: no space" if error == "user" else "ValueError: a bug"
    assert line in (tmp_path / "err0").read_text()
    assert "exit handlers" not in (tmp_path / "out0").read_text()


def test_a_rank_that_lightning_started_ends_soon_after_the_main_process():
    rank = (
        "import time; from lpsel import distributed; distributed.GRACE_SECONDS = 0.1; "
        "distributed.end_with_main_process(); print('started', flush=True); time.sleep(600)"
    )
    main = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    quiet = {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "LOCAL_RANK": "1"}
    with subprocess.Popen([sys.executable, "-c", main], stdout=subprocess.PIPE, env=os.environ | quiet) as process:
        assert process.stdout.readline() == b"started\n"
        process.kill()
        assert process.stdout.read() == b"", "until the rank ends"


def evaluate_and_kill_rank_1(*overrides):
    from lpsel.evaluation import held_out

    measure = held_out.reference_nll

    def killed(*arguments):
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(*arguments)

    held_out.reference_nll = killed
    from_command_line("evaluate", *overrides)


@pytest.mark.distributed
def test_ranks_evaluate_alone_and_do_not_wait_for_one_that_is_killed(tmp_path, toy_model, instructions, as_ranks):
    given = [f"models={toy_model}", f"dataset.path={instructions(rows=6)}", "evaluator.max_new_tokens=0", "trainer=cpu",
             "evaluator.resamples=10", "tracker=none", f"cache_dir={tmp_path}/cache"]  # fmt: skip
    run_dir = f"hydra.run.dir={tmp_path}/run"
    assert as_ranks(2, evaluate_and_kill_rank_1, *given, run_dir, may_fail=True) == [0, -signal.SIGKILL]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n"] == 6


def agree_while_rank_0_waits(seconds, beat):
    distributed.HEARTBEAT_SECONDS = beat
    distributed.HEARTBEAT_TIMEOUT = distributed.BROADCAST_TIMEOUT = 3.0

    def decide():
        time.sleep(seconds)
        return "found"

    with cli._errors_end_command("train"):
        Path(f"folder{distributed.rank()}").write_text(distributed.temporary_folder("lpsel-rank-"))
        print(distributed.agree(decide))


@pytest.mark.distributed
def test_ranks_wait_for_rank_0_as_long_as_it_shows_that_it_is_alive(tmp_path, as_ranks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_ranks(2, agree_while_rank_0_waits, 6, 0.5)
    assert [(tmp_path / f"out{rank}").read_text() for rank in range(2)] == ["found\n"] * 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_0_that_is_lost_ends_the_others_with_one_line(tmp_path, as_ranks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_ranks(2, agree_while_rank_0_waits, 8, 60, may_fail=True) == [1, 1]
    assert the_line(tmp_path, 1) == (
        "lpsel train: rank 0 has not responded for 3 s; run the same command again to resume"
    )
    assert not Path((tmp_path / "folder1").read_text()).exists()


def test_the_temporary_run_folder_of_a_rank_is_deleted(tmp_path, monkeypatch):
    for name, value in torchrun(1, 2, "1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = []

    def spied(prefix):
        made.append(distributed.temporary_folder(prefix))
        assert Path(made[0]).parent == tmp_path
        return made[0]

    monkeypatch.setattr("lpsel.overrides.temporary_folder", spied)
    with pytest.raises(SystemExit):
        from_command_line("select", "selection=none-of-them")
    assert (len(made), list(tmp_path.iterdir())) == (1, [])


@pytest.mark.parametrize("invalid", ["trainer.strategy.cpu_offload=true", "trainer.num_nodes=2"])
def test_what_cannot_run_is_reported_before_other_ranks_start(tmp_path, toy_model, instructions, invalid):
    overrides = given(toy_model, instructions(rows=4), tmp_path / "cache")
    overrides += ["model=local", "scorer=local", "dataset=local", *FSDP, "trainer.devices=2", "selection=full"]
    with pytest.raises(UserError) as caught:
        run("train", [*overrides, invalid], tmp_path / "run")
    assert f"{caught.value.name}={caught.value.value}" == invalid


@pytest.mark.distributed
def test_ranks_and_trainer_must_agree_on_their_number(tmp_path, toy_model, instructions, as_ranks):
    overrides = [*given(toy_model, instructions(rows=4), tmp_path / "cache"), *FSDP, "trainer.devices=3"]
    assert as_ranks(2, from_command_line, "train", *overrides, "selection=full", may_fail=True) == [2, 2]
    last = (tmp_path / "err0").read_text().splitlines()[-1]
    assert last.startswith("lpsel train: trainer.num_nodes=1 trainer.devices=3: 2 ranks were started.")
    assert "lpsel train:" not in (tmp_path / "err1").read_text()


SUBMITTED = """
import sys
import submitit
from submitit.slurm.slurm import SlurmExecutor
from lpsel.cli import run

written, *given = sys.argv[1:]

def show(executor, *_):
    open(written, "w").write(executor._executor._make_submission_file_text("COMMAND", "id"))
    raise KeyboardInterrupt

SlurmExecutor.affinity = classmethod(lambda cls: 1)
submitit.AutoExecutor.map_array = show
run("train", given)
"""


def test_a_sweep_becomes_an_array_of_jobs_of_the_trainers_size(tmp_path):
    sweep = ["-m", "hydra/launcher=slurm", "trainer=fsdp", "trainer.num_nodes=4", "trainer.devices=8", "model=opt-13b",
             "pct=5,10", "hydra.launcher.partition=big", f"hydra.sweep.dir={tmp_path}/sweep"]  # fmt: skip
    written = tmp_path / "sbatch"
    subprocess.run([sys.executable, "-c", SUBMITTED, written, *sweep], capture_output=True, timeout=120)
    lines = written.read_text().splitlines()
    wanted = {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=big", "--job-name=train"}
    assert {f"#SBATCH {option}" for option in wanted} <= set(lines)
    command = next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert lines[command].endswith("COMMAND")
    assert "export SLURM_KILL_BAD_EXIT=1" in lines[:command]


@pytest.mark.slow
def test_a_job_that_submitit_starts_runs_the_command(tmp_path, toy_model, instructions):
    """Its local executor replaces SLURM: the job is a process that reads its function from a file."""
    ours = [
        o for o in given(toy_model, instructions(rows=10), tmp_path / "cache") if not o.startswith(("model", "pct"))
    ]
    sweep = ["-m", "hydra/launcher=submitit_local", "selection=random", "pct=30,50", f"hydra.sweep.dir={tmp_path}/jobs"]
    command = [sys.executable, "-m", "lpsel", "select", *sweep, *ours]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    results = [json.loads(file.read_text()) for file in tmp_path.glob("jobs/*/result.json")]
    assert sorted(result["n_selected"] for result in results) == [3, 5]
