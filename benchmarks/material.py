"""Create rows with Alpaca's lengths and models with random weights, for benchmarks without real ones."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import HERE
from numpy.typing import NDArray

from lpsel.data.dataset import DatasetSpec, Source

ALPACA = HERE.parent.parent / "shared" / "data" / "alpaca.jsonl.xz"
ALPACA_ROWS = 52_002
# Tokens of Alpaca's 52,002 rows by SmolLM2's tokenizer: prompt with its template; response with its end of sequence.
PERCENTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9, 100)
PROMPT_TOKENS = (33, 34, 36, 37, 39, 40, 42, 45, 54, 61, 66, 74, 83, 118, 180, 592)
RESPONSE_TOKENS = (1, 2, 5, 8, 12, 18, 27, 43, 61, 77, 96, 124, 157, 263, 440, 1091)


def smollm2() -> Path | None:
    """Return the folder of SmolLM2-135M in LPSEL_TEST_MODELS, or None if it does not exist."""
    folder = Path(os.environ.get("LPSEL_TEST_MODELS", "")) / "smollm2-135m"
    return folder if folder.is_dir() else None


def add_options(parser: argparse.ArgumentParser, rows: int) -> None:
    """Add the options of benchmarks on real rows: model, data and number of rows."""
    parser.add_argument("--model", type=existing, default=smollm2())
    parser.add_argument("--data", type=existing, default=ALPACA if ALPACA.is_file() else None)
    parser.add_argument("--rows", type=int, default=rows, help="rows that are scored in every round")


def from_options(options: argparse.Namespace, folder: Path) -> tuple[Path, str, Path]:
    """Return rows written by `sample` and their name, and the given model or a random Llama."""
    rows, data = sample(options.data, 40 if options.tiny else options.rows, folder)
    if options.model is not None and not options.tiny:
        return rows, data, options.model
    return rows, data, random_llama(folder / "model", layers=2, hidden=32, vocabulary=512, text=rows)


def existing(path: str) -> Path:
    """Parse a command-line argument that must be an existing path."""
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path}: not there; give another, or leave it out.")
    return Path(path)


def alpaca_lengths(rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw prompt and response lengths of `rows` rows independently from the percentiles above, shape (rows,) each."""
    draw = np.random.default_rng(0)
    prompt_N, response_N = (
        np.interp(100 * draw.random(rows), PERCENTILES, tokens).round().astype(np.int64)
        for tokens in (PROMPT_TOKENS, RESPONSE_TOKENS)
    )
    return prompt_N, response_N


def sample(data: Path | None, rows: int, folder: Path) -> tuple[Path, str]:
    """Write `rows` rows drawn with a fixed seed from `data` or the embedded generator; return the file and a name."""
    if data is not None:
        source, name = Source(DatasetSpec("data", str(data))), data.name
    else:
        settings = {"rows": 10 * rows, "held_out": 0, "seed": 0, "wrong": 0.0}
        source, name = Source(DatasetSpec("embedded", synthetic=settings)), "embedded synthetic rows"
    raw = [row.raw for row in source]
    chosen = np.random.default_rng(0).permutation(len(raw))[:rows]
    path = folder / f"rows-{rows}.jsonl"
    path.write_text("".join(json.dumps(raw[i]) + "\n" for i in chosen))
    return path, name


def load(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device)


def random_llama(folder: Path, *, layers: int, hidden: int, vocabulary: int, text: Path | None = None) -> Path:
    """Create a Llama with random weights, and a byte-level tokenizer, trained on the lines of `text` if it is used."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 32, 1),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return random_model(folder, config, text.read_text().splitlines() if text else ["The tokenizer is not used."])


def random_model(
    folder: Path, config: Any, text: list[str], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Path:
    """Create a model folder with random weights and a tokenizer that uses a few thousand ids of the vocabulary."""
    from transformers import AutoModelForCausalLM

    byte_tokenizer(text, min(config.vocab_size, 4096)).save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return folder


def byte_tokenizer(text: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(text, learner)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
