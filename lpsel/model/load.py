"""Load the tokenizer and the model that a ModelSpec describes."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lpsel.data.dataset import Source
from lpsel.data.templates import holds_conversations, resolve_template
from lpsel.errors import UserError, first_line
from lpsel.model.fingerprint import hub_config
from lpsel.model.spec import ModelSpec
from lpsel.model.threads import choose_threads
from lpsel.storage import read_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
UNEXPECTED_JSON = (ValueError, KeyError, TypeError, AttributeError)  # raised when a JSON file has unexpected contents
SAVED_HINT = "use a folder written by save_pretrained"
Spec = TypeVar("Spec", bound=ModelSpec)


def locate(spec: ModelSpec, cache_dir: Path) -> str:
    """Return the folder or Hub id to load from, creating a tiny model first if needed.

    Raises:
        UserError: the folder or Hub model does not exist or is incomplete, or its context is shorter than max_length.
    """
    if not spec.path:
        from lpsel.toy.model import make_tiny

        return str(make_tiny(cache_dir=cache_dir, **(spec.tiny or {})))
    path = Path(spec.path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(spec.path, problem="has no config.json", hint=SAVED_HINT)
        _check_weights(spec, path)
        if not any((path / name).is_file() for name in TOKENIZERS):
            raise UserError(spec.path, problem=f"has no tokenizer ({TOKENIZERS[0]})", hint=SAVED_HINT)
        _check_config(spec, path / "config.json")
        return str(path)
    if path.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1:
        raise UserError(spec.path, problem="no such folder", hint="set a model folder or a Hugging Face id")
    _check_config(spec, hub_config(spec.path, spec.revision))
    return spec.path


def check_model(spec: ModelSpec, cache_dir: Path) -> None:
    """Run the checks of `locate` without creating a model."""
    if spec.path:
        locate(spec, cache_dir)
    else:
        from lpsel.toy.model import CONTEXT, check_tiny

        check_tiny(spec.tiny or {})
        _check_context(spec, CONTEXT)


def _check_weights(spec: ModelSpec, folder: Path) -> None:
    hint = "copy the model folder again"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(read_json(index)["weight_map"].values()))
        except UNEXPECTED_JSON:
            raise UserError(index, problem="not an index of weights", hint=hint) from None
        missing = [name for name in named if not (folder / str(name)).is_file()]
        if missing:
            raise UserError(spec.path, problem=f"{missing[0]}, which {index.name} names, is missing", hint=hint)
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(folder.glob("*.bin"))
    if not pickled:
        raise UserError(spec.path, problem="has no weights (*.safetensors)", hint=SAVED_HINT)
    if not spec.bin_weights:
        options = "model.bin_weights=true (scorer.bin_weights, or bin_weights for evaluate)"
        hint = f"save them as safetensors, or set {options} if you trust their source"
        raise UserError(spec.path, problem=f"its weights are pickled ({pickled[0].name})", hint=hint)


def _check_config(spec: ModelSpec, file: Path) -> None:
    """Check, without importing transformers, that config.json describes a model with a long enough context."""
    try:
        config = read_json(file)
        model_type, decoder = config["model_type"], config.get("text_config") or config
        context = decoder.get("max_position_embeddings")
    except UNEXPECTED_JSON:
        raise UserError(spec.path, problem="its config.json has no model_type", hint=SAVED_HINT) from None
    if not isinstance(model_type, str):
        problem = f"model_type {model_type!r} in its config.json is not a name"
        raise UserError(spec.path, problem=problem, hint="use a model supported by transformers")
    if isinstance(context, int):
        _check_context(spec, context)


def _check_context(spec: ModelSpec, context: int) -> None:
    if spec.max_length > context:
        problem = f"{spec.name} has a context of {context} tokens"
        hint = f"set model.max_length={context} or less (scorer.max_length, or max_length for evaluate)"
        raise UserError("max_length", spec.max_length, problem, hint)


def load_tokenizer(spec: ModelSpec, path: str) -> Any:
    """Load the model's tokenizer and check that its vocabulary is not larger than the model's."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **_hub_options(spec))
    except Exception as error:  # the Rust library raises plain Exception
        problem = f"its tokenizer cannot be loaded ({first_line(error)})"
        raise UserError(path, problem=problem, hint="use a complete model folder") from error
    vocabulary = getattr(load_config(spec, path).get_text_config(), "vocab_size", None)
    # Added tokens do not count: no text contains them, and Gemma 3 has one more of them than its model has embeddings.
    if vocabulary is not None and tokenizer.vocab_size > vocabulary:
        problem = f"its tokenizer has {tokenizer.vocab_size:,} tokens, its model {vocabulary:,}"
        raise UserError(path, problem=problem, hint="use the model with its own tokenizer")
    return tokenizer


