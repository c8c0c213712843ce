"""Run lpsel as a benchmark contestant."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from harness import Run, stopwatch, synchronize, touch
from numpy.typing import NDArray

from lpsel.data.datamodule import SubsetDataModule
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.random_order import epoch_order
from lpsel.data.shared_prefixes import find_prefixes
from lpsel.data.tokens import DATA, ROWS_PER_BATCH, SCHEMA, Tokens, tokenize
from lpsel.model.device import gpu_memory, lightning_precision
from lpsel.model.flops import forward_flops
from lpsel.model.lightning_module import FineTuner
from lpsel.model.load import load_config, load_tokenizer
from lpsel.model.memory_estimate import recording_pack, training_packs
from lpsel.model.spec import ModelSpec, Recipe
from lpsel.scoring.recorder import NLLRecorder
from lpsel.scoring.store import Parts

SEED = 42
TRAIN_TOKENS = training_packs("cuda" if torch.cuda.is_available() else "cpu")[0]  # train_tokens=auto
SCORE_TOKENS = 16384  # conf/choosing.yaml
MAX_LENGTH = 512
LEARNING_RATE = 2e-5
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the same number for every contestant


def tokens_of(rows: Path, model_folder: Path, cache: Path) -> Tokens:
    """Tokenize the rows of a file for a model with the paper's template."""
    tokenizer = load_tokenizer(spec_of(model_folder), str(model_folder))
    return tokenize(Source(DatasetSpec("benchmark", str(rows))), tokenizer, "alpaca", MAX_LENGTH, cache)


def made_up_tokens(prompt_N: NDArray[np.int64], response_N: NDArray[np.int64], vocabulary: int, folder: Path) -> Tokens:
    """Create rows of random token ids with the given lengths, truncated to MAX_LENGTH like lpsel's rows."""
    draw = np.random.default_rng(SEED)
    folder.mkdir(parents=True)
    rows = []
    for number, (prompt, response) in enumerate(zip(prompt_N.tolist(), response_N.tolist(), strict=True)):
        length = min(prompt + response, MAX_LENGTH)
        supervised = max(length - prompt, 0)
        rows.append(
            {
                "id": f"{draw.integers(2**62):016x}{number:016x}",
                "input_ids": draw.integers(vocabulary, size=length).tolist(),
                "supervised_spans": [prompt, length] if supervised else [],
                "prompt_tokens": length - supervised,
                "response_tokens": supervised,
                "truncated": prompt + response > length,
            }
        )
    with pa.ipc.new_file(folder / DATA, SCHEMA) as file:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            file.write_batch(pa.RecordBatch.from_pylist(rows[start : start + ROWS_PER_BATCH], schema=SCHEMA))
    return Tokens(folder)


def order_of(tokens: Tokens) -> NDArray[np.int64]:
    """Return row numbers in the order of the first epoch."""
    order = epoch_order(tokens.ids, SEED, 0)
    return order[tokens.response_tokens[order] > 0]


