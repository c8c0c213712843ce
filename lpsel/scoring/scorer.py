"""Score a dataset: reuse cached scores, or train the scorer and record the loss of every row."""

import logging
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback
from numpy.typing import NDArray

from lpsel import __version__
from lpsel.cache import Entry
from lpsel.data.content_ids import listed
from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.dataset import Source
from lpsel.data.paths import absolute
from lpsel.data.templates import template_hash
from lpsel.data.tokens import JoinedTokens, Tokens, tokenize, tokenizer_hash
from lpsel.distributed import agree, is_main_process
from lpsel.errors import UserError
from lpsel.model.device import free_memory, gpu_memory
from lpsel.model.fingerprint import NotOnHub, model_fingerprint
from lpsel.model.load import check_model, load_config, load_tokenizer, locate, with_template
from lpsel.model.memory_estimate import recording_pack
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.scoring.columns import RECORDABLE, WithoutPrompt
from lpsel.scoring.early_stopping import StopWhenStable, random_part
from lpsel.scoring.recorder import NLLRecorder
from lpsel.scoring.store import (
    SCORES,
    Parts,
    Scores,
    find_scores,
    recording_name,
    scores_entry,
    scores_folder,
    write_scores,
)
from lpsel.storage import read_json, write_json
from lpsel.training.monitors import LossSpikes, UntrainedTokens, check_vocabulary
from lpsel.training.setup import TrainingSetup
from lpsel.training.trainer import Cost, fit

log = logging.getLogger(__name__)

PROMPTS = {"alpaca": "Alpaca's prompt", "chat": "the tokenizer's chat template", "plain": "turns as plain text"}
OTHER_SCORERS = (
    "set scorer=FOLDER_OR_HUB_ID or another name in conf/model, scores=FILE to use scores that you have, or "
    "scorer=tiny, a toy to try things out with"
)


def check_scorer(setup: TrainingSetup, scorer: ScorerSpec, epochs: int) -> None:
    """Check a scorer before loading it.

    Raises:
        UserError: the model does not exist, or the selection needs more recorded epochs than its recipe has.
    """
    scorer.check_epochs(epochs)
    _ = setup.device  # raises UserError if the device is not available
    check_available(scorer, setup.cache_dir)


def check_available(scorer: ModelSpec, cache_dir: Path, purpose: str = "") -> None:
    """Raise a UserError, with the scorer's purpose, if it is not available; for a Hub model, it lists alternatives."""
    try:
        check_model(scorer, cache_dir)
    except NotOnHub as error:
        raise UserError(f"scorer {scorer.path}", problem=error.problem + purpose, hint=OTHER_SCORERS) from error


def scores_for(
    setup: TrainingSetup,
    scorer: ScorerSpec,
    source: Source,
    epochs: int,
    columns: Collection[str] = (),
    trained_on: Source | None = None,
) -> Scores:
    """Return scores of `source` with at least `epochs` recorded epochs and `columns`, cached or newly computed.

    With 0 epochs, only the pass before training runs. The learning-rate schedule always covers all epochs of the
    recipe, so that the single epoch of LP_app is the first of the three epochs of LP.

    Args:
        columns: keys of `lpsel.scoring.columns.RECORDABLE`, recorded before training.
        trained_on: rows to train the scorer on instead of those of `source`.

    Raises:
        UserError: more epochs are needed than the scorer's recipe has, or training fails.
    """
    check_scorer(setup, scorer, epochs)
    scorer = with_template(scorer, source, setup.cache_dir)
    path = locate(scorer, setup.cache_dir)
    weights = model_fingerprint(path, scorer.revision, setup.cache_dir)
    entry = scores_entry(setup, scorer, source, epochs, weights, setup.precision(scorer, path), trained_on)
    if not epochs and (unused := scorer.less_training()):
        log.info("Scorer %s: nothing is trained; ignoring scorer.%s", scorer.name, " and scorer.".join(unused))
    with ExitStack() as locks:

        def find() -> Path | None:
            if is_main_process():
                locks.enter_context(entry.locked())
            return find_scores(entry, epochs, columns)

        folder = agree(find)
        if folder is not None:
            scores = Scores(folder, reused=True)
            log.info("Scores: reused from %s", scores.table)
            report_tokens(scorer, scores.manifest())
            if is_main_process():  # remove what a process left that was killed after writing the scores
                shutil.rmtree(entry.folder / folder.name.removeprefix(f"{entry.folder.name}-"), ignore_errors=True)
            return scores
        part = f"{epochs} of the" if epochs < scorer.recipe.epochs else "the"
        training = f"training the scorer for {part} {scorer.recipe.epochs} epochs of its recipe"
        passes = training if epochs else "running the pass before training"
        log.info("Scores: none cached for %s by %s with this recipe; %s", source.spec.name, scorer.name, passes)
        folder = _Scoring(setup, scorer, path, source, trained_on, epochs, sorted(columns), entry).run()
        free_memory()  # of the scorer, which is still on its GPU
        return Scores(folder, reused=False)