def with_template(spec: Spec, source: Source, cache_dir: Path) -> Spec:
    """Resolve `template="auto"`, loading the tokenizer only if the choice depends on it.

    Cache keys, manifests and results contain the resolved template.
    """
    if spec.template != "auto":
        return spec
    conversations = holds_conversations(source)
    tokenizer = load_tokenizer(spec, locate(spec, cache_dir)) if conversations else None
    return replace(spec, template=resolve_template(spec.template, conversations, tokenizer))


def _hub_options(spec: ModelSpec) -> dict[str, Any]:
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


def load_config(spec: ModelSpec, path: str) -> Any:
    """Load the model's configuration, and check that transformers supports it and that rows fit into its context."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, **_hub_options(spec))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its config.json cannot be used ({first_line(error)})"
        trusted = "set trust_remote_code=true if you trust the code that comes with it"
        hint = f"use a model supported by transformers, or {trusted}"
        raise UserError(path, problem=problem, hint=hint) from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        _check_context(spec, context)
    return config


def load_model(spec: ModelSpec, path: str, dtype: Any, **options: Any) -> Any:
    """Load the causal language model with its weights in `dtype`, in evaluation mode (no dropout).

    `options`, such as quantization and device, are passed to from_pretrained.
    """
    from torch import OutOfMemoryError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    load_config(spec, path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=None if spec.bin_weights else True,
            weights_only=True,
            **_hub_options(spec),
            **options,
        )
    except (OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # from transformers, safetensors, PyTorch's unpickler or code that comes with a model
        unsafe = "Weights only load failed" in str(error)
        reason = "its pickle contains more than tensors" if unsafe else first_line(error)
        problem = f"cannot be loaded as a causal language model ({reason})"
        raise UserError(
            path, problem=problem, hint=f"{SAVED_HINT}, or set bin_weights=true for pickled weights"
        ) from error
    choose_threads(model.num_parameters(), model.base_model)
    return model.eval()


def stored_dtype(spec: ModelSpec, path: str) -> Any:
    """Return the dtype of the first float32, bfloat16 or float16 weight, or `auto` (use config.json) without one."""
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    find = partial(cached_file, path, revision=spec.revision, _raise_exceptions_for_missing_entries=False)
    file = find(SAFE_WEIGHTS_NAME)
    if file is None and (index := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        file = find(min(read_json(Path(index))["weight_map"].values()))
    if file is None:
        return "auto"
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118, not a dictionary
                dtype = opened.get_tensor(name).dtype
                if dtype in (torch.float32, torch.bfloat16, torch.float16):
                    return dtype
    except SafetensorError:  # reported when the model is loaded
        pass
    return "auto"


def freeze_other_parts(model: Any) -> None:
    """Freeze everything in a multimodal model except its text decoder and head.

    The other parts get no gradient from text, but DDP waits for the gradient of every trainable parameter.
    """
    decoder = text_decoder(model)
    if decoder is not model:
        model.requires_grad_(False)
        decoder.requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)


def text_decoder(model: Any) -> Any:
    """Return the text decoder of a multimodal model; any other model is returned unchanged."""
    return model if model.config is model.config.get_text_config() else model.get_decoder()
