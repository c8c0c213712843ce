"""Models and data that every stage's tests use: random models of a few thousand weights, real ones where they are."""

import json
import multiprocessing
import os
import pty
import shutil
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import absl.logging
import pytest

# rouge-score brings absl, whose handler closes what was standard error at its import, pytest's capture, where Hydra
# sets logging up anew.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Tests run side by side: threads of one that wait for a core make the other wait as well.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the real data sets, beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there: the real data sets are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def real_models():
    """The folder with smollm2-135m, gemma3-270m and all-minilm-l6-v2."""
    folder = os.environ.get("LPSEL_TEST_MODELS")
    if not folder:
        pytest.skip("LPSEL_TEST_MODELS does not name a folder with the real models")
    return Path(folder)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """A random Llama with a byte tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy") / "toy-llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=256,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def instructions(tmp_path):
    """Write rows of instruction data of several lengths; returns the file's path."""

    def write(rows=24, name="rows.jsonl", order=None):
        made = [
            {
                "instruction": f"Count to {i % 7}.",
                "input": "",
                "output": " ".join(map(str, range(1 + i % 7))) + f" #{i}",
            }
            for i in range(rows)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(made[i]) + "\n" for i in (order if order is not None else range(rows))))
        return path

    return write


def any_free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


@pytest.fixture
def free_port():
    return any_free_port


def torchrun(rank, world, port):
    """What torchrun tells a process."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


@pytest.fixture
def as_ranks(tmp_path):
    """Run `work()` in several forked processes, which have imported all that the tests have, as ranks of one job.

    Returns their exit statuses, which are 0 unless the test says `may_fail`.
    """

    def start(world, work, environment=torchrun, may_fail=False):
        port = any_free_port()
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=one_rank, args=(work, environment(rank, world, port), tmp_path / f"rank{rank}.txt"))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            if process.is_alive():
                process.kill()
        said = [path.read_text() for path in sorted(tmp_path.glob("rank*.txt"))]
        ended = [process.exitcode for process in ranks]
        assert may_fail or ended == [0] * world, "\n".join(said)
        return ended

    return start


def one_rank(work, environment, complaint):
    os.environ |= environment
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        complaint.write_text(traceback.format_exc())
    finally:
        os._exit(status)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Bytes, EOS and BOS; no padding token and no chat template. BOS is added in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(["<eos>", "<bos>", "<turn>"])
    bytes_only.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(scope="session")
def random_models():
    """Architecture -> a model whose weights are spread so far that no two tokens are nearly tied."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "opt": {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "do_layer_norm_before": False,
        },
        "gemma3_text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    }
    made = {}
    for kind, size in sizes.items():
        position = "n_positions" if kind == "gpt2" else "max_position_embeddings"
        config = AutoConfig.for_model(
            kind, vocab_size=259, bos_token_id=257, eos_token_id=256, pad_token_id=None, **{position: 64}, **size
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.6)
        made[kind.removesuffix("_text")] = model
    return made


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. Of one file of tests: while it runs, its event loop is in the way of asyncio.run."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=executable, args=["--no-sandbox", *quiet])
        yield chromium
        chromium.close()


@pytest.fixture
def page_in_chromium(browser):
    """Opens an HTML file in a new profile. The page must log no error, throw none, and ask for nothing but the file."""
    contexts, complaints = [], []

    def watch(page, url):
        page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.split("#")[0] != url and complaints.append(asked.url))

    def open_file(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("page", lambda page: watch(page, path.as_uri()))
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def few_runs(toy_model, tmp_path_factory):
    """A folder of real runs: trained on all rows and on two buckets by two scorers, one cut off; their evaluation."""
    from lpsel.commands.job import run

    folder = tmp_path_factory.mktemp("few")
    rows = [{"instruction": f"Count to {i % 7}.", "output": " ".join(map(str, range(1 + i % 7)))} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(toy_model, folder / "other-scorer")
    shared = ["dataset=local", f"dataset.path={folder}/rows.jsonl", "trainer=cpu", "tracker=none",
              f"cache_dir={folder}/cache"]  # fmt: skip
    target = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1", "model.recipe.learning_rate=1e-3"]
    trained = folder / "runs" / "train"
    run("train", [*shared, *target, "selection=full"], trained / "full")
    for scorer, rate in ((toy_model, 1e-3), (folder / "other-scorer", 1e-2)):
        for bucket in ("low", "high"):
            choice = ["scorer=local", f"scorer.path={scorer}", f"scorer.recipe.learning_rate={rate}", "cluster=none",
                      "pct=25", f"selection.bucket={bucket}"]  # fmt: skip
            run("train", [*shared, *target, *choice], trained / f"{scorer.name}-{bucket}")
    models = ",".join(str(made) for made in sorted(trained.glob("*-*")))
    asked = [f"models=[{models}]", f"baseline={trained}/full", "evaluator.max_new_tokens=2", "dataset.limit=8"]
    run("evaluate", [*shared, *asked], folder / "runs" / "evaluate" / "held-out")
    (trained / "cut-off").mkdir()
    (trained / "cut-off" / "run_config.json").write_text("{}")
    return folder / "runs"


@pytest.fixture(scope="session")
def on_a_terminal():
    """Runs Python on a terminal of 80 columns, a real one of the operating system, and returns what it writes there."""

    def run(*command, **environment):
        """The output of Python with these arguments."""
        ours, theirs = pty.openpty()
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS")}
        environment = inherited | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
        process = subprocess.Popen(
            [sys.executable, *command], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
        )
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # how Linux says that the other side has closed it
                break
            if not part:
                break
            written += part
        os.close(ours)
        assert process.wait(60) == 0, written.decode()
        return written

    return run
