"""What SECURITY.md promises, on whole runs: keys, pickles, foreign code, names, permissions."""

import gzip
import json
import lzma
import os
import pickle
import shlex
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "tests" / "unit" / "judging" / "misbehaving_server.py"
CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "WANDB_API_KEY": "canarybbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "OPENAI_API_KEY": "sk-canaryCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC",
    "MY_SERVER": "plain-canaryDDDDDDDDDDDDDDDDDDDDDDDDDDDD",
}


sys.path.insert(0, str(ROOT / "tests" / "e2e" / "wrong_input"))


@pytest.fixture
def lpsel(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder, with more in the environment."""
    from in_process import run

    def here(*arguments, cwd=tmp_path, **environment):
        with monkeypatch.context() as inside:
            inside.chdir(cwd)
            inside.setenv("CUDA_VISIBLE_DEVICES", "")
            inside.setenv("WANDB_MODE", "offline")
            inside.setenv("LPSEL_CACHE", str(cwd / "cache"))
            for name, value in environment.items():
                inside.setenv(name, value)
            return run(shlex.join(map(str, arguments)), capsys)

    return here


@pytest.fixture
def process(as_process, tmp_path):
    """The same as a process of its own, for what only the end of a process shows: a traceback."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline", "LPSEL_DEBUG": "1", "LPSEL_CACHE": "cache"}
    return partial(as_process, cwd=tmp_path, **quiet)


@pytest.fixture
def small_run(toy_model, instructions, tmp_path):
    """Overrides of a train run of seconds, and its run folder."""
    rows = instructions(rows=24)
    given = [
        f"dataset.path={rows}", "dataset.license=mit", "cluster=none", "pct=50", "trainer=cpu",
        f"scorer.path={toy_model}", f"model.path={toy_model}", "model.recipe.epochs=1", "scorer.recipe.epochs=1",
    ]  # fmt: skip
    return given, tmp_path / "runs" / "a"


@pytest.fixture
def serve(tmp_path):
    """The judging tests' server with options: its address."""
    started = []

    def start(*options):
        command = [sys.executable, str(SERVER), str(tmp_path / f"server{len(started)}.log"), *options]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return f"http://127.0.0.1:{int(started[-1].stdout.readline())}/v1"

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def texts_of(path):
    """What is in a file, as it is, unpacked, and as the values of a Parquet table."""
    content = path.read_bytes()
    yield content
    if path.suffix == ".parquet":
        yield json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
    for unpack in (gzip.decompress, lzma.decompress):
        try:
            yield unpack(content)
        except (OSError, EOFError, lzma.LZMAError):
            continue