@dataclass
class _Scoring:
    """Runs the passes of one scorer over one dataset."""

    setup: TrainingSetup
    scorer: ScorerSpec
    path: str
    source: Source
    trained_on: Source | None
    epochs: int
    columns: list[str]
    entry: Entry

    def __post_init__(self) -> None:
        self.title = f"Scorer {self.scorer.name}"
        self.tokenizer = load_tokenizer(self.scorer, self.path)
        self.tokens = self._tokenized(self.source)
        trained_on = None if self.trained_on is None else self._tokenized(self.trained_on)
        self.joined = None if trained_on is None else JoinedTokens(self.tokens, trained_on)
        if not self.tokens.response_tokens.any():
            problem = f"no row of {self.source.spec.name} keeps a supervised token"
            raise UserError("scorer.max_length", self.scorer.max_length, problem, "raise it")
        config, gpu = load_config(self.scorer, self.path), gpu_memory(self.setup.device)
        precision = self.setup.precision(self.scorer, self.path)
        self.score_tokens = recording_pack(config, precision, self.setup.score_tokens, gpu)
        self.parts = Parts(self.entry.folder / recording_name(self.epochs, self.columns))

    def run(self) -> Path:
        """Record, train and write the scores folder."""
        data = self._training_data()
        steps = data.steps_per_epoch * self.scorer.recipe.epochs
        values, costs = {}, []
        for column in self.columns:
            values[column], cost = self._record(column, steps)
            costs.append(cost)
        spikes, untrained = LossSpikes(self.title), UntrainedTokens(self.title, self.tokens, self.tokenizer)
        callbacks: list[Callback] = [NLLRecorder(self.parts), spikes, untrained]
        stop = None
        if self._shortened_by("stop"):
            stop = StopWhenStable(self.title, data, rows=self.scorer.stop_rows, bound=self.scorer.stop_bound)
            callbacks.append(stop)
        trainer, cost = fit(
            self.setup,
            self.setup.fine_tuner("scorer", self.scorer, self.path, steps),
            data,
            epochs=self.epochs,
            title=self.title,
            callbacks=callbacks,
            checkpoints=self.parts.folder / "checkpoints",
        )
        folder = scores_folder(self.entry, self.epochs, self.columns)
        if trainer.is_global_zero:
            manifest = self._manifest(sum(costs, start=cost)) | {
                "rows_trained": int(data.trained.sum()) if self.epochs else 0,
                "loss_spikes": spikes.described(),
                "untrained_tokens": untrained.tokens,
                "world_size": trainer.world_size,
            }
            if stop is not None:
                manifest["rows_trained"] = stop.rows_trained
                manifest["checked_epochs"] = [asdict(epoch) for epoch in stop.epochs]
            nll_EN = self.parts.collect(self.epochs, len(self.tokens))
            write_scores(folder, self.tokens, nll_EN, manifest, values, self.parts.folder)
            self.parts.remove()
            log.info("Scores: written to %s", folder / SCORES)
        trainer.strategy.barrier("scores written")
        return folder

    def _shortened_by(self, name: str) -> bool:
        """Whether this setting shortens the scorer's training; never with 0 epochs, which train nothing."""
        return name in self.entry.key

    def _tokenized(self, source: Source) -> Tokens:
        return checked_tokens(source, self.tokenizer, self.scorer, self.path, self.setup.cache_dir)

    def _training_data(self) -> SubsetDataModule:
        """Train and record all rows; or train on `train_fraction` of them, or on those of `trained_on` only."""
        if self.joined is None:
            train_N = random_part(self.tokens, self.scorer) if self._shortened_by("train_fraction") else None
            return self._data(self.tokens, train_N)
        trained_on_N = np.arange(len(self.joined)) >= len(self.tokens)
        data = self._data(self.joined, mask=trained_on_N, record=~trained_on_N)
        if not data.steps_per_epoch:
            problem, hint = "no row of query.path keeps a supervised token", "raise it, or add answers to these rows"
            raise UserError("scorer.max_length", self.scorer.max_length, problem, hint)
        return data

    def _data(
        self, tokens: Any, mask: NDArray[np.bool_] | None = None, record: bool | NDArray[np.bool_] = True
    ) -> SubsetDataModule:
        return self.setup.data_module(tokens, self.scorer, mask=mask, record=record, score_tokens=self.score_tokens)

    def _record(self, column: str, steps: int) -> tuple[NDArray[np.float64], Cost]:
        """Record a column unless an earlier process has; return its values, shape (N,), and the cost of its pass."""
        parts = Parts(self.parts.folder / column)
        cost_file = parts.folder / "cost.json"
        recorded, bos = RECORDABLE[column], self.tokenizer.bos_token_id
        tokens: Any = WithoutPrompt(self.tokens, bos) if recorded.without_prompt else self.tokens
        values_N = parts.of_epoch(0, len(tokens))
        if cost_file.is_file() and not np.isnan(values_N[tokens.response_tokens > 0]).any():
            return values_N, Cost(**read_json(cost_file))
        module = self.setup.fine_tuner("scorer", self.scorer, self.path, steps, measure=recorded.measure)
        data, title, callbacks = self._data(tokens), f"Scorer, {column}", [NLLRecorder(parts)]
        _, cost = fit(self.setup, module, data, epochs=0, title=title, callbacks=callbacks, checkpoints=parts.folder)
        if is_main_process():
            write_json(cost_file, asdict(cost))
        return parts.of_epoch(0, len(tokens)), cost

    def _manifest(self, cost: Cost) -> dict[str, Any]:
        scorer, spec = self.scorer, self.source.spec
        return {
            "key": self.entry.key,
            **self.entry.key,
            "scorer": scorer.name,
            "dataset": asdict(replace(spec, path=absolute(spec.path), revision=self.source.commit)),
            "epochs": self.epochs,
            "columns": self.columns,
            **self.tokens.counted(),
            "tokenizer_hash": tokenizer_hash(self.tokenizer),
            "template_hash": template_hash(scorer.template, self.tokenizer),
            "trust_remote_code": scorer.trust_remote_code,
            "seed": scorer.recipe.seed,
            "versions": versions(),
            "git_commit": git_commit(),
            **asdict(cost),
            "wall_seconds": cost.seconds,
        }


