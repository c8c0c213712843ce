"""`dry_run=true`: what a job would do, with tokens, FLOPs and memory per GPU, and whether its models fit.

Nothing is trained and no weights are read: a model's shapes come from its config.json, or from `architecture` in
conf/model where the Hub is out of reach.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from lpsel.commands.job import Job
from lpsel.commands.plan import GIB, Work, show_plan
from lpsel.config import build
from lpsel.data.dataset import Source
from lpsel.data.tokens import count_tokens, find_tokens
from lpsel.errors import UserError, is_number
from lpsel.model.adapter import Adapter
from lpsel.model.device import resolve_precision
from lpsel.model.flops import forward_flops, training_flops
from lpsel.model.load import load_config, load_tokenizer, locate
from lpsel.model.memory_estimate import Footprint, fits_on, footprint
from lpsel.model.spec import ModelSpec, ScorerSpec
from lpsel.scoring.columns import RECORDABLE
from lpsel.scoring.scorer import find
from lpsel.selection.spec import SelectionSpec
from lpsel.storage import digest
from lpsel.training.checks import shards

log = logging.getLogger(__name__)

SAMPLE = 1000  # rows by whose lengths those of all are estimated
CHARACTERS = 4  # of a token, where there is no tokenizer
COUNTED, SAMPLED, GUESSED = "counted", f"estimated from {SAMPLE:,} rows", f"guessed at {CHARACTERS} characters each"


@dataclass(frozen=True)
class _Model:
    """A model's shapes, on the meta device, and its tokenizer, as far as they can be had here."""

    shapes: Any
    tokenizer: Any


@dataclass(frozen=True)
class _Rows:
    """Lengths of some rows with a supervised token, int32 (n,) each, that stand for `share` rows each."""

    lengths: NDArray[np.int32]
    supervised: NDArray[np.int32]
    share: float
    how: str

    @property
    def tokens(self) -> float:
        """Of all rows, in one pass."""
        return self.share * float(self.lengths.sum(dtype="int64"))

    def without_prompts(self, bos: bool) -> "_Rows":
        """As `lpsel.scoring.columns.WithoutPrompt` feeds them."""
        lengths = self.supervised + int(bos)
        return replace(self, lengths=lengths, supervised=lengths - 1)


def show_job(command: str, config: DictConfig, folder: Path) -> None:
    """Print the plan of one job.

    Raises:
        UserError: a model that does not fit, or as `planned`.
    """
    work = planned(command, config, folder)
    show_plan([(command, work)])
    if problem := next((piece.problem for piece in work or () if piece.problem), None):
        raise UserError(problem)
    print(folder.resolve(), flush=True)


def planned(command: str, config: DictConfig, folder: Path) -> list[Work] | None:
    """What models a job would run, in order; None where its run folder has the result already.

    Raises:
        UserError: a mistake that can be known by now, a data set that cannot be read.
    """
    job = Job.of(command, config, folder)
    if job.asked().finished(folder):
        return None
    job.training_setup()
    limit_of(config)
    rule: SelectionSpec = build(config.selection)
    adapter: Adapter | None = build(config.adapter) if command == "train" else None
    if adapter is not None:
        adapter.check(config.trainer)
    source = _source(config.dataset)
    pct = rule.share(config.pct, len(source))
    work = []
    if rule.epochs is not None and config.scores is None:
        work.append(_scoring(job, build(config.scorer), source, rule.epochs, rule.records))
    if command == "train":
        work.append(_training(job, build(config.model), adapter, source, pct))
    return work