def flops(model_folder: Path, tokens: Tokens, rows: NDArray[np.int64]) -> dict[str, float]:
    """Compute the FLOPs of a forward pass over `rows`.

    `full` counts every token, with the head on each; `needed` counts the head on supervised tokens only and shared
    prefixes once, as if all rows were in one pack.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    lengths, prefixes = tokens.lengths[rows], find_prefixes(tokens)
    used = np.bincount(prefixes.group_N[rows], minlength=len(prefixes.ids))
    again = np.repeat([len(prefix) for prefix in prefixes.ids], np.maximum(used - 1, 0)).astype(np.int32)
    return {
        "needed": forward_flops(model, lengths, tokens.response_tokens[rows])
        - forward_flops(model, again, np.zeros_like(again)),
        "full": forward_flops(model, lengths, lengths),
    }


def largest_pack(model_folder: Path, precision: str, score_tokens: int, device: str) -> int:
    """Return the size in tokens of the largest pack that a recording pass uses for a given `score_tokens`."""
    config, gpu = load_config(spec_of(model_folder), str(model_folder)), gpu_memory(torch.device(device))
    return recording_pack(config, precision, score_tokens, gpu)


def score(
    model_folder: Path,
    tokens_folder: Path,
    precision: str,
    *,
    device: str = "cpu",
    score_tokens: int = SCORE_TOKENS,
    compiled: bool = False,
    head: str = "own",
    on_ready: Callable[[Any], None] = touch,
) -> Run:
    """Run a recording pass over all rows, including writing records to disk.

    Args:
        tokens_folder: folder of the tokenized rows.
        precision: same as `trainer.precision`.
        score_tokens: same as on the command line.
        compiled: compile the layers before timing starts.
        head: same as on the command line.
        on_ready: called with the loaded model before timing starts.
    """
    tokens = Tokens(tokens_folder)
    module = fine_tuner(model_folder, 1, precision, compiled, head)
    data = data_module(tokens, 32, largest_pack(model_folder, precision, score_tokens, device), record=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder) / "parts")

        def ready(model: Any) -> None:
            on_ready(model)
            if compiled:
                module.loss(data.pack(np.flatnonzero(data.supervised)[:2]).to(torch.device(device)))

        clock = _Clock(device, ready)
        trainer = _trainer(device, precision, [NLLRecorder(parts), clock])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.validate(module, datamodule=data, verbose=False)
        nll_N = parts.collect(0, len(tokens))[0]
    supervised = data.supervised
    return Run(clock.passes, int(tokens.lengths[supervised].sum()), nll_N[supervised])


def train(
    model_folder: Path,
    tokens_folder: Path,
    precision: str,
    *,
    steps: int,
    batch_size: int = 32,
    device: str = "cpu",
    record: bool = False,
    compiled: bool = False,
    head: str = "own",
    on_ready: Callable[[Any], None] = touch,
) -> Run:
    """Time `steps` optimizer steps on the first rows of `order_of`.

    The first step is not timed, because in it AdamW allocates its moments and layers are compiled. With `record`, there
    is a recording pass over all rows before and after training, and `extra` has the seconds of everything after loading
    (`whole`), of the recording passes (`passes`) and of the forward passes in them (`forward`).
    """
    tokens = Tokens(tokens_folder)
    module = fine_tuner(model_folder, steps + 1, precision, compiled, head)
    data = data_module(tokens, batch_size, SCORE_TOKENS, record)
    clock = _Clock(device, on_ready)
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[L.Callback] = [clock]
        if record:
            callbacks.insert(0, NLLRecorder(Parts(Path(folder) / "parts")))
        trainer = _trainer(
            device,
            precision,
            callbacks,
            max_epochs=1,
            limit_train_batches=steps + 1,
            num_sanity_val_steps=-1 if record else 0,
            limit_val_batches=1.0 if record else 0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, datamodule=data)
    trained = order_of(tokens)[batch_size : (steps + 1) * batch_size]
    extra = {"whole": clock.whole, "passes": clock.passes, "forward": clock.forward} if record else {}
    return Run(clock.training, int(tokens.lengths[trained].sum()), np.array(clock.losses), extra)


def spec_of(model_folder: Path) -> ModelSpec:
    recipe = Recipe(epochs=1, learning_rate=LEARNING_RATE, warmup=0.0, schedule="constant", seed=SEED)
    return ModelSpec("benchmark", str(model_folder), max_length=MAX_LENGTH, recipe=recipe)


def fine_tuner(model_folder: Path, steps: int, precision: str, compiled: bool = False, head: str = "own") -> FineTuner:
    # As conf/optimizer/adamw.yaml
    adamw = partial(torch.optim.AdamW, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
    spec = spec_of(model_folder)
    options: dict[str, Any] = {"precision": precision, "compiled": compiled, "head": head}
    return FineTuner("target", spec, str(model_folder), adamw, steps, **options)


def data_module(tokens: Tokens, batch_size: int, score_tokens: int, record: bool) -> SubsetDataModule:
    return SubsetDataModule(
        tokens,
        batch_size=batch_size,
        seed=SEED,
        train_tokens=TRAIN_TOKENS,
        score_tokens=score_tokens,
        record=record,
    )


def _trainer(device: str, precision: str, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """Create Lightning's Trainer as in `lpsel.training.trainer`, without a logger."""
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=lightning_precision(precision),  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class _Clock(L.Callback):
    """Times recording passes, the forward passes in them, training, and everything after loading, in seconds."""

    def __init__(self, device: str, on_ready: Callable[[Any], None]) -> None:
        self.device, self.on_ready = device, on_ready
        self.passes = self.forward = self.training = self.whole = 0.0
        self.losses: list[float] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self.on_ready(pl_module.language_model)
        self.pass_started = self._now()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.passes += self._now() - self.pass_started

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.on_ready(pl_module.language_model)
        self._time_forward_passes(pl_module)
        self.started = self._now()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if not self.losses:
            self.training_started = self._now()
        self.training = self._now() - self.training_started
        self.losses.append(float(trainer.callback_metrics["target/nll"]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.whole = self._now() - self.started

    def _time_forward_passes(self, pl_module: Any) -> None:
        step = pl_module.validation_step

        def timed_step(*args: Any) -> Any:
            seconds = stopwatch(self.device)
            result = step(*args)
            self.forward += seconds()
            return result

        pl_module.validation_step = timed_step

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()