def checked_tokens(source: Source, tokenizer: Any, spec: ModelSpec, path: str, cache_dir: Path) -> Tokens:
    """Tokenize rows for a model, log a summary, and check that all tokens are in the model's vocabulary."""
    tokens = tokenize(source, tokenizer, spec.template, spec.max_length, cache_dir)
    report_tokens(spec, tokens.counted())
    check_vocabulary(tokens, tokenizer, spec, path)
    return tokens


def report_tokens(model: ModelSpec, counted: Mapping[str, Any]) -> None:
    """Log a model's prompt format, and how many rows are truncated to its maximum length or unusable.

    Args:
        counted: result of `Tokens.counted`.
    """
    kinds, truncated, rows = counted["rows_unusable"], counted["rows_truncated"], counted["rows"]
    unusable = f"; {sum(kinds.values()):,} are unusable and skipped: {listed(kinds)}" if kinds else ""
    summary = (
        f"{truncated:,} of {rows:,} rows ({100 * truncated / rows:.1f}%) are truncated to {model.max_length} tokens, "
        f"{counted['rows_without_supervised_token']:,} keep no supervised token{unusable}"
    )
    log.info("Tokens for %s: %s; %s", model.name, PROMPTS[model.template], summary)


def versions() -> dict[str, str]:
    names = ("torch", "lightning", "transformers", "numpy", "pyarrow")
    return {"lpsel": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def git_commit() -> str | None:
    """Return the commit of the git checkout that this package runs from, if there is one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / "conf" / "base.yaml").is_file():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
