"""Processes that are killed at random moments, repeatedly, until the command is done.

Twenty kills, or LPSEL_KILLS (`make soak`: 200). LPSEL_SEED determines the moments.
"""

import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from lpsel import cli
from lpsel import console as progress
from lpsel.storage import read_json

KILLS = int(os.environ.get("LPSEL_KILLS", "20"))
SEED = int(os.environ.get("LPSEL_SEED", "7"))
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(scope="module")
def embedder(toy_model, tmp_path_factory):
    """A random sentence embedder of 16 dimensions."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("embedder")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=260, max_position_embeddings=256, **size)).save_pretrained(folder / "bert")
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert"), max_seq_length=64), Pooling(16)]).save(
        str(folder / "embedder")
    )
    return folder / "embedder"


def commands(toy_model, embedder, data, folder):
    """Select and train, then generate and judge; all files are in the folder."""
    shared = ["trainer=cpu", "tracker=none", f"cache_dir={folder}/cache"]
    train = [
        "model=local", f"model.path={toy_model}", "scorer=local", f"scorer.path={toy_model}", "dataset=local",
        f"dataset.path={data}", "scorer.recipe.learning_rate=1e-3", "scorer.recipe.global_batch=8",
        "scorer.recipe.epochs=2", "selection=lp", "selection.epochs=2", "scorer.max_length=256", "score_tokens=300",
        "cluster=kmeans", "cluster.n_clusters=3", f"cluster.embedder={embedder}", "pct=50", "model.recipe.epochs=2",
        "model.recipe.global_batch=4", "model.recipe.learning_rate=1e-3", "checkpoint_steps=3",
        f"hydra.run.dir={folder}/run",
    ]  # fmt: skip
    evaluate = [
        "evaluator=pairwise", "judge=reference", f"prompts={data}", f"model={folder}/run", f"baseline={toy_model}",
        "evaluator.max_new_tokens=6", "evaluator.resamples=50", f"hydra.run.dir={folder}/judged",
    ]  # fmt: skip
    return [("train", [*train, *shared]), ("evaluate", [*evaluate, *shared])]


@contextmanager
def events(happened):
    """Calls `happened(stage)` before every unit of work and every file that is synced or renamed."""
    import lpsel.clustering.clusters
    import lpsel.clustering.embeddings
    import lpsel.commands.select
    import lpsel.commands.train
    import lpsel.data.tokens
    import lpsel.generation.generate
    import lpsel.judging.judge
    import lpsel.model.export
    import lpsel.training.trainer

    stage = ["between stages"]
    patch = pytest.MonkeyPatch()
    track, sync, replace = progress.track, os.fsync, Path.replace

    @contextmanager
    def tracked(title, total, unit="rows"):
        before, stage[0] = stage[0], title.split(",")[0]
        with track(title, total, unit) as advance:
            happened(stage[0])
            yield lambda *a, **k: (happened(stage[0]), advance(*a, **k))
        stage[0] = before

    def staged(name, function):
        def call(*arguments, **named):
            before, stage[0] = stage[0], name
            happened(name)
            done = function(*arguments, **named)
            stage[0] = before
            return done

        return call

    shown = (
        lpsel.data.tokens,
        lpsel.training.trainer,
        lpsel.judging.judge,
        lpsel.generation.generate,
        lpsel.clustering.embeddings,
    )
    for module in (progress, *shown):
        if hasattr(module, "track"):
            patch.setattr(module, "track", tracked)
    patch.setattr(lpsel.clustering.clusters, "k_means", staged("k-means", lpsel.clustering.clusters.k_means))
    patch.setattr(lpsel.clustering.embeddings, "PART_ROWS", 8)
    patch.setattr(lpsel.commands.select, "write_selection", staged("selecting", lpsel.commands.select.write_selection))
    patch.setattr(lpsel.commands.train, "write_selection", staged("selecting", lpsel.commands.train.write_selection))
    patch.setattr(lpsel.commands.train, "save_model", staged("saving the model", lpsel.commands.train.save_model))
    patch.setattr(os, "fsync", lambda file: (happened(stage[0]), sync(file))[1])
    patch.setattr(Path, "replace", lambda path, target: (happened(stage[0]), replace(path, target))[1])
    yield
    patch.undo()


def one_process(command, arguments, folder, kill, where):
    """A process that runs a command and gets a signal `delay` seconds after the event `at` of a stage."""
    os.setsid()
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    seen = Counter()

    def end():
        time.sleep(kill.delay)
        os.kill(os.getpid(), kill.number)

    def happened(stage):
        seen[stage] += 1
        if kill and stage == kill.stage and seen[stage] == kill.at:
            where.value = stage.encode()[:60]
            threading.Thread(target=end, daemon=True).start()

    status = 1
    sys.argv = [command]
    try:
        with events(happened):
            cli.run(command, arguments)
        status = 0
        (folder / f"{command}.json").write_text(json.dumps(seen))
    except SystemExit as end_of_it:
        status = end_of_it.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Kill(NamedTuple):
    """A signal `delay` seconds after the event `at`, from 1, of a stage."""

    stage: str
    at: int
    number: int
    delay: float


class Killer:
    """Runs commands in forked processes, which have imported everything that this one has."""

    def __init__(self):
        self.context = multiprocessing.get_context("fork")
        self.where = self.context.Array("c", 64)

    def run(self, command, arguments, folder, kill=None):
        """Exit status and the stage in which the signal came."""
        self.where.value = b""
        process = self.context.Process(target=one_process, args=(command, arguments, folder, kill, self.where))
        process.start()
        process.join(180)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"hangs after a signal in: {self.where.value.decode()}")
        return process.exitcode, self.where.value.decode()


def results_of(folder):
    """Everything that must not depend on kills."""
    from safetensors.torch import load_file

    trained, judged = read_json(folder / "run" / "result.json"), read_json(folder / "judged" / "result.json")
    tables = [pq.read_table(trained["scores"]), pq.read_table(trained["selection"])]
    steps = {name: trained["training"][name] for name in ("steps", "tokens", "last_step_nll")}
    answers = [json.loads(line)["output"] for line in sorted((folder / "judged" / "generations").glob("*"))[0].open()]
    verdicts = pq.read_table(judged["judgements"])
    return {
        "scores": [tables[0][name].to_numpy().tolist() for name in ("index", "nll_0", "nll_1", "nll_2")],
        "selected": tables[1]["selected"].to_pylist(),
        "cost": (trained["scoring"]["tokens"], steps),
        "weights": {name: t.numpy().tobytes() for name, t in load_file(folder / "run/model/model.safetensors").items()},
        "answers": answers,
        "verdicts": sorted(zip(*(verdicts[n].to_pylist() for n in ("id", "order", "verdict")), strict=True)),
        "counts": [judged[name] for name in ("n", "wins", "ties", "losses", "failed")],
    }


@pytest.mark.timeout(600 + 10 * KILLS)
def test_a_command_killed_at_random_moments_gives_the_same_result(
    toy_model, embedder, instructions, tmp_path, capsys, monkeypatch
):
    import rouge_score.rouge_scorer  # noqa: F401  what the processes would import, each anew
    import sklearn.cluster  # noqa: F401
    import transformers.trainer_utils  # noqa: F401

    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all memory
    data, moments, killer = instructions(rows=24), random.Random(SEED), Killer()
    whole = tmp_path / "whole"
    whole.mkdir()
    events_of = {}
    for command, given in commands(toy_model, embedder, data, whole):
        status, _ = killer.run(command, given, whole)
        assert status == 0, (whole / "err").read_text()
        events_of[command] = json.loads((whole / f"{command}.json").read_text())
    expected = results_of(whole)

    stages: Counter = Counter()
    rounds = 0
    while stages.total() < KILLS:
        rounds += 1
        folder = tmp_path / f"round{rounds}"
        folder.mkdir()
        for command, given in commands(toy_model, embedder, data, folder):
            status, to_come = None, list(events_of[command])  # in the order in which they begin
            while status != 0:
                kill, number = None, moments.choice(SIGNALS)
                if to_come and stages.total() < KILLS:
                    stage = moments.choice(to_come[:5])
                    at = moments.randint(1, events_of[command][stage])
                    kill = Kill(stage, at, number, moments.uniform(0, 0.01))
                    to_come = to_come[to_come.index(stage) + moments.randint(0, 1) :]  # there again, or later
                status, where = killer.run(command, given, folder, kill)
                if status != 0:
                    assert status in ((-number, 128 + number) if kill else ()), (folder / "err").read_text()
                    if status > 0:
                        last = (folder / "err").read_text().splitlines()[-1]
                        assert last.endswith("; run the same command again to resume"), last
                    stages[where] += 1
        assert results_of(folder) == expected, f"round {rounds}, LPSEL_SEED={SEED}"
        assert not list((folder / "cache").rglob("step-*")), "a checkpoint is left"
    gc.unfreeze()
    with capsys.disabled():
        print(f"\n{stages.total()} kills in {rounds} rounds, by stage: {dict(stages.most_common())}")
