"""Estimate model sizes and row lengths for dry runs, from a model's configuration and a sample of the rows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.data import templates
from lpsel.data.dataset import Row, Source
from lpsel.data.templates import holds_conversations, resolve_template
from lpsel.data.tokens import count_tokens, find_tokens
from lpsel.errors import UserError, check_number
from lpsel.model.load import load_config, load_tokenizer, locate
from lpsel.model.spec import ModelSpec
from lpsel.storage import digest

log = logging.getLogger(__name__)

GIB = 2**30
SAMPLE = 1000  # rows whose lengths represent all rows
CHARACTERS = 4  # characters per token, without a tokenizer
UTILIZATION = 40  # assumed percent of a GPU's peak FLOP/s; docs/results/benchmarks.md has measured values
COUNTED, SAMPLED = "counted", f"estimated from {SAMPLE:,} rows"
GUESSED = f"estimated at {CHARACTERS} characters each"

T = TypeVar("T")
M = TypeVar("M", bound=ModelSpec)
_cache: dict[str, Any] = {}  # models and lengths that several jobs of a sweep share


@dataclass(frozen=True)
class ModelShape:
    """A model on the meta device, and its tokenizer; None if not available."""

    shapes: Any
    tokenizer: Any


@dataclass(frozen=True)
class RowLengths:
    """Lengths of n rows with a supervised token, int32 (n,); each represents `weight` rows."""

    lengths: NDArray[np.int32]
    supervised: NDArray[np.int32]
    weight: float
    counted: str

    @property
    def tokens(self) -> float:
        """Tokens of all rows in one pass."""
        return self.weight * float(self.lengths.sum(dtype="int64"))

    def with_answers(self, longest: int) -> "RowLengths":
        """Lengths if the answers are replaced by generated ones of `longest` tokens."""
        lengths = self.lengths - self.supervised + longest
        return replace(self, lengths=lengths, supervised=np.full_like(lengths, longest))

    def without_prompts(self, bos: bool) -> "RowLengths":
        """Lengths as processed for the column `nll_0_noprompt`."""
        lengths = self.supervised + int(bos)
        return replace(self, lengths=lengths, supervised=lengths - 1)


class Pass(NamedTuple):
    """Passes of a model over rows."""

    times: float  # number of passes
    flops: Callable[..., float]  # `forward_flops` or `training_flops`
    rows: RowLengths


@dataclass(frozen=True)
class Work:
    """The training, scoring or evaluation of one model."""

    what: str  # score, train or evaluate
    model: str
    rows: int  # number of rows trained on, scored or evaluated on
    tokens: float  # tokens processed in all passes
    lengths: str  # how the tokens were counted
    flops: float | None  # None if the model's shape is unknown
    bytes: float | None  # memory per device; None if the model's shape is unknown
    key: str | None = None  # cache key of scores; None for other work
    epochs: int = 0  # recorded epochs of scores
    columns: tuple[str, ...] = ()  # additional recorded columns of scores
    in_cache: bool = False  # whether the scores are in the cache
    hours: float | None = None  # GPU time, see `gpu_hours`
    checkpoints: float = 0.0  # bytes on disk during training
    model_bytes: float = 0.0  # bytes of the saved model
    limit: float | None = None  # memory of each device in bytes, None if unknown
    problem: str = ""  # problem and hint of the UserError if it does not fit into GPU memory
    hint: str = ""

    def covers(self, other: "Work") -> bool:
        """Whether these scores include the other's."""
        same = self.key is not None and self.key == other.key
        return same and self.epochs >= other.epochs and set(other.columns) <= set(self.columns)


def cost(model: ModelShape, passes: Sequence[Pass]) -> tuple[float, float | None]:
    """Tokens and FLOPs of passes over rows; FLOPs are None if the model's shape is unknown."""
    tokens = sum(times * rows.tokens for times, _, rows in passes)
    if model.shapes is None:
        return tokens, None
    flops = (p.times * p.rows.weight * p.flops(model.shapes, p.rows.lengths, p.rows.supervised) for p in passes)
    return tokens, sum(flops)


def gpu_bytes(config: DictConfig) -> float | None:
    """Memory of a GPU in bytes: `gpu_memory_gib`, or the memory of this machine's first GPU; None without a GPU."""
    if config.gpu_memory_gib is not None:
        check_number("gpu_memory_gib", config.gpu_memory_gib, above=0, hint="set the memory of one GPU in GiB, or null")
        return float(config.gpu_memory_gib) * GIB
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


