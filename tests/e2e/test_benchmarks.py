"""Every benchmark runs in its smallest form and writes finite ratios."""

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"released recipe's loop"}
LM_EVAL = {"lm-eval, batch size 4"} if find_spec("lm_eval") else set()


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Run a benchmark's smallest form; returns what its JSON holds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("LPSEL_TEST_MODELS", raising=False)
    # As in a script's process: first in line, the checkout's evaluate.py would hide the package of that name.
    others = [folder for folder in sys.path if folder not in ("", str(ROOT))]
    monkeypatch.setattr(sys, "path", [*others, str(ROOT)])

    def run(name, *options):
        written = importlib.import_module(name).main(["--tiny", "--rounds", "1", "--out", str(tmp_path), *options])
        return json.loads(written.read_text())

    return run


def finite(ratio):
    return all(math.isfinite(ratio[part]) and ratio[part] > 0 for part in ("median", "min", "max"))


@pytest.mark.slow
def test_cpu(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.import_module("material"), "ALPACA", tmp_path / "none")
    figures = benchmark("cpu", "--rows=8", "--lm-eval-rows=8", "--steps=1")
    assert figures["data"] == "embedded synthetic rows"
    scored, trained = figures["comparisons"][:2], figures["comparisons"][-2:]
    assert [sorted(each["contestants"]) for each in trained] == [["lpsel", "transformers Trainer"]] * 2
    others = {f"{name}, 32-true" for name in RECIPE}
    assert [each["contestants"].keys() for each in scored] == [{"lpsel"} | RECIPE, {"lpsel"} | RECIPE | others]
    assert [each["contestants"].keys() for each in figures["comparisons"][2:-2]] == [{"lpsel"} | LM_EVAL] * 2 * len(
        LM_EVAL
    )
    for comparison in figures["comparisons"]:
        for contestant in comparison["contestants"].values():
            assert finite(contestant["ratio"])
            assert contestant["peak_bytes_above_weights"] >= 0
            assert contestant["rounds"][0]["tokens"] == comparison["contestants"]["lpsel"]["rounds"][0]["tokens"]
            if comparison["precision"] == "32-true":
                assert contestant["largest_difference_nats"] < 1e-3
    assert 0 <= figures["recording"]["percent_beyond_forward_passes"]["median"] < 100


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    """Run stages in their smallest form on the CPU; what the JSON holds of each, and the exit status."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def run(*stages):
        options = ["--device=cpu", "--tiny", "--rounds=1", "--rows=8", "--steps=1", f"--out={tmp_path}", "--stages"]
        path, status = importlib.import_module("gpu_check").main([*options, *stages])
        return json.loads(path.read_text())["stages"], status

    return run


def test_the_check_for_a_gpu_compares_with_float32_and_profiles(gpu_check):
    stages, status = gpu_check("attention", "losses", "profile", "checkpoint")
    assert status == 0
    assert [stage["failed"] for stage in stages.values()] == [[]] * 4
    attention, losses, profile, checkpoint = (stage["figures"] for stage in stages.values())
    assert len(attention["cases"]) == 2 * 2 * 2 * 4  # heads, windows, dtypes, packs
    assert {model["32-true"]["nll"] < 1e-5 for model in losses.values()} == {True}
    assert 0 < losses["tiny Llama"]["bf16-mixed"]["gradient"] < 0.05
    assert [profile[part]["profiled"] for part in ("training", "recording")] == [3, pytest.approx(4, abs=3)]
    assert 0 < profile["training"]["device_busy_percent"] <= 100
    assert checkpoint["bytes"] > 3 * 4 * 32 * 512  # of the embeddings: weights and two moments


@pytest.mark.slow
def test_the_check_for_a_gpu_projects_alpaca_from_measured_rates(gpu_check):
    stages, status = gpu_check("rates", "projection")
    assert status == 0
    measured = stages["rates"]["figures"]["tiny OPT"]
    assert measured["scoring"]["contestants"].keys() == {"lpsel"} | RECIPE
    assert measured["training"]["contestants"].keys() == {"lpsel", "transformers Trainer"}
    assert all(finite(each["ratio"]) for part in measured.values() for each in part["contestants"].values())
    projected = stages["projection"]["figures"]["tiny OPT"]
    assert 52_002 * 60 < projected["tokens"] < 52_002 * 200


def test_a_stage_that_fails_leaves_the_others_and_is_reported(gpu_check, monkeypatch, capsys):
    import device_checks

    def broken(*_):
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(device_checks, "losses_and_gradients", broken)
    monkeypatch.setitem(device_checks.ROUNDING, device_checks.torch.bfloat16, 1e-9)
    stages, status = gpu_check("losses", "attention")
    assert status == 1
    assert stages["losses"]["failed"] == ["losses: RuntimeError: CUDA error: no kernel image is available"]
    assert stages["losses"]["traceback"][-1] == "RuntimeError: CUDA error: no kernel image is available"
    assert len(stages["attention"]["failed"]) == 16  # bfloat16 rounds to 8 bits; float32 agrees
    assert "failed: attention of tiny, 64, an empty pack, torch.bfloat16: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_contestant_that_fails_leaves_the_rates_of_lpsel_and_is_reported(gpu_check, monkeypatch):
    import gpu_check as script

    def without_memory(*_):
        raise RuntimeError("CUDA out of memory")

    made = script.trainers
    monkeypatch.setattr(script, "trainers", lambda *a, **k: made(*a, **k) | {script.TRAINER: without_memory})
    stages, status = gpu_check("rates", "projection")
    assert status == 1
    (failed,) = stages["rates"]["failed"]
    assert failed.startswith("Training, 1 steps of 4 rows, tiny OPT, with others: ")
    assert "CUDA out of memory" in failed
    assert stages["rates"]["figures"]["tiny OPT"]["training"]["contestants"].keys() == {"lpsel"}
    projected = stages["projection"]["figures"]["tiny OPT"]
    assert projected["lpsel"] > 0
    assert "others" not in projected


def test_no_rates_are_projected_where_there_are_none(gpu_check):
    stages, status = gpu_check("projection")
    assert (status, stages["projection"]["failed"]) == (1, ["projection: there are no rates"])


def test_a_checkpoint_that_restores_nothing_is_reported(gpu_check, monkeypatch):
    import device_checks

    monkeypatch.setattr(device_checks.Checkpoints, "load", lambda *_: None)
    stages, status = gpu_check("checkpoint")
    assert status == 1
    assert re.match(r"checkpoint: \d+ weights differ after reading it, ", stages["checkpoint"]["failed"][0])


def test_figures_that_are_not_numbers_are_written_as_null(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    harness = importlib.import_module("harness")
    figures = {"error": math.nan, "rounds": np.array([1, math.inf])}
    written = harness.write(tmp_path, "check", argparse.Namespace(), "cpu", figures)
    assert json.loads(written.read_text()).items() >= {"error": None, "rounds": [1, None]}.items()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("fpu avx512_bf16 amx_bf16 amx_tile", "amx_bf16 and avx512_bf16"),
        ("fpu avx2", "no bfloat16 instructions"),
    ],
)
def test_a_benchmark_names_the_cpu_and_its_bfloat16_instructions(monkeypatch, flags, named):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness.Path, "read_text", lambda _: f"model name\t: A CPU\nflags\t\t: {flags}\n")
    assert harness._describe("cpu") == f"A CPU, {os.cpu_count()} cores, {named}"


def test_a_missing_path(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("cpu", "--model=no/such/folder")
    assert "--model: no/such/folder: not there; give another, or leave it out." in capsys.readouterr().err


def test_the_check_for_a_gpu_without_one(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^--device=cuda: this machine has no CUDA device; set --device cpu --tiny"):
        importlib.import_module("gpu_check").main([])


@pytest.mark.slow
def test_memory(benchmark):
    figures = benchmark("memory")
    assert [row["score_tokens"] for row in figures["comparisons"]] == [512, 1024]
    assert all(math.isfinite(row["ratio"]) and row["peak_bytes"] > 0 for row in figures["comparisons"])


@pytest.mark.slow
def test_a_killed_benchmark_leaves_no_process_behind(tmp_path):
    (tmp_path / "endless.py").write_text(
        "import os, pathlib, time\n"
        "def contestant(path, on_ready):\n"
        "    pathlib.Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "start.py").write_text(
        "import harness, endless\n"
        "if __name__ == '__main__':\n"
        f"    harness.peak_above_weights('cpu', endless.contestant, {str(tmp_path / 'pid')!r})\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "benchmarks")])
    parent = subprocess.Popen([sys.executable, str(tmp_path / "start.py")], env=os.environ | {"PYTHONPATH": path})
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 200)
    child = Path("/proc") / (tmp_path / "pid").read_text()
    assert child.is_dir()
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.is_dir(), 20)


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@pytest.mark.slow
def test_commands(benchmark):
    figures = benchmark("commands")
    assert [row["command"].split()[0] for row in figures["comparisons"]] == ["select.py", "train.py"]
    assert all(finite(row["ratio"]) for row in figures["comparisons"])


@pytest.mark.slow
def test_busy(benchmark):
    figures = benchmark("busy", "--busy=2")
    assert {name: each["threads"] for name, each in figures["shares"].items()} == dict.fromkeys(
        ["lpsel", "spinning threads", "sleeping threads", "one thread"], 1
    )
    assert all(finite(each["share"]) for each in figures["shares"].values())
    assert all(run["tokens"] == figures["runs"]["lpsel, alone"][0]["tokens"] for [run] in figures["runs"].values())


@pytest.mark.parametrize(("threads", "busy", "cores", "fair"), [(2, 1, 2, 2 / 3), (1, 1, 2, 1), (8, 4, 4, 2 / 3)])
def test_the_fair_share_next_to_busy_processes(monkeypatch, threads, busy, cores, fair):
    """Two threads and a busy process on two cores: each gets two thirds of a core, instead of one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert importlib.import_module("busy").fair_share(threads, busy, cores) == pytest.approx(fair)


