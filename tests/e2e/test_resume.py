"""A command that is interrupted at any moment resumes and gives the same numbers, with few steps repeated."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from lpsel.commands.job import run
from lpsel.distributed import Interrupted, signals_interrupt
from lpsel.errors import UserError
from lpsel.model.lightning_module import FineTuner
from lpsel.storage import read_json
from lpsel.training import resume
from lpsel.training.checkpoint import Checkpoints

ROWS, STEPS, EPOCHS = 40, 5, 2  # rows, optimizer steps per epoch, epochs of the scorer
BATCHES = 9  # of a recording pass


class Cut(BaseException):
    """Stands in for a kill: nothing catches it."""


@pytest.fixture
def cut(monkeypatch):
    """Allows a number of calls of a method of FineTuner and interrupts the next one; None allows all.

    Returns the number of calls so far, over all attempts.
    """
    calls = {"training_step": 0, "validation_step": 0}
    left = {}

    def counting(name):
        whole = getattr(FineTuner, name)

        def step(self, batch, i):
            if not getattr(batch, "micro_batches", True):
                return whole(self, batch, i)
            if left.get(name) == 0:
                raise Cut
            calls[name] += 1
            left[name] = left.get(name, -1) - 1
            return whole(self, batch, i)

        return step

    for name in calls:
        monkeypatch.setattr(FineTuner, name, counting(name))

    def at(name=None, after=0):
        left.clear()
        if name:
            left[name] = after
        return calls

    return at


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    made = [{"instruction": f"Count to {i % 7}.", "output": f"{list(range(1 + i % 7))} #{i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def whole(toy_model, rows, tmp_path_factory):
    """The result of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return run("select", arguments(toy_model, rows, folder / "cache"), folder / "run")


def cut_off(command, given, run_dir, cut, *moment):
    cut(*moment)
    with pytest.raises(Cut):
        run(command, given, run_dir)
    cut()


def arguments(model, data, cache, *overrides):
    return [
        "scorer=local", f"scorer.path={model}", "dataset=local", f"dataset.path={data}", "trainer=cpu", "tracker=none",
        "scorer.recipe.learning_rate=1e-3", "scorer.recipe.global_batch=8", f"scorer.recipe.epochs={EPOCHS}",
        "scorer.max_length=256", "score_tokens=300", "selection=lp", f"selection.epochs={EPOCHS}", "pct=20",
        "cluster=none", "checkpoint_steps=2", f"cache_dir={cache}", *overrides,
    ]  # fmt: skip


def losses(result):
    table = pq.read_table(result["scores"])
    return np.array([table[name].to_numpy() for name in table.column_names if name.startswith("nll_")])


