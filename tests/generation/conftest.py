"""Random models of a few thousand weights, of four architectures, and a byte tokenizer for them."""

import pytest


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Bytes, EOS and BOS; no padding token and no chat template. BOS is added in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(["<eos>", "<bos>", "<turn>"])
    bytes_only.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(scope="session")
def random_models():
    """Architecture -> a model whose weights are spread so far that no two tokens are nearly tied."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "opt": {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "do_layer_norm_before": False,
        },
        "gemma3_text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    }
    made = {}
    for kind, size in sizes.items():
        position = "n_positions" if kind == "gpt2" else "max_position_embeddings"
        config = AutoConfig.for_model(
            kind, vocab_size=259, bos_token_id=257, eos_token_id=256, pad_token_id=None, **{position: 64}, **size
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.6)
        made[kind.removesuffix("_text")] = model
    return made
