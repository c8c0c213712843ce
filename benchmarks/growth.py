"""Measure how the memory of every stage grows with the number of rows.

    python benchmarks/growth.py                        # 10,000, 100,000 and 1,000,000 rows
    python benchmarks/growth.py --rows 10000 100000

Data are synthetic instructions and answers as JSON lines. Each stage runs in its own process: reading and content ids,
tokenizing, a recording pass of the tiny scorer over 32 tokens per row, embedding with a random BERT, k-means, the whole
command `lpsel select` on scores, training a tiny target on a random tenth of the rows, and evaluating it on all of them
(one answer token each). Numbers are the peak anonymous memory of the process and its children (RssAnon on Linux, which
excludes pages of mapped files such as tokens), sampled 50 times per second, minus the memory of the stage's imports.
The slope is between the last two sizes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import arguments, resident, show, write

ROWS = (10_000, 100_000, 1_000_000)
CLUSTERS = 1_000
TOKENS = 32
TINY = {"layers": 1, "hidden": 32, "heads": 2, "vocabulary": 512, "pretrain_steps": 0, "seed": 0}


def _tiny(group: str) -> list[str]:
    """Return overrides for the smallest possible model as scorer or target."""
    sizes = (f"{group}.tiny.{name}={value}" for name, value in TINY.items())
    return [f"{group}=tiny", f"{group}.template=plain", f"{group}.max_length={TOKENS}", *sizes]


SCORER = _tiny("scorer")
SECONDS_BETWEEN_LOOKS = 0.02


def main(argv: list[str] | None = None) -> Path | None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.stage:
        STAGES[options.stage](options.work)
        return None
    sizes = sorted(options.rows)
    if options.tiny:
        sizes = [200, 400]
    with tempfile.TemporaryDirectory() as folder:
        peaks: dict[str, list[int]] = {name: [] for name in options.stages}
        empty = _write_files(Path(folder) / "few", 64)
        _make_models(empty)
        base = {name: _peak(name, empty) for name in options.stages}
        for rows in sizes:
            work = _write_files(Path(folder) / str(rows), rows)
            for name in options.stages:
                peaks[name].append(max(_peak(name, work) - base[name], 0))
                print(f"{rows:,} rows: {name}, {peaks[name][-1] / 2**20:,.1f} MiB", flush=True)
    figures, table = [], []
    for name, above in peaks.items():
        slope = (above[-1] - above[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else None
        figures.append({"stage": name, "imports": base[name], "rows": sizes, "bytes": above, "bytes_a_row": slope})
        cells = [f"{peak / 2**20:,.0f}" for peak in above]
        table.append([name, f"{base[name] / 2**20:,.0f}", *cells, "" if slope is None else f"{slope:,.0f}"])
    show(
        "Largest anonymous memory above that of 64 rows, MiB",
        ["stage", "64 rows", *(f"{rows:,} rows" for rows in sizes), "bytes a row"],
        table,
    )
    return write(options.out, "growth", options, "cpu", {"stages": figures})


def _make_models(work: Path) -> None:
    """Create the scorer and the embedder, so that no stage includes creating them."""
    from lpsel.toy.model import make_tiny

    make_tiny(**TINY, cache_dir=work.parent / "cache")
    _embedder(work)


def _write_files(work: Path, rows: int) -> Path:
    """Create a folder with rows.jsonl, scores.parquet and an embedder."""
    work.mkdir()
    with (work / "rows.jsonl").open("w") as file:
        for row in range(rows):
            answer = f"It is {row * row}, {row} times."
            file.write(f'{{"instruction": "What is the square of {row}?", "output": "{answer}"}}\n')
    rng = np.random.default_rng(0)
    before = np.abs(rng.normal(2, 0.5, rows))
    columns = {
        "nll_0": before,
        "nll_1": before * rng.uniform(0.5, 1.05, rows),
        "cluster": rng.integers(0, CLUSTERS, rows),
    }
    pq.write_table(pa.table(columns), work / "scores.parquet")
    return work


def _peak(stage: str, work: Path) -> int:
    environment = {
        **os.environ,
        "LPSEL_CACHE": str(work.parent / "cache"),
        "WANDB_MODE": "offline",
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, __file__, "--stage", stage, "--work", str(work)]
    peak = 0
    with (work / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=environment, cwd=work, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous, _family(process.pid))))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        sys.exit(f"{stage} failed: {(work / 'errors').read_text()[-2000:]}")
    return peak


def _family(pid: int) -> list[int]:
    """List a process and its descendants."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(other for child in children for other in _family(child))]


def _anonymous(pid: int) -> int:
    try:
        return resident("RssAnon", pid)
    except OSError:  # it has just ended
        return 0


def _run(command: str, work: Path, name: str, *overrides: str) -> None:
    from lpsel.cli import run

    run(command, [f"dataset.path={work}/rows.jsonl", "tracker=none", f"hydra.run.dir={work}/{name}", *overrides])


def _source(work: Path):
    from lpsel.data.dataset import DatasetSpec, Source

    return Source(DatasetSpec("rows", path=str(work / "rows.jsonl")))


def identify(work: Path) -> None:
    assert _source(work).fingerprint


def tokenize_rows(work: Path) -> None:
    from hydra import compose, initialize_config_dir

    from lpsel.config import build, config_dir
    from lpsel.data.tokens import tokenize
    from lpsel.model.load import load_tokenizer, locate

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        scorer = build(compose("select", overrides=SCORER).scorer)
    cache = work.parent / "cache"
    cache.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(scorer, locate(scorer, cache))
    tokenize(_source(work), tokenizer, scorer.template, scorer.max_length, cache)


def record(work: Path) -> None:
    _run("select", work, "recorded", "cluster=none", "selection=perplexity", "pct=10", *SCORER)


def embed(work: Path) -> None:
    from lpsel.clustering.embeddings import embed as embed_rows

    embed_rows(_source(work), str(_embedder(work)), work.parent / "cache")


def cluster(work: Path) -> None:
    from lpsel.clustering.clusters import KMeans

    KMeans(n_clusters=50, embedder=str(_embedder(work))).assign(_source(work), work.parent / "cache", seed=0)


def select(work: Path) -> None:
    _run("select", work, "selected", "selection=lp_app", "pct=10", f"scores={work}/scores.parquet", *SCORER)


def train(work: Path) -> None:
    settings = ("cluster=none", "selection=random", "pct=10", "model.recipe.epochs=1")
    _run("train", work, "trained", *settings, *_tiny("model"))


def evaluate(work: Path) -> None:
    settings = (f"model={work}/trained", "evaluator.max_new_tokens=1", "evaluator.resamples=100")
    _run("evaluate", work, "evaluated", *settings)


def _embedder(work: Path) -> Path:
    """Create a random BERT with 32 dimensions as a sentence-transformers folder, once."""
    folder = work.parent / "embedder"
    if folder.is_dir():
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    alphabet = ["[PAD]", "[UNK]", *(chr(code) for code in range(33, 127))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(alphabet)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(alphabet), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    bert = folder / "bert"
    BertModel(config).save_pretrained(bert)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(bert)
    body = Transformer(str(bert), max_seq_length=TOKENS)
    SentenceTransformer(modules=[body, Pooling(32)], device="cpu").save(str(folder))
    return folder


STAGES: dict[str, Callable[[Path], None]] = {
    "content ids": identify,
    "tokenizing": tokenize_rows,
    "recording pass": record,
    "embedding": embed,
    "k-means": cluster,
    "select.py on scores": select,
    "training": train,
    "evaluating": evaluate,
}

if __name__ == "__main__":
    main()