def gpu_hours(config: DictConfig, flops: float | None) -> float | None:
    """Hours on all GPUs together at UTILIZATION percent of `gpu_tflops`; None on a CPU or if FLOPs are unknown."""
    check_number("gpu_tflops", config.gpu_tflops, above=0, hint="set the peak of one GPU in TFLOP/s")
    if flops is None or config.trainer.accelerator == "cpu":
        return None
    return flops / (devices(config.trainer) * config.gpu_tflops * 1e12 * UTILIZATION / 100) / 3600


def devices(trainer: DictConfig) -> int:
    """Total number of devices on all nodes."""
    per_node = trainer.devices
    if per_node in ("auto", -1):
        per_node = max(torch.cuda.device_count(), 1)
    elif not isinstance(per_node, int):
        per_node = len(per_node)
    return trainer.num_nodes * per_node


def cached(kind: str, key: Any, create: Callable[[], T]) -> T:
    """Call `create` once per process and key, and return its cached result."""
    name = digest([kind, key])
    if name not in _cache:
        _cache[name] = create()
    return _cache[name]


def model_shape(spec: ModelSpec, cache_dir: Path) -> ModelShape:
    """Shape and tokenizer of a model, from conf/model, this machine or the Hub. A tiny model is created."""
    return cached("model", [asdict(spec), str(cache_dir)], lambda: _look_up(spec, cache_dir))


def _look_up(spec: ModelSpec, cache_dir: Path) -> ModelShape:
    path = spec.path or locate(spec, cache_dir)
    _go_offline_without_network(spec, path)
    try:
        tokenizer = load_tokenizer(spec, path)
    except UserError:
        tokenizer = None
    try:
        config = AutoConfig.for_model(**spec.architecture) if spec.architecture else load_config(spec, path)
    except UserError as error:
        reason = str(error)
        cached("unknown", spec.path, lambda: log.warning("The size of %s is unknown: %s", spec.name, reason))
        return ModelShape(None, tokenizer)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    return ModelShape(shapes, tokenizer)


def _go_offline_without_network(spec: ModelSpec, path: str) -> None:
    """Stop sending requests after the first failure: without a network, each takes half a minute to fail."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if Path(path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        hf_hub_download(path, "config.json", revision=spec.revision)
    except LocalEntryNotFoundError:
        log.warning("The Hub is not reachable; the plan uses conf/model and the files on this machine.")
        constants.HF_HUB_OFFLINE = True
    except (HfHubHTTPError, OSError, ValueError):
        return  # gated or unknown, which loading the tokenizer reports


def with_rows(spec: M, source: Source, cache_dir: Path) -> tuple[M, ModelShape, RowLengths]:
    """Return the model with the template for a source, its shape, and the token lengths of the rows."""
    model = model_shape(spec, cache_dir)
    spec = replace(spec, template=resolve_template(spec.template, holds_conversations(source), model.tokenizer))
    key = [source.fingerprint, spec.template, spec.max_length, spec.path, spec.tiny]
    return spec, model, cached("rows", key, lambda: _count(source, spec, model.tokenizer, cache_dir))


def _count(source: Source, spec: ModelSpec, tokenizer: Any, cache_dir: Path) -> RowLengths:
    """Lengths of all rows if they are in the cache, otherwise of a sample."""
    tokens = None if tokenizer is None else find_tokens(source, tokenizer, spec.template, spec.max_length, cache_dir)
    if tokens is not None:
        rows = RowLengths(tokens.lengths, tokens.response_tokens, 1.0, COUNTED)
    else:
        sampled = set(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int).tolist())
        sample = [row for row in source if row.index in sampled]
        if tokenizer is None:
            lengths, supervised = _guess(sample, spec.max_length)
            counted = GUESSED
        else:
            lengths, supervised = count_tokens(source, sample, tokenizer, spec.template, spec.max_length)
            counted = SAMPLED if len(sample) < len(source) else COUNTED
        rows = RowLengths(lengths, supervised, len(source) / len(sample), counted)
    trained = rows.supervised > 0
    return replace(rows, lengths=rows.lengths[trained], supervised=rows.supervised[trained])


def _guess(sample: list[Row], max_length: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Estimate the total and the supervised tokens of rows from characters, always with the Alpaca prompt."""
    parts = (templates.ALPACA_WITHOUT_INPUT, templates.ALPACA_INSTRUCTION, templates.ALPACA_RESPONSE)
    template_characters = len(templates.BETWEEN.join(parts))
    usable = [row.example.characters() for row in sample if row.unusable is None]
    prompts, responses = np.array(usable).reshape(-1, 2).T
    prompts = prompts + template_characters
    lengths = np.minimum((prompts + responses) // CHARACTERS + 1, max_length)
    supervised = np.maximum(lengths - prompts // CHARACTERS, 0)
    return lengths.astype(np.int32), supervised.astype(np.int32)