@pytest.mark.slow
def test_whole_run(benchmark):
    figures = benchmark("whole_run", "--old", str(ROOT))
    assert {side: len(runs) for side, runs in figures["runs"].items()} == {"old": 1, "new": 1}
    assert all(finite(ratio) for ratio in figures["ratio"].values())
    assert 0 < figures["state_bytes"] < figures["runs"]["new"][0]["peak_bytes"]


@pytest.mark.parametrize(
    ("options", "alternative"),
    [
        (["rds", "--examples=20", "--dimensions=4"], "sorting all similarities takes "),
        (["s2l"], "MiniBatchKMeans of all trajectories takes "),
    ],
)
def test_rules(monkeypatch, capsys, options, alternative):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    importlib.import_module("rules").main([*options, "--rows=2000"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"2,000 rows: {options[0]} selects 200 in ")
    assert printed[1].startswith(alternative)


def test_disagreeing_contestants_are_not_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import numpy as np
    from harness import check_agreement, in_words, interleave, ratios

    assert check_agreement(np.array([1.0, 2.0]), np.array([1.0, 2.0005]), "other") == pytest.approx(5e-4)
    for wrong in (2.002, math.nan):
        with pytest.raises(SystemExit, match="other: differs from lpsel by"):
            check_agreement(np.array([1.0, 2.0]), np.array([1.0, wrong]), "other")
    assert in_words(ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])) == "2.00 [1.00, 3.00]"

    order = []
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert order == ["a", "b", "c", "b", "c", "a"]


