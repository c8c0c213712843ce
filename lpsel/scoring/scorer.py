"""Scores: found in the cache, or made by training the scorer with its per-sample records."""

import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lpsel import __version__
from lpsel.data.dataset import Source
from lpsel.distributed import agree, is_main_process
from lpsel.errors import UserError
from lpsel.model.fingerprint import model_fingerprint
from lpsel.model.load import check_model, load_config, load_tokenizer, locate
from lpsel.model.memory_estimate import recording_pack
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.scoring.columns import RECORDABLE
from lpsel.scoring.store import FORMAT, MANIFEST, SCORES, Parts, find_scores, scores_key, write_scores
from lpsel.storage import file_names, read_json, write_json
from lpsel.training.setup import TrainingSetup

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """A scores folder, and whether this run made it."""

    folder: Path
    reused: bool

    @property
    def table(self) -> Path:
        return self.folder / SCORES

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / MANIFEST).read_text())


def check_scorer(setup: TrainingSetup, scorer: ModelSpec, epochs: int) -> None:
    """Find what is wrong with a scorer before it is loaded.

    Raises:
        UserError: no such model, or more recorded epochs asked for than its recipe has.
    """
    if epochs > scorer.recipe.epochs:
        raise UserError(
            f"scorer.recipe.epochs={scorer.recipe.epochs}: the selection needs {epochs} recorded epochs; raise it, or "
            "choose a rule that needs fewer (selection=lp_app needs 1)."
        )
    _ = setup.device, setup.precision
    check_model(scorer, setup.cache_dir)


