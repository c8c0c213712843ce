"""A dataset larger than the memory limit of the process is scored and selected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
ROWS, ROW_BYTES = 2_000, MIB // 4
ALLOWED = 192 * MIB  # beyond what the libraries take; the rows are 500 MiB
LIBRARIES = """
import lightning, sklearn, transformers.models.llama.modeling_llama, transformers.optimization
import lpsel.training.trainer, lpsel.scoring.scorer, lpsel.scoring.columns
"""
LIMIT = """
import resource, sys
from pathlib import Path
from lpsel.data.dataset import DatasetSpec, Source
taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
limit = int(taken.split()[1]) * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
"""
SELECT = LIBRARIES + LIMIT + "from lpsel.cli import run; run('select', sys.argv[2:])"
EVALUATE = """
import resource, sys
from lpsel.commands.job import run
from pathlib import Path
result = run("evaluate", sys.argv[3:], Path(sys.argv[2]))
print(result["n"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""
HOLD_ALL = LIMIT + "list(Source(DatasetSpec('rows', path=sys.argv[2])).raw_rows())"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with a document each, as 500 MiB of JSON lines."""
    path = tmp_path_factory.mktemp("large") / "rows.jsonl"
    with path.open("w") as file:
        for i in range(ROWS):
            document = f"page {i} " * (ROW_BYTES // len(f"page {i} "))
            row = {"instruction": f"Count to {i % 7}.", "output": f"{i % 7} #{i}", "document": document}
            file.write(json.dumps(row) + "\n")
    assert path.stat().st_size > 2.5 * ALLOWED
    return path


def run(script, *arguments, cwd, timeout=250):
    quiet = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "0"}
    quiet["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # mimalloc reserves more than it uses, and the limit counts it
    place = {"PYTHONPATH": str(ROOT), "LPSEL_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-c", script, str(ALLOWED), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | quiet | place, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux alone")
def test_rows_beyond_the_memory_are_scored_and_selected(rows, toy_model, tmp_path):
    done = run(
        SELECT, f"dataset.path={rows}", f"scorer.path={toy_model}", "scorer.recipe.epochs=1", "scorer.max_length=32",
        "scorer.template=plain", "selection=lp_app", "pct=10", "cluster=none", "trainer=cpu", "tracker=none",
        "score_tokens=2048", "train_tokens=1024", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = pq.read_table(tmp_path / "run/selection.parquet")
    assert len(table) == ROWS
    assert sum(table["selected"].to_pylist()) == ROWS // 10
    subset = (tmp_path / "run/subset.jsonl").stat().st_size
    assert subset > ROWS // 10 * ROW_BYTES * 0.99


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux alone")
def test_the_limit_stops_a_process_that_holds_all_rows(rows, tmp_path):
    held = run(HOLD_ALL, rows, cwd=tmp_path)
    assert held.returncode != 0
    assert "MemoryError" in held.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_memory_of_an_evaluation_does_not_grow_with_the_rows(toy_model, tmp_path):
    """Five times the rows, whose references of 8 KiB would take 62 MiB more."""
    peaks = {}
    for rows in (2_000, 10_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for i in range(rows):
                row = {"instruction": f"Count to {i}.", "output": f"page {i} " * (8192 // len(f"page {i} "))}
                file.write(json.dumps(row) + "\n")
        done = run(
            EVALUATE, tmp_path / f"run{rows}", f"models={toy_model}", "dataset=local", f"dataset.path={path}",
            "evaluator.max_new_tokens=1", "evaluator.resamples=100", "template=plain", "max_length=32",
            "tracker=none", f"cache_dir={tmp_path}/cache", cwd=tmp_path, timeout=700,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        n, peaks[rows] = map(int, done.stdout.split()[-2:])
        assert n == rows
    assert peaks[10_000] < peaks[2_000] + 32
