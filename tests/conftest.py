"""Models and data that every stage's tests use: a random Llama of a few thousand weights, real ones where they are."""

import json
import os
from pathlib import Path

import pytest

# Tests run side by side: threads of one that wait for a core make the other wait as well.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the real data sets, beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there: the real data sets are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def real_models():
    """The folder with smollm2-135m, gemma3-270m and all-minilm-l6-v2."""
    folder = os.environ.get("LPSEL_TEST_MODELS")
    if not folder:
        pytest.skip("LPSEL_TEST_MODELS does not name a folder with the real models")
    return Path(folder)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """A random Llama with a byte tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy") / "toy-llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=256,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def instructions(tmp_path):
    """Write rows of instruction data of several lengths; returns the file's path."""

    def write(rows=24, name="rows.jsonl", order=None):
        made = [
            {
                "instruction": f"Count to {i % 7}.",
                "input": "",
                "output": " ".join(map(str, range(1 + i % 7))) + f" #{i}",
            }
            for i in range(rows)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(made[i]) + "\n" for i in (order if order is not None else range(rows))))
        return path

    return write