def _scoring(job: Job, scorer: ScorerSpec, source: Source, epochs: int, columns: tuple[str, ...]) -> Work:
    model = _model(scorer, job.cache_dir)
    rows = _rows(source, scorer, model.tokenizer, job.cache_dir)
    bos = getattr(model.tokenizer, "bos_token_id", None) is not None
    fed = [rows, *(rows.without_prompts(bos) if RECORDABLE[column].without_prompt else rows for column in columns)]
    trained, recorded = epochs * scorer.train_fraction, [1 + epochs, *(1 for _ in columns)]
    tokens = trained * rows.tokens + sum(times * part.tokens for times, part in zip(recorded, fed, strict=True))
    flops = None
    if model.shapes is not None:
        passes = [forward_flops(model.shapes, part.lengths, part.supervised) for part in fed]
        flops = trained * training_flops(model.shapes, rows.lengths, rows.supervised)
        flops = rows.share * (flops + sum(times * one for times, one in zip(recorded, passes, strict=True)))
    memory = _memory(job, scorer, model, None, training=epochs > 0)
    less = ("train_fraction", "stop", "stop_bound", "stop_rows")
    asked = {name: value for name, value in asdict(scorer).items() if name not in (*less, "name")}
    asked |= (scorer.less_training() if epochs else {}) | {"data": source.fingerprint}
    return Work(
        "score", scorer.name, len(source), tokens, rows.how,
        flops, memory(_slices(job)).total if memory else None,
        key=digest(asked), epochs=epochs, columns=columns,
        found=_is_there(job, scorer, source, epochs, columns), problem=_problem(job, scorer.name, memory),
    )  # fmt: skip


def _training(job: Job, target: ModelSpec, adapter: Adapter | None, source: Source, pct: float) -> Work:
    """The chosen rows are taken to be as long as all are on average."""
    model = _model(target, job.cache_dir)
    rows = _rows(source, target, model.tokenizer, job.cache_dir)
    chosen = min(int(pct / 100 * len(source) + 0.5), len(source))
    times = target.recipe.epochs * chosen / len(source)
    flops = None
    if model.shapes is not None:
        flops = times * rows.share * training_flops(model.shapes, rows.lengths, rows.supervised)
    memory = _memory(job, target, model, adapter, training=True)
    return Work(
        "train", target.name, chosen, times * rows.tokens, rows.how, flops,
        memory(_slices(job)).total if memory else None, problem=_problem(job, target.name, memory),
    )  # fmt: skip


Memory = Callable[[int], Footprint]


def _memory(job: Job, spec: ModelSpec, model: _Model, adapter: Adapter | None, training: bool) -> Memory | None:
    """The memory of each device, by the number of devices that share a copy; None where the shapes are not known."""
    if model.shapes is None:
        return None
    precision = _precision(job)
    if not training:
        stored = 2 if precision == "bf16-true" else 4
        size = stored * sum(p.numel() for p in model.shapes.parameters())
        return lambda slices: Footprint(size / slices, 0.0, 0.0)
    return lambda slices: footprint(
        model.shapes,
        spec,
        precision=precision,
        eight_bits=job.config.optimizer["_target_"].startswith("bitsandbytes."),
        adapter=adapter,
        checkpointing=job.config.activation_checkpointing,
        pack=job.config.train_tokens,
        slices=slices,
    )


def _problem(job: Job, name: str, memory: Memory | None) -> str | None:
    """Why a model does not fit, with what would help; None where it fits, or the memory of the GPUs is not known."""
    limit = limit_of(job.config)
    if memory is None or limit is None or memory(_slices(job)).total <= limit:
        return None
    enough = fits_on(limit, memory)
    remedy = f"trainer=fsdp trainer.devices={enough}" if enough else "adapter=qlora"
    return (
        f"{name}: needs {memory(_slices(job)).total / GIB:.0f} GiB on each GPU, which has {limit / GIB:.0f}; "
        f"say {remedy} (docs/memory.md has more)."
    )


def limit_of(config: DictConfig) -> float | None:
    """Bytes of a GPU: as told, else of this machine's first, None where it has none."""
    import torch

    told = config.gpu_memory_gib
    if told is not None:
        if not is_number(told) or told <= 0:
            raise UserError(f"gpu_memory_gib={told}: must be the memory of one GPU in GiB, or null.")
        return float(told) * GIB
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


def _precision(job: Job) -> str:
    asked = job.config.trainer.precision
    return "bf16-mixed" if asked == "auto" and job.config.gpu_memory_gib is not None else resolve_precision(asked)


def _slices(job: Job) -> int:
    """Devices that share one copy of a model."""
    import torch

    trainer = job.config.trainer
    if not shards(trainer):
        return 1
    devices = trainer.devices
    here = max(torch.cuda.device_count(), 1) if devices in ("auto", -1) else None
    return trainer.num_nodes * (here or (devices if isinstance(devices, int) else len(devices)))