MOMENTS = {
    "before training": ("validation_step", 5),
    "at the first step": ("training_step", 0),
    "in the first epoch": ("training_step", 3),
    "after the first epoch": ("validation_step", BATCHES + 5),
    "in the second epoch": ("training_step", 8),
    "after the second epoch": ("validation_step", 2 * BATCHES + 5),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_scores_are_bit_identical_wherever_the_run_was_interrupted(tmp_path, toy_model, rows, whole, cut, moment):
    again = arguments(toy_model, rows, tmp_path / "cut")
    calls = cut(*MOMENTS[moment])
    with pytest.raises(Cut):
        run("select", again, tmp_path / "b")
    cut()
    resumed = run("select", again, tmp_path / "c")
    np.testing.assert_array_equal(losses(resumed), losses(whole))
    assert Path(resumed["subset"]).read_bytes() == Path(whole["subset"]).read_bytes()
    assert resumed["scoring"]["tokens"] == whole["scoring"]["tokens"]
    assert calls["training_step"] <= STEPS * EPOCHS + 1  # checkpoint_steps=2: one of them twice
    assert not list((tmp_path / "cut" / "scores").rglob("epoch*")), "no parts are left"


def test_a_resumed_run_logs_only_steps_that_it_makes(tmp_path, toy_model, rows, cut):
    given = arguments(toy_model, rows, tmp_path / "cache", "tracker=csv")
    cut_off("select", given, tmp_path / "run", cut, "training_step", STEPS + 3)
    run("select", given, tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("scorer/tokens_per_second")]
    assert [int(row["step"]) for row in logged] == [*range(STEPS * EPOCHS)]
    assert all(float(row["scorer/tokens_per_second"]) > 0 for row in logged)
    assert all(float(row["scorer/nll"]) > 0 for row in logged)


def test_an_epoch_that_was_stopped_is_stopped_there_again(tmp_path, toy_model, rows, cut):
    stable = ["scorer.stop=stable", "scorer.stop_rows=20", "scorer.stop_bound=.05", "scorer.recipe.global_batch=3"]
    alone = run("select", arguments(toy_model, rows, tmp_path / "whole", *stable), tmp_path / "a")
    calls = cut()
    again = arguments(toy_model, rows, tmp_path / "cut", *stable, "checkpoint_steps=1")
    known = json.loads((Path(alone["scores"]).parent / "manifest.json").read_text())["checked_epochs"]
    assert known[0]["stopped"] < known[0]["steps"]
    cut_off(
        "select", again, tmp_path / "b", cut, "training_step", known[0]["stopped"] + 1
    )  # between checks of the second
    resumed = run("select", again, tmp_path / "c")
    np.testing.assert_array_equal(losses(resumed), losses(alone))
    manifest = json.loads((Path(resumed["scores"]).parent / "manifest.json").read_text())
    assert manifest["checked_epochs"] == known
    assert calls["training_step"] == 2 * sum(epoch["stopped"] or epoch["steps"] for epoch in known)


def test_columns_of_passes_before_training_resume(tmp_path, toy_model, rows, cut):
    columns = ["selection=ifd", "selection.columns=[nll_0_noprompt]"]

    def asked(cache):
        return [
            o for o in arguments(toy_model, rows, cache, *columns) if o not in ("selection=lp", "selection.epochs=2")
        ]

    alone = run("select", asked(tmp_path / "whole"), tmp_path / "a")
    calls = cut("validation_step")
    batches = 0
    for after in (1, 2, 100):
        cut("validation_step", after)
        try:
            resumed = run("select", asked(tmp_path / "cut"), tmp_path / "c")
        except Cut:
            batches = calls["validation_step"]
    assert batches
    for name in ("nll_0", "nll_0_noprompt"):
        ours, theirs = (pq.read_table(result["scores"])[name].to_numpy() for result in (resumed, alone))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("how", ["optimizer=adamw8bit", "adapter=lora", "optimizer=adamw"])
def test_a_target_gets_the_same_weights(tmp_path, toy_model, rows, cut, how):
    def asked(cache):
        given = ["model=local", f"model.path={toy_model}", "model.recipe.learning_rate=1e-3", "model.recipe.epochs=2",
                 "model.recipe.global_batch=8", "model.max_length=256", "selection=full", how]  # fmt: skip
        return [*given, "dataset=local", f"dataset.path={rows}", "trainer=cpu", "tracker=none", "checkpoint_steps=3",
                f"cache_dir={cache}"]  # fmt: skip

    alone = run("train", asked(tmp_path / "whole"), tmp_path / "a")
    cut_off("train", asked(tmp_path / "cut"), tmp_path / "b", cut, "training_step", 8)
    calls = dict(cut())
    resumed = run("train", asked(tmp_path / "cut"), tmp_path / "c")
    assert cut()["training_step"] - calls["training_step"] == 2 * STEPS - 6
    ours, theirs = (load_file(Path(result["model"]) / "model.safetensors") for result in (resumed, alone))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    for name in ("steps", "tokens", "flops", "last_step_nll"):
        assert resumed["training"][name] == alone["training"][name]
    assert not list((tmp_path / "cut" / "trained").rglob("step-*"))


def select_and_kill_rank_1(given, run_dir):
    step = FineTuner.training_step

    def killed(self, batch, i):
        if batch.micro_batches and self.trainer.current_epoch == 1 and i == 3 and self.trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, i)

    FineTuner.training_step = killed
    run("select", given, run_dir)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp trainer.strategy.replicate=2"])
def test_one_of_two_ranks_is_killed_and_one_or_more_resume(tmp_path, toy_model, rows, whole, as_ranks, strategy):
    def given(cache, world):
        more = [*f"trainer={strategy}".split(), "trainer.accelerator=cpu", f"trainer.devices={world}"]
        return [o for o in arguments(toy_model, rows, cache) if o != "trainer=cpu"] + more

    # The other rank ends by itself: killed after a timeout, it would have another status.
    cut = given(tmp_path / "cut", 2)
    assert as_ranks(2, select_and_kill_rank_1, cut, tmp_path / "run2", may_fail=True) == [1, -signal.SIGKILL]
    shutil.copytree(tmp_path / "cut", tmp_path / "more")
    state = json.loads(sorted((tmp_path / "cut").rglob("state.json"))[-1].read_text())
    assert (state["epoch"], state["epoch_step"]) == (1, 2)
    one = run("select", arguments(toy_model, rows, tmp_path / "cut"), tmp_path / "run1")
    np.testing.assert_allclose(losses(one), losses(whole), rtol=1e-5)
    several = 4 if "replicate" in strategy else 3
    as_ranks(several, run, "select", given(tmp_path / "more", several), tmp_path / "run3")
    more = json.loads((tmp_path / "run3" / "result.json").read_text())
    np.testing.assert_allclose(losses(more), losses(whole), rtol=1e-5)


