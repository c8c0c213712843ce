"""Random models of a few thousand weights, one of each kind that matters, and a batch for them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.data.packing import MicroBatch, Segment

SMALL = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LLAMA = SMALL | dict(intermediate_size=48, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
KINDS = {
    "llama": ("llama", LLAMA),
    "mistral": ("mistral", LLAMA),
    "tied": ("llama", LLAMA | dict(tie_word_embeddings=True)),
    "opt-350m-like": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "gpt2": (
        "gpt2",
        dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    ),
}


def random_model(kind="llama", **changes):
    name, sizes = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes | changes)).eval()
    with torch.no_grad():  # larger weights than at initialisation, so that losses differ enough to matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


@pytest.fixture
def make_model():
    return random_model


@pytest.fixture
def make_folder(tmp_path):
    def make(kind="llama", **changes):
        folder = tmp_path / "-".join([kind, *map(str, changes.values())])
        random_model(kind, **changes).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def batch():
    """Four rows of 24 tokens in a pack, of which row b is supervised from token 5 + b on."""
    ids = torch.randint(3, 97, (4, 24), generator=torch.Generator().manual_seed(1)).flatten()
    supervised = torch.arange(24) >= 5 + torch.arange(4)[:, None]
    label = supervised.flatten().nonzero().squeeze(1)
    return MicroBatch(
        input_ids_T=ids,
        positions_T=torch.arange(24).repeat(4),
        predicts_N=label - 1,
        labels_N=ids[label],
        row_N=label // 24,
        supervised_B=supervised.sum(1),
        index_B=torch.arange(4),
        shared=(),
        rows=tuple(Segment(24 * b, 24 * b + 24) for b in range(4)),
        tokens=96,
    )