def scores_for(
    setup: TrainingSetup, scorer: ScorerSpec, source: Source, epochs: int, columns: Collection[str] = ()
) -> Scores:
    """Scores of `source` with at least `epochs` recorded epochs and `columns`: those in the cache, else new ones.

    With 0 epochs only the pass before training is made, and nothing is trained, so that the scorer's `train_fraction`
    and `stop` change nothing. The recipe's schedule is laid out over its own epochs even where fewer are recorded, so
    that LP_app's one epoch is the first of the very run whose three epochs LP needs. Stopping does not change it.

    Args:
        columns: further columns to record in passes before training, names that `lpsel.scoring.columns` knows.

    Raises:
        UserError: more epochs are asked for than the scorer's recipe has.
    """
    check_scorer(setup, scorer, epochs)
    path = locate(scorer, setup.cache_dir)
    described, key = _described(setup, scorer, path, source, epochs)
    if not epochs and (less := scorer.less_training()):
        log.info("Scorer %s: nothing is trained; scorer.%s left aside", scorer.name, " and scorer.".join(less))
    named = file_names([f"{scorer.name}-{source.spec.name}"])[0]
    folder = setup.cache_dir / "scores" / f"{named}-{key}-e{epochs}"
    folder = folder.with_name("+".join([folder.name, *sorted(columns)]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{key}.lock"))

    def look() -> Path | None:
        if is_main_process():
            lock.acquire()
        return find_scores(setup.cache_dir, key, epochs, columns, described.keys() - {"scorer"})

    try:
        found = agree(look)
        if found:
            log.info("Scores: reused from %s", found / SCORES)
            if is_main_process():  # of a process that was killed when they had just been written
                shutil.rmtree(_unfinished(found), ignore_errors=True)
            return Scores(found, reused=True)
        trained = f"training the scorer for {epochs} of the {scorer.recipe.epochs} epochs of its recipe"
        what = trained if epochs else "the pass before training is enough"
        log.info("Scores: none yet of %s for %s with this recipe; %s", source.spec.name, scorer.name, what)
        _make(setup, scorer, path, source, epochs, sorted(columns), folder, described)
    finally:
        if is_main_process():
            lock.release()
    return Scores(folder, reused=False)


def find(
    setup: TrainingSetup, scorer: ScorerSpec, source: Source, epochs: int, columns: Collection[str] = ()
) -> Path | None:
    """The scores folder that `scores_for` would take from the cache, None where it would make one.

    Raises:
        UserError: the scorer is not there.
    """
    described, key = _described(setup, scorer, locate(scorer, setup.cache_dir), source, epochs)
    return find_scores(setup.cache_dir, key, epochs, columns, described.keys() - {"scorer"})


def _described(
    setup: TrainingSetup, scorer: ScorerSpec, path: str, source: Source, epochs: int
) -> tuple[dict[str, Any], str]:
    """What scores depend on, for their manifest, and a key of it; the scorer's name is in the first alone."""
    described = {
        "format": FORMAT,
        "dataset_fingerprint": source.fingerprint,
        "scorer": scorer.name,
        "scorer_identity": model_fingerprint(path, scorer.revision, setup.cache_dir),
        "template": scorer.template,
        "max_length": scorer.max_length,
        "recipe": asdict(scorer.recipe),
        "optimizer": setup.optimizer,
        "precision": setup.precision,
        **(scorer.less_training() if epochs else {}),
    }
    return described, scores_key({k: v for k, v in described.items() if k != "scorer"})


def _make(
    setup: TrainingSetup,
    scorer: ScorerSpec,
    path: str,
    source: Source,
    epochs: int,
    columns: list[str],
    folder: Path,
    described: dict[str, Any],
) -> None:
    from lpsel.data.datamodule import SubsetDataModule
    from lpsel.data.templates import template_hash
    from lpsel.data.tokens import tokenize, tokenizer_hash
    from lpsel.scoring.early_stopping import StopWhenStable, random_part
    from lpsel.scoring.recorder import NLLRecorder
    from lpsel.training.monitors import LossSpikes, UntrainedTokens, check_vocabulary
    from lpsel.training.trainer import Cost, fit

    tokenizer = load_tokenizer(scorer, path)
    tokens = tokenize(source, tokenizer, scorer.template, scorer.max_length, setup.cache_dir)
    report_tokens(tokens, scorer)
    check_vocabulary(tokens, tokenizer, scorer, path)
    score_tokens = recording_pack(load_config(scorer, path), setup.precision, setup.score_tokens, setup.device.type)

    def recording(fed: Any, mask: Any = None) -> SubsetDataModule:
        return setup.data_module(fed, scorer, mask=mask, record=True, score_tokens=score_tokens)

    supervised = tokens.response_tokens > 0
    if not supervised.any():
        raise UserError(
            f"scorer.max_length={scorer.max_length}: no row of {source.spec.name} keeps a supervised token; raise it."
        )
    data = recording(tokens, random_part(tokens, scorer) if "train_fraction" in described else None)
    steps = data.steps_per_epoch * scorer.recipe.epochs

    parts = Parts(_unfinished(folder))
    further, costs = {}, []
    for column in columns:
        fed = RECORDABLE[column].fed(tokens, tokenizer.bos_token_id)
        own = Parts(parts.folder / column)
        done = own.folder / "cost.json"  # of the pass, once it is done
        further[column] = own.of_epoch(0, len(tokens))
        if done.is_file() and not np.isnan(further[column][fed.response_tokens > 0]).any():
            costs.append(Cost(**read_json(done)))
            continue
        name, recorder = f"Scorer, {column}", [NLLRecorder(own)]
        # The trainer is not kept: the next pass needs its model's memory.
        measuring = partial(setup.fine_tuner, "scorer", scorer, path, steps, measure=RECORDABLE[column].measure)
        costs.append(
            fit(setup, measuring(), recording(fed), epochs=0, title=name, callbacks=recorder, checkpoints=own.folder)[1]
        )
        further[column] = own.of_epoch(0, len(tokens))
        if is_main_process():
            write_json(done, asdict(costs[-1]))
    title, stop = f"Scorer {scorer.name}", None
    if "stop" in described:
        stop = StopWhenStable(title, data, rows=scorer.stop_rows, bound=scorer.stop_bound)
    spikes, untrained = LossSpikes(title), UntrainedTokens(title, tokens, tokenizer)
    hooks = [NLLRecorder(parts), spikes, untrained, *([stop] if stop else [])]
    trainer, cost = fit(
        setup,
        setup.fine_tuner("scorer", scorer, path, steps),
        data,
        epochs=epochs,
        title=title,
        callbacks=hooks,
        checkpoints=parts.folder / "checkpoints",
    )
    if trainer.is_global_zero:
        total = sum(costs, start=cost)
        manifest = described | {
            "dataset": asdict(replace(source.spec, path=_from_anywhere(source.spec.path))),
            "epochs": epochs,
            "columns": columns,
            "rows": len(tokens),
            "rows_truncated": int(tokens.truncated.sum()),
            "rows_without_supervised_token": int((~supervised).sum()),
            "rows_trained": stop.rows_trained if stop else int(data.trained.sum()) if epochs else 0,
            "loss_spikes": spikes.described(),
            "untrained_tokens": untrained.tokens,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "template_hash": template_hash(scorer.template, tokenizer),
            "trust_remote_code": scorer.trust_remote_code,
            "seed": scorer.recipe.seed,
            "world_size": trainer.world_size,
            "versions": versions(),
            "git_commit": git_commit(),
            **({"checked_epochs": [asdict(epoch) for epoch in stop.epochs]} if stop else {}),
            **asdict(total),
            "wall_seconds": total.seconds,
        }
        write_scores(folder, tokens, parts.collect(epochs, len(tokens)), manifest, further)
        parts.remove()
        log.info("Scores: written to %s", folder / SCORES)
    trainer.strategy.barrier("scores written")


def _unfinished(folder: Path) -> Path:
    """Where recorded losses and checkpoints are until a scores folder is whole."""
    return folder.with_name(f"{folder.name}.parts")


def _from_anywhere(path: str | None) -> str | None:
    """The path of a local file in full; a Hub id as it is."""
    file = None if path is None else Path(path).expanduser()
    return str(file.resolve()) if file is not None and file.is_file() else path


def report_tokens(tokens: Any, model: ModelSpec) -> None:
    """Say how many rows lost something to the length limit."""
    cut, empty = int(tokens.truncated.sum()), int((tokens.response_tokens == 0).sum())
    if cut or empty:
        log.info(
            "Tokens: %s of %s rows are cut off at %s tokens for %s; %s keep no supervised token",
            f"{cut:,}",
            f"{len(tokens):,}",
            model.max_length,
            model.name,
            f"{empty:,}",
        )


def versions() -> dict[str, str]:
    names = ("torch", "lightning", "transformers", "numpy", "pyarrow")
    return {"lpsel": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does."""
    here = Path(__file__).resolve().parents[2]
    if not (here / "conf" / "base.yaml").is_file():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
