"""From a ModelSpec to a tokenizer and a model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from lpsel.errors import UserError, first_line
from lpsel.model.fingerprint import hub_config
from lpsel.model.spec import ModelSpec

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def locate(spec: ModelSpec, cache_dir: Path) -> str:
    """The folder or Hub id to load from; a tiny model is made first where there is none yet.

    Raises:
        UserError: neither a folder with a model in it nor a model the Hub has, or one with less context than asked
            for; said before anything is loaded.
    """
    if not spec.path:
        from lpsel.toy.model import make_tiny

        return str(make_tiny(cache_dir=cache_dir, **(spec.tiny or {})))
    path = Path(spec.path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{spec.path}: has no config.json; give a folder that save_pretrained wrote.")
        _check_weights(spec, path)
        if not any((path / name).is_file() for name in TOKENIZERS):
            raise UserError(f"{spec.path}: has no tokenizer ({TOKENIZERS[0]}); give a folder that has one.")
        _check_config(spec, path / "config.json")
        return str(path)
    if path.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1:
        raise UserError(f"{spec.path}: no such folder; give a model folder or a Hugging Face id.")
    _check_config(spec, hub_config(spec.path, spec.revision))
    return spec.path


def check_model(spec: ModelSpec, cache_dir: Path) -> None:
    """`locate` that makes nothing.

    Raises:
        UserError: as `locate`.
    """
    if spec.path:
        locate(spec, cache_dir)
    else:
        from lpsel.toy.model import CONTEXT, check_tiny

        check_tiny(spec.tiny or {})
        _check_context(spec, CONTEXT)


def _check_weights(spec: ModelSpec, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{index}: is no index of weights; copy the model's folder again.") from None
        lost = [name for name in named if not (folder / str(name)).is_file()]
        if lost:
            raise UserError(f"{spec.path}: has no {lost[0]}, which {index.name} names; copy the model's folder again.")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(folder.glob("*.bin"))
    if not pickled:
        raise UserError(f"{spec.path}: has no weights (*.safetensors); give a folder that save_pretrained wrote.")
    if not spec.bin_weights:
        raise UserError(
            f"{spec.path}: its weights are pickled ({pickled[0].name}); say model.bin_weights=true if you trust where "
            "they are from (scorer.bin_weights, for evaluate bin_weights), or save them as safetensors."
        )


def _check_config(spec: ModelSpec, file: Path) -> None:
    """What the JSON tells without transformers: whether it describes a model, and a context that is long enough."""
    try:
        described = json.loads(file.read_bytes())
        kind, decoder = described["model_type"], described.get("text_config") or described
        context = decoder.get("max_position_embeddings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{spec.path}: its config.json describes no model (model_type); give a folder that save_pretrained wrote."
        ) from None
    if not isinstance(kind, str):
        raise UserError(
            f"{spec.path}: model_type {kind!r} in its config.json is no name; give a model of transformers."
        )
    if isinstance(context, int):
        _check_context(spec, context)


def _check_context(spec: ModelSpec, context: int) -> None:
    if spec.max_length > context:
        raise UserError(
            f"max_length={spec.max_length}: {spec.name} has a context of {context} tokens; give {context} or less."
        )


def load_tokenizer(spec: ModelSpec, path: str) -> Any:
    """The tokenizer that belongs to the model."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:  # the Rust library raises bare ones
        raise UserError(
            f"{path}: its tokenizer cannot be loaded ({first_line(error)}); give a complete model folder."
        ) from error
    vocabulary = getattr(load_config(spec, path).get_text_config(), "vocab_size", None)
    # Added tokens aside: they come of no text, and Gemma 3 has one more than its model.
    if vocabulary is not None and tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"{path}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model knows {vocabulary:,}; give the "
            "model with its own tokenizer."
        )
    return tokenizer


def load_config(spec: ModelSpec, path: str) -> Any:
    """The model's configuration, once it is sure that transformers knows it and that rows fit into its context."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its config.json cannot be used ({first_line(error)}); give a model that transformers knows, or "
            "say trust_remote_code=true if you trust the code that comes with it."
        ) from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        _check_context(spec, context)
    return config


def load_model(spec: ModelSpec, path: str, dtype: Any, **how: Any) -> Any:
    """The causal language model with its weights in `dtype`, in evaluation mode (no dropout).

    `how` is for from_pretrained: quantisation and device.
    """
    from torch import OutOfMemoryError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    load_config(spec, path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            dtype=dtype,
            use_safetensors=None if spec.bin_weights else True,
            weights_only=True,
            **how,
        )
    except (OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of transformers, safetensors, PyTorch's unpickler, and code that comes with a model
        reason = "its pickle holds more than tensors" if "Weights only load failed" in str(error) else first_line(error)
        raise UserError(
            f"{path}: cannot be loaded as a causal language model ({reason}); give one that save_pretrained "
            "wrote, or bin_weights=true for one with pickled weights only."
        ) from error
    return model.eval()


def stored_dtype(spec: ModelSpec, path: str) -> Any:
    """The type of the first weight that is no 8-bit float or integer; else what config.json says."""
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    found = partial(cached_file, path, revision=spec.revision, _raise_exceptions_for_missing_entries=False)
    file = found(SAFE_WEIGHTS_NAME)
    if file is None and (index := found(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        file = found(min(json.loads(Path(index).read_bytes())["weight_map"].values()))
    if file is None:
        return "auto"
    try:
        with safe_open(file, framework="pt") as opened:
            types = (opened.get_tensor(name).dtype for name in opened.keys())  # noqa: SIM118, no dictionary
            return next((dtype for dtype in types if dtype in (torch.float32, torch.bfloat16, torch.float16)), "auto")
    except SafetensorError:  # loading says what is wrong with it
        return "auto"


def freeze_other_parts(model: Any) -> None:
    """Leave only the text decoder and the head to be trained of a model that sees as well.

    Text alone gives the other parts no gradient, and DDP waits for every gradient.
    """
    if model.config is not model.config.get_text_config():
        model.requires_grad_(False)
        model.get_decoder().requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