def found_canaries(folder, *printed):
    printed_text = [b"".join(text.encode() for text in printed)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    return [
        (name, str(path))
        for name, canary in CANARIES.items()
        for path, texts in [("printed", printed_text), *((path, texts_of(path)) for path in files)]
        if any(canary.encode() in text for text in texts)
    ]


def test_keys_in_the_environment_are_neither_written_nor_printed(lpsel, process, small_run, serve, tmp_path, toy_model):
    """The servers here send every request's Authorization header back in what they say of it."""
    given, run = small_run
    # At such a rate the model answers unlike the baseline, so that the judge is asked.
    done = lpsel("train", *given, "model.recipe.learning_rate=.1", f"hydra.run.dir={run}", **CANARIES)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"instruction": f"Say {n}."}) + "\n" for n in range(3)))
    pairwise = [
        "evaluate", "evaluator=pairwise", f"baseline={toy_model}", "prompts=prompts.jsonl",
        "evaluator.max_new_tokens=4", "key_env=OPENAI_API_KEY",
    ]  # fmt: skip
    with_key = [*pairwise, f"model={run}", "judge.key_env=OPENAI_API_KEY"]
    refusing = serve("--only", "400")
    good = lpsel(*with_key, f"judge.base_url={serve()}", f"hydra.run.dir={run}-b", **CANARIES)
    wrong_key = lpsel(
        *with_key, f"judge.base_url={serve('--only', '401')}", f"hydra.run.dir={run}-c",
        "judge.request={temperature: 1}", **CANARIES,
    )  # fmt: skip
    refused = lpsel(*pairwise, f"model=m@{refusing}", "judge=human", f"hydra.run.dir={run}-d", **CANARIES)
    by_name = lpsel(
        *pairwise, f"model={run}", f"judge.base_url={refusing}", "judge.key_env=MY_SERVER", f"hydra.run.dir={run}-e",
        "judge.max_retries=0", "judge.request={temperature: 1}", "evaluator.max_new_tokens=5", **CANARIES,
    )  # fmt: skip
    traced = process(*pairwise, f"model=m@{refusing}", "judge=human", f"hydra.run.dir={run}-f", **CANARIES)
    report = lpsel("report", "runs", "--out", "report", **CANARIES)
    publish = lpsel("publish", run, **CANARIES)
    assert [end.status for end in (done, good, report, publish)] == [None] * 4
    assert json.loads((tmp_path / "runs/a-b/result.json").read_text())["judging"]["asked"] > 0
    assert [end.status for end in (wrong_key, refused, by_name)] == [2] * 3
    assert "status 400 for Bearer ***" in refused.err
    assert "Traceback" in traced.stderr
    assert "status 400 for Bearer ***" in traced.stderr
    ended = (done, good, wrong_key, refused, by_name, report, publish)
    said = [text for end in ended for text in (end.out, end.err)]
    assert found_canaries(tmp_path, *said, traced.stdout, traced.stderr) == []


HEADER = "+judge.request.extra_headers={x-api-key:${oc.env:MY_SERVER}}"