@pytest.mark.parametrize(
    ("damaged", "repeated"), [(["rank00000.safetensors"], 5), (["state.json", "rank00000.json"], 10)]
)
def test_a_damaged_checkpoint_is_not_used(tmp_path, toy_model, rows, whole, cut, caplog, damaged, repeated):
    given = arguments(toy_model, rows, tmp_path / "cut")
    cut_off("select", given, tmp_path / "b", cut, "training_step", 8)
    checkpoints = sorted((tmp_path / "cut").rglob("step-*"), reverse=True)
    assert [path.name for path in checkpoints] == ["step-00000007", "step-00000005"]
    for folder, name in zip(checkpoints, damaged, strict=False):
        content = (folder / name).read_bytes()
        at = content.index(b"1", len(content) // 2)
        (folder / name).write_bytes(content[:at] + b"3" + content[at + 1 :])
    calls = dict(cut())
    resumed = run("select", given, tmp_path / "c")
    for name in damaged:
        assert re.search(rf"is damaged \(\S+/{name}: ", caplog.text)
    assert cut()["training_step"] - calls["training_step"] == repeated
    np.testing.assert_array_equal(losses(resumed), losses(whole))


def test_a_damaged_part_is_recorded_again(tmp_path, toy_model, rows, whole, cut, caplog):
    given = arguments(toy_model, rows, tmp_path / "cut")
    cut_off("select", given, tmp_path / "b", cut, "training_step", 1)
    (part,) = (tmp_path / "cut").rglob("epoch000-*.parquet")
    content = bytearray(part.read_bytes())
    content[60] ^= 1
    part.write_bytes(content)
    resumed = run("select", given, tmp_path / "c")
    assert f"Records {part} are damaged" in caplog.text
    np.testing.assert_array_equal(losses(resumed), losses(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize(("name", "after"), [("training_step", 3), ("validation_step", BATCHES + 3)])
def test_a_signal_ends_training_where_nothing_has_to_be_repeated(
    tmp_path, toy_model, rows, whole, cut, monkeypatch, number, name, after
):
    if name == "validation_step" and number != signal.SIGTERM:
        pytest.skip("the passes do not depend on the signal")
    calls, step = cut(), getattr(FineTuner, name)

    def signaled(self, batch, i):
        if calls[name] == after:
            os.kill(os.getpid(), number)
        return step(self, batch, i)

    monkeypatch.setattr(FineTuner, name, signaled)
    given = arguments(toy_model, rows, tmp_path / "cut")
    before = signal.signal(number, signal.SIG_DFL)  # nohup, and a shell for jobs in the background, ignore some signals
    try:
        with pytest.raises(Interrupted) as caught, signals_interrupt():
            run("select", given, tmp_path / "b")
    finally:
        signal.signal(number, before)
    assert caught.value.status == 128 + number
    saved = "saved after step 4 of epoch 1" if name == "training_step" else "the losses recorded so far are saved"
    assert f"; {saved}; run the same command again to resume" in str(caught.value)
    resumed = run("select", given, tmp_path / "c")
    np.testing.assert_array_equal(losses(resumed), losses(whole))
    assert calls == {"training_step": STEPS * EPOCHS, "validation_step": BATCHES * (EPOCHS + 1)}


def select_on_a_full_disk(given, run_dir):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # a checkpoint is larger, parts are smaller
    with pytest.raises(UserError, match=r"the checkpoint cannot be written \("):
        run("select", given, run_dir)


@pytest.mark.distributed
def test_a_full_disk_ends_with_one_line_and_the_command_resumes_when_there_is_space(
    tmp_path, toy_model, rows, whole, as_ranks
):
    given = arguments(toy_model, rows, tmp_path / "cut")
    as_ranks(1, select_on_a_full_disk, given, tmp_path / "b")
    assert list((tmp_path / "cut").rglob("epoch000-*.parquet"))
    assert not list((tmp_path / "cut").rglob("step-*"))
    resumed = run("select", given, tmp_path / "c")
    np.testing.assert_array_equal(losses(resumed), losses(whole))


def test_the_size_of_the_first_checkpoint_determines_when_it_is_written(tmp_path, toy_model, rows, monkeypatch):
    written, save = {}, Checkpoints.save

    def saved(self, step, *state):
        save(self, step, *state)
        described = read_json(self.folder / f"step-{step:08d}" / "rank00000.json")
        written[step] = {name.partition(" ")[0] for name in described["tensors"]}

    monkeypatch.setattr(Checkpoints, "save", saved)
    monkeypatch.setattr(resume, "BYTES_PER_SECOND", 1e4)  # minutes for the embedded model
    given = ["scorer.recipe.global_batch=1", "selection=lp_app", "checkpoint_steps=auto"]
    run("select", [o for o in arguments(toy_model, rows, tmp_path, *given) if "epochs=2" not in o], tmp_path / "run")
    assert written == {ROWS: {"weight"}}, "none within the epoch; after the last one, no step needs moments"


def test_by_default_the_first_checkpoint_determines_the_interval(tmp_path, toy_model, rows, monkeypatch, caplog):
    caplog.set_level("INFO")
    made, save = [], Checkpoints.save

    def slow(self, step, *state):
        made.append(step)
        time.sleep(0.5)
        save(self, step, *state)

    monkeypatch.setattr(Checkpoints, "save", slow)
    given = ["scorer.recipe.global_batch=1", "selection=lp_app", "checkpoint_steps=auto"]
    run("select", [o for o in arguments(toy_model, rows, tmp_path, *given) if "epochs=2" not in o], tmp_path / "run")
    assert made == [10, ROWS]  # 25 seconds of training are due after the first, but the epoch ends before
    assert re.search(r"a checkpoint takes 0\.\d s; saving one every \d+ steps in ", caplog.text)