@pytest.mark.slow
def test_stopping(monkeypatch, toy_model, instructions, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    main = importlib.import_module("stopping").main
    recipe = ["scorer.recipe.learning_rate=1e-3", "scorer.max_length=256", "trainer=cpu", "scorer.stop_bound=.5"]
    given = [str(toy_model), str(instructions(rows=600)), "--rows=600", "--precision=32-true"]
    whole, another, stopped, half, quarter = main([*given, "--also", *recipe])
    assert (whole["spearman"], whole["common"], whole["flops"], whole["unseen"]) == (pytest.approx(1), 1, 1, 0)
    assert (half["rows_trained"], quarter["rows_trained"], another["rows_trained"]) == (300, 150, 600)
    assert stopped["unseen"] == pytest.approx(1 - stopped["rows_trained"] / 600)
    # Two passes cost 1 each, a trained epoch 3.
    assert (half["flops"], quarter["flops"]) == (pytest.approx(3.5 / 5, abs=0.02), pytest.approx(2.75 / 5, abs=0.02))
    assert "| `scorer.train_fraction=.25` | 150 | 0.55 |" in capsys.readouterr().out


def test_stopping_without_its_material(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert importlib.import_module("stopping").main([str(tmp_path / "model"), str(tmp_path / "rows")]) == []
    assert "model is not there: nothing to measure" in capsys.readouterr().out


@pytest.mark.slow
def test_loading(benchmark):
    """A rank of fsdp holds half of the weights, and a tensor at a time, whatever type they are stored in."""
    loads = {(load["stored"], load["strategy"]): load["ranks"] for load in benchmark("loading")["loads"]}
    for stored in ("float32", "bfloat16"):
        whole, half = loads[stored, "ddp"][1], loads[stored, "fsdp"][1]
        assert half["peak"] < 0.75 * whole["peak"]
        assert half["kept"] < 0.75 * whole["kept"]
    first, widened = loads["bfloat16", "fsdp"][0], loads["bfloat16", "ddp"][0]
    assert first["own"] < 0.75 * widened["own"]


@pytest.mark.slow
def test_growth(benchmark):
    figures = benchmark("growth", "--stages", "content ids")
    (stage,) = figures["stages"]
    assert stage["imports"] > 10 * 2**20  # bytes: Python and its libraries
    assert stage["rows"] == [200, 400]
    assert len(stage["bytes"]) == 2
    assert math.isfinite(stage["bytes_a_row"])


def test_figures_of_scores_are_the_same_for_the_same_perplexities(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures = importlib.import_module("score_figures")
    draw = np.random.default_rng(0)
    for dataset in ("alpaca", "dolly"):
        records = {name: np.exp(draw.uniform(0, 3, (4, 60))) for name in (*figures.SMALL, figures.LARGE)}
        np.savez(tmp_path / f"perplexities_{dataset}.npz", **records)
    drawn = []
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        figures.main([str(tmp_path), "--out", str(tmp_path / out)])
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert drawn[0] == drawn[1]
    assert sorted(drawn[0]) == ["score-and-loss.svg", "scorer-transfer.svg"]
    with pytest.raises(SystemExit, match=r"The released perplexities are needed: .*no such file"):
        figures.main([str(tmp_path / "nowhere")])


def test_the_coverage_of_win_rates_on_the_page_is_that_of_the_script():
    from benchmarks import win_rates

    page = (ROOT / "docs" / "results" / "win-rates.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "%" in line]
    exact = {tuple(row[:3]): row[4] for row in rows if len(row) == 5 and row[2] in ("0%", "10%")}
    assert len(exact) == len(win_rates.FEW_AND_MANY) * len(win_rates.HIGH) * len(win_rates.TIES)
    for (prompts, rate, ties), shown in exact.items():
        if int(prompts) < 200:
            covered = win_rates.exact_coverage(int(prompts), float(rate[:-1]) / 100, float(ties[:-1]) / 100)
            assert f"{covered:.1f}" == shown, (prompts, rate, ties)
