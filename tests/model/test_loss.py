"""Per-sample NLL against transformers' own loss, for every kind of head there is."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.errors import UserError
from lpsel.model import loss as loss_module
from lpsel.model.loss import PerSampleLoss, check_head, per_sample_nll

SMALL = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LLAMA_LIKE = SMALL | dict(intermediate_size=48, num_key_value_heads=2)
ARCHITECTURES = {
    # OPT-350M: embeddings narrower than the layers, normalisation after them
    "opt-350m-like": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "opt": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=32)),
    "llama": ("llama", LLAMA_LIKE),
    "gemma3": ("gemma3_text", LLAMA_LIKE | dict(head_dim=8, sliding_window=8)),
    "gemma2, capped logits": ("gemma2", LLAMA_LIKE | dict(head_dim=8, final_logit_softcapping=2.0)),
    "qwen3": ("qwen3", LLAMA_LIKE | dict(head_dim=8)),
    "gpt2": ("gpt2", dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "granite, divided logits": ("granite", LLAMA_LIKE | dict(logits_scaling=4.0)),
    "cohere, scaled logits": ("cohere", LLAMA_LIKE | dict(logit_scale=0.0625)),
}


def tiny_model(name):
    kind, sizes = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():  # larger weights than at initialisation, so that logits differ enough to matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


def rows_of_different_lengths():
    """Rows as (token ids, first supervised position); nothing after it is unsupervised."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(3, 97, (n,), generator=generator), s) for n, s in [(7, 3), (19, 10), (12, 11), (30, 2)]]


def batch_of(rows):
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    supervised = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, (ids, start) in enumerate(rows):
        input_ids[b, : len(ids)] = ids
        supervised[b, start : len(ids)] = True
    flat = supervised.flatten().nonzero().squeeze(1)
    return input_ids, flat - 1, input_ids.flatten()[flat], flat // width


def transformers_own_loss(model, ids, start):
    labels = ids.clone()
    labels[:start] = -100
    return model(input_ids=ids[None], labels=labels[None]).loss


def test_per_sample_nll_equals_transformers_own_loss_row_by_row(model):
    rows = rows_of_different_lengths()
    input_ids, predicts, labels, row = batch_of(rows)
    with torch.no_grad():
        ours = per_sample_nll(PerSampleLoss(model)(input_ids, predicts, labels), row, len(rows))
        own = torch.stack([transformers_own_loss(model, ids, start) for ids, start in rows])
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=0)


def test_gradient_equals_transformers_own_gradient_whatever_the_chunk(model, monkeypatch):
    rows = rows_of_different_lengths()
    input_ids, predicts, labels, _ = batch_of(rows)
    tokens = [len(ids) - start for ids, start in rows]
    own = sum(transformers_own_loss(model, ids, start) * n for (ids, start), n in zip(rows, tokens, strict=True))
    (own / sum(tokens)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(loss_module, "LOGIT_BYTES", 5 * 4 * 97)  # five tokens a chunk
    nll = PerSampleLoss(model)(input_ids, predicts, labels)
    (nll.sum() / sum(tokens)).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_head_check_accepts_every_known_architecture(model):
    check_head(PerSampleLoss(model))


def test_head_check_refuses_logits_it_cannot_reproduce():
    model = tiny_model("llama")
    loss = PerSampleLoss(model)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.flip(-1) if args[0].ndim == 3 else logits)
    with pytest.raises(UserError, match="llama: its logits are not its output embedding times the last hidden state"):
        check_head(loss)


def test_a_row_without_supervised_tokens_has_no_nll():
    nll = per_sample_nll(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)
    assert nll[[0, 2]].tolist() == [2.0, 5.0]
    assert nll[1].isnan()


def test_loss_is_float32_whatever_the_models_precision():
    model = tiny_model("llama").bfloat16()
    input_ids, predicts, labels, _ = batch_of(rows_of_different_lengths())
    assert PerSampleLoss(model)(input_ids, predicts, labels).dtype == torch.float32


def test_logits_of_prompt_tokens_are_never_computed():
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(tuple(logits.shape)))
    input_ids, predicts, labels, _ = batch_of(rows_of_different_lengths())
    PerSampleLoss(model)(input_ids, predicts, labels)
    assert seen == [(len(labels), 97)]