def test_keys_in_headers_and_in_sweeps_are_neither_written_nor_printed(process, small_run, serve, tmp_path, toy_model):
    """A key that was read from a mounted file ends in a line feed, which HTTP headers cannot hold."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"instruction": "Say 1."}) + "\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "Say 1.", "output": "1"}) + "\n")
    shutil.copytree(toy_model, tmp_path / "other")
    weights = load_file(toy_model / "model.safetensors")
    save_file(
        {name: -tensor for name, tensor in weights.items()}, tmp_path / "other" / "model.safetensors", {"format": "pt"}
    )
    canaries = CANARIES | {"OPENAI_API_KEY": CANARIES["OPENAI_API_KEY"] + "\n"}
    pairwise = [
        "evaluate", "evaluator=pairwise", f"baseline={toy_model}", "model=other", "prompts=prompts.jsonl",
        "evaluator.max_new_tokens=4", "judge.max_retries=0", "judge.key_env=OPENAI_API_KEY",
    ]  # fmt: skip
    swept = process(
        pairwise[0], "-m", *pairwise[1:], f"judge.base_url={serve('--only', '400')}", "tracker=none",
        HEADER, "judge.request.temperature=0,1", f"hydra.sweep.dir={tmp_path}/sweep", **canaries,
    )  # fmt: skip
    assert swept.returncode == 2, swept.stderr
    assert "status 400 for Bearer ***" in swept.stdout
    judged = process(
        *pairwise, f"judge.base_url={serve()}", HEADER, f"hydra.run.dir={tmp_path}/run",
        **canaries,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["judging"]["asked"] > 0
    shown = process("show", tmp_path / "run", **canaries)
    printed = [text for end in (swept, judged, shown) for text in (end.stdout, end.stderr)]
    assert found_canaries(tmp_path, *printed) == []


def test_the_search_for_keys_finds_them(tmp_path):
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text("nothing")
    (tmp_path / "a.gz").write_bytes(gzip.compress(f"key {CANARIES['HF_TOKEN']}".encode()))
    assert found_canaries(tmp_path, f"x {CANARIES['MY_SERVER']}") == [
        ("HF_TOKEN", str(tmp_path / "a.gz")), ("MY_SERVER", "printed"),
    ]  # fmt: skip


@pytest.mark.parametrize("umask", [0o027])
def test_permissions_follow_umask(umask, lpsel, small_run, tmp_path):
    given, run = small_run
    before = os.umask(umask)
    try:
        done = lpsel("train", *given, f"hydra.run.dir={run}", "tracker=csv")
    finally:
        os.umask(before)
    assert done.status is None, done.err
    made = [run, *run.rglob("*"), *(tmp_path / "cache").rglob("*")]
    assert len(made) > 20
    wrong = {
        str(path.relative_to(tmp_path)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in made
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}


@pytest.mark.parametrize("evil", ["../../outside/x", "/tmp/lpsel-outside/x", "x" * 400])
def test_names_never_lead_out_of_the_run_and_cache_folders(evil, lpsel, small_run, toy_model, tmp_path):
    given, _ = small_run
    inside = tmp_path / "deep" / "deeper"
    inside.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if inside not in path.parents}
    outside = Path("/tmp/lpsel-outside")
    named = [f"dataset.name={evil}", f"scorer.name={evil}", f"model.name={evil}"]
    trained = lpsel("train", *given, *named, f"hydra.run.dir={inside}/run", "tracker=none", cwd=inside)
    assert trained.status in (None, 2), trained.err
    (inside / "prompts.jsonl").write_text(json.dumps({"id": evil, "instruction": "Say a."}) + "\n")
    compared = lpsel(
        "evaluate", "evaluator=pairwise", f"model=[{toy_model},{inside}/run]", f"baseline={toy_model}", "judge=human",
        "prompts=prompts.jsonl", "evaluator.max_new_tokens=4", f"hydra.run.dir={inside}/pairs", "tracker=none",
        cwd=inside,
    )  # fmt: skip
    assert compared.status in (None, 2), compared.err
    assert {path for path in tmp_path.rglob("*") if inside not in path.parents} == before
    assert not outside.exists()


class RunsOnLoading:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_weights_are_read_on_request_and_never_executed(lpsel, toy_model, instructions, tmp_path):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(toy_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(toy_model / "model.safetensors"), folder / "pytorch_model.bin")
    scoring = [
        "select", f"dataset.path={instructions()}", "cluster=none", f"scorer.path={folder}", "tracker=none",
        "scorer.recipe.epochs=1", f"hydra.run.dir={tmp_path}/run", "trainer=cpu",
    ]  # fmt: skip
    asked = lpsel(*scoring, "scorer.bin_weights=true")
    assert asked.status is None, asked.err
    assert json.loads((tmp_path / "run/result.json").read_text())["scorer"]["bin_weights"] is True

    marker = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(RunsOnLoading(marker)))
    for more in ([], ["scorer.bin_weights=true"]):
        done = lpsel(*scoring, *more)
        assert done.status == 2, done.err
        assert done.err.splitlines()[-1].startswith("lpsel select: ")
        assert not marker.exists()
    pickle.loads(pickle.dumps(RunsOnLoading(marker)))
    assert marker.exists(), "the trap works"


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()

class Own(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = Own
"""


def test_remote_code_runs_only_on_request_and_the_manifest_records_it(lpsel, toy_model, instructions, tmp_path):
    folder, marker = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(toy_model, folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "own"}))
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    scoring = [
        "select", f"dataset.path={instructions()}", "cluster=none", f"scorer.path={folder}", "tracker=none",
        "scorer.recipe.epochs=1", "trainer=cpu",
    ]  # fmt: skip
    done = lpsel(*scoring, f"hydra.run.dir={tmp_path}/refused")
    assert done.status == 2
    assert "trust_remote_code=true if you trust" in done.err
    assert not marker.exists()
    done = lpsel(*scoring, "scorer.trust_remote_code=true", f"hydra.run.dir={tmp_path}/run")
    assert done.status is None, done.err
    assert marker.exists()
    [manifest] = (tmp_path / "cache/scores").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["trust_remote_code"] is True
    assert json.loads((tmp_path / "run/result.json").read_text())["scorer"]["trust_remote_code"] is True