_sources: dict[str, Source] = {}
_models: dict[str, _Model] = {}
_lengths: dict[str, _Rows] = {}


def _source(node: DictConfig) -> Source:
    key = OmegaConf.to_yaml(node, resolve=True)
    if key not in _sources:
        _sources[key] = Source(build(node))
    return _sources[key]


def _model(spec: ModelSpec, cache_dir: Path) -> _Model:
    key = digest([asdict(spec), str(cache_dir)])
    if key not in _models:
        _models[key] = _look_up(spec, cache_dir)
    return _models[key]


def _look_up(spec: ModelSpec, cache_dir: Path) -> _Model:
    """Sizes that conf/model knows are not asked of the Hub. A tiny model is made: nothing else tells its size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = spec.path or locate(spec, cache_dir)
    _ask_the_hub_once(spec, path)
    try:
        tokenizer = load_tokenizer(spec, path)
    except UserError:
        tokenizer = None
    try:
        described = AutoConfig.for_model(**spec.architecture) if spec.architecture else load_config(spec, path)
    except UserError as error:
        log.warning("%s: how large it is cannot be told: %s", spec.name, error)
        return _Model(None, tokenizer)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(described, trust_remote_code=spec.trust_remote_code)
    return _Model(shapes, tokenizer)


def _ask_the_hub_once(spec: ModelSpec, path: str) -> None:
    """Without a network every question takes half a minute to fail: after the first, ask none."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        hf_hub_download(path, "config.json", revision=spec.revision)
    except LocalEntryNotFoundError:
        log.warning("The Hub is out of reach; what follows is from conf/model and what is on this machine.")
        constants.HF_HUB_OFFLINE = True
    except (HfHubHTTPError, OSError, ValueError):
        return  # gated, or no such model: what follows says so


def _rows(source: Source, spec: ModelSpec, tokenizer: Any, cache_dir: Path) -> _Rows:
    """Lengths of all rows where they are in the cache, else of a sample."""
    key = digest([source.fingerprint, spec.template, spec.max_length, spec.path, spec.tiny])
    if key in _lengths:
        return _lengths[key]
    cut = spec.template, spec.max_length
    known = None if tokenizer is None else find_tokens(source, tokenizer, *cut, cache_dir)
    if known is not None:
        rows = _Rows(known.lengths, known.response_tokens, 1.0, COUNTED)
    else:
        wanted = set(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int).tolist())
        sample = [row for row in source if row.index in wanted]
        count = partial(count_tokens, tokenizer=tokenizer, template=cut[0], max_length=cut[1])
        lengths, supervised = count(sample) if tokenizer is not None else _guess(sample, spec.max_length)
        how = GUESSED if tokenizer is None else SAMPLED if len(sample) < len(source) else COUNTED
        rows = _Rows(lengths, supervised, len(source) / len(sample), how)
    some = rows.supervised > 0
    _lengths[key] = replace(rows, lengths=rows.lengths[some], supervised=rows.supervised[some])
    return _lengths[key]


def _guess(sample: list[Any], max_length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lengths by characters, with the Alpaca prompt around them whatever the template."""
    from types import SimpleNamespace

    from lpsel.data.templates import render

    plain = SimpleNamespace(eos_token="")
    rendered = [render(row.example, "alpaca", plain) for row in sample]
    prompts = np.array([min((begin for begin, _ in text.supervised), default=len(text.text)) for text in rendered])
    lengths = np.minimum(np.array([len(text.text) for text in rendered]) // CHARACTERS + 1, max_length)
    supervised = np.maximum(lengths - prompts // CHARACTERS, 0)
    return lengths.astype(np.int32), supervised.astype(np.int32)


def _is_there(job: Job, scorer: ScorerSpec, source: Source, epochs: int, columns: tuple[str, ...]) -> bool:
    try:
        return find(job.training_setup(), scorer, source, epochs, columns) is not None
    except UserError:  # a model that is not on this machine has no scores on it
        return False
