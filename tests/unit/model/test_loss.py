"""Per-sample NLL against transformers' own loss, for every kind of head there is."""

import os
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import Prefixes
from lpsel.errors import UserError
from lpsel.model import device
from lpsel.model.loss import PerSampleLoss, check_head, per_sample_nll

SMALL = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LLAMA_LIKE = SMALL | dict(intermediate_size=48, num_key_value_heads=2)
MOE = dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
ARCHITECTURES = {
    # OPT-350M: embeddings narrower than the layers, normalisation after them
    "opt-350m-like": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "opt": ("opt", SMALL | dict(ffn_dim=48, word_embed_proj_dim=32)),
    "llama": ("llama", LLAMA_LIKE),
    "gemma3": ("gemma3_text", LLAMA_LIKE | dict(head_dim=8, sliding_window=8)),
    "gemma2, capped logits": ("gemma2", LLAMA_LIKE | dict(head_dim=8, final_logit_softcapping=2.0)),
    "qwen3": ("qwen3", LLAMA_LIKE | dict(head_dim=8)),
    "gpt2": ("gpt2", dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen3 mixture of experts": ("qwen3_moe", LLAMA_LIKE | MOE),
    "mistral": ("mistral", LLAMA_LIKE | dict(sliding_window=8)),
    "phi, biased head": ("phi", SMALL | dict(intermediate_size=48)),
    "gpt_neox": ("gpt_neox", SMALL | dict(intermediate_size=48)),
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


class Rows:
    """Rows with the interface of Tokens: (token ids, first supervised position); nothing after it is unsupervised."""

    def __init__(self, rows):
        self.rows = rows
        self.lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)

    def input_ids(self, i):
        return self.rows[i][0].numpy().astype(np.int32)

    def supervised(self, i):
        ids, start = self.rows[i]
        return np.arange(len(ids)) >= start


def rows_of_different_lengths():
    """Four rows; the last begins with five tokens of the second, the third with eight of the first."""
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randint(3, 97, (n,), generator=generator), s) for n, s in [(17, 8), (19, 10), (12, 11), (30, 5)]]
    rows[3][0][:5] = rows[1][0][:5]
    rows[2][0][:8] = rows[0][0][:8]
    return rows


def shared_beginnings(rows):
    ids = [np.empty(0, dtype=np.int32), Rows(rows).input_ids(1)[:5], Rows(rows).input_ids(0)[:8]]
    return Prefixes(ids, np.array([2, 1, 2, 1], dtype=np.int16), np.array([8, 5, 8, 5], dtype=np.int32))


def batch_of(rows, shared=True):
    return collate(Rows(rows), np.arange(len(rows)), shared_beginnings(rows) if shared else None)


def transformers_own_loss(model, ids, start):
    labels = ids.clone()
    labels[:start] = -100
    return model(input_ids=ids[None], labels=labels[None]).loss


@pytest.mark.parametrize("shared", [True, False], ids=["shared beginnings", "whole rows"])
def test_per_sample_nll_equals_transformers_own_loss_row_by_row(model, shared):
    rows = rows_of_different_lengths()
    batch = batch_of(rows, shared)
    loss = PerSampleLoss(model)
    with torch.no_grad():
        ours = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        loss.release()
        own = torch.stack([transformers_own_loss(model, ids, start) for ids, start in rows])
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=0)


def test_gradient_equals_transformers_own_gradient_whatever_the_chunk(model, monkeypatch):
    rows = rows_of_different_lengths()
    tokens = [len(ids) - start for ids, start in rows]
    own = sum(transformers_own_loss(model, ids, start) * n for (ids, start), n in zip(rows, tokens, strict=True))
    (own / sum(tokens)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(device, "LOGIT_BYTES", 5 * 4 * 97)  # five tokens a chunk
    (PerSampleLoss(model)(batch_of(rows), summed=True) / sum(tokens)).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(
    find_spec("liger_kernel") is None or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs liger-kernel, and a GPU or TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["llama", "opt-350m-like", "phi, biased head", "granite, divided logits"])
def test_ligers_head_gives_the_same_losses_and_gradients(name, weighted):
    """The vocabulary of 97 is no power of two. Triton's interpreter does not support soft-capping."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = batch_of([(ids, len(ids) - 4) for ids, _ in rows_of_different_lengths()]).to(where)
    if weighted:
        batch = replace(batch, weight_N=torch.linspace(0.5, 2, len(batch.labels_N), device=where))
    none = replace(batch, predicts_N=batch.predicts_N[:0], labels_N=batch.labels_N[:0], weight_N=None)
    computed = {}
    for head in ("own", "liger"):
        loss = PerSampleLoss(tiny_model(name).to(where))
        loss.head = head
        total = loss(batch, summed=True)
        total.backward()
        gradients = {name: p.grad for name, p in loss.model.named_parameters() if p.grad is not None}
        computed[head] = {"nll": loss(batch), "summed": total.detach(), "none": loss(none, summed=True).detach()}
        computed[head] |= gradients
    assert len(computed["own"]) > 10
    torch.testing.assert_close(computed["liger"], computed["own"], rtol=1e-4, atol=1e-6)


def test_head_check_accepts_every_known_architecture(model):
    check_head(PerSampleLoss(model))


def test_head_check_rejects_logits_it_cannot_reproduce():
    model = tiny_model("llama")
    loss = PerSampleLoss(model)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.flip(-1) if args[0].ndim == 3 else logits)
    with pytest.raises(UserError, match="llama: its logits are not its output embedding times the last hidden state"):
        check_head(loss)


def test_a_row_without_supervised_tokens_has_no_nll():
    nll = per_sample_nll(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), torch.tensor([2, 0, 1]))
    assert nll[[0, 2]].tolist() == [2.0, 5.0]
    assert nll[1].isnan()


def test_loss_is_float32_whatever_the_models_precision():
    loss = PerSampleLoss(tiny_model("llama").bfloat16())
    assert loss(batch_of(rows_of_different_lengths())).dtype == torch.float32


def test_logits_of_prompt_tokens_are_never_computed():
    model = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(tuple(logits.shape)))
    batch = batch_of(rows_of_different_lengths())
    PerSampleLoss(model)(batch)
    assert seen == [(len(batch.labels_N), 97)]


def test_a_shared_prefix_is_fed_once():
    model = tiny_model("llama")
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    rows = rows_of_different_lengths()
    PerSampleLoss(model)(batch_of(rows))
    assert seen == [sum(len(ids) for ids, _ in rows) - 5 - 8]


@pytest.mark.parametrize("name", ["llama", "gemma2, capped logits", "gemma3"])
def test_products_in_bfloat16_agree_with_float32(name):
    rows = rows_of_different_lengths()
    exact = PerSampleLoss(tiny_model(name))(batch_of(rows))
    rounded = PerSampleLoss(tiny_model(name).bfloat16())(batch_of(rows))
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)


def test_a_model_without_softmax_attention_gets_padded_rows():
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval()
    rows = rows_of_different_lengths()
    loss = PerSampleLoss(model)
    assert loss.attention is None
    check_head(loss)
    batch = batch_of(rows)
    with torch.no_grad():
        ours = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        own = torch.stack([transformers_own_loss(model, ids, start) for ids, start in rows])
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=0)


def test_a_model_with_unsupported_attention_arguments_gets_padded_rows():
    torch.manual_seed(0)
    sizes = LLAMA_LIKE | dict(head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=8)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes)).eval()  # attention sinks
    rows = rows_of_different_lengths()
    loss = PerSampleLoss(model)
    check_head(loss)
    assert loss.attention is None
    batch = batch_of(rows)
    with torch.no_grad():
        ours = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        own = torch.stack([transformers_own_loss(model, ids, start) for ids, start in rows])
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=0)


def test_a_released_model_attends_as_before():
    model = tiny_model("llama")
    ids = rows_of_different_lengths()[3][0][None]
    before = model(ids).logits
    loss = PerSampleLoss(model)
    loss(batch_of(rows_of_different_lengths()))
    loss.release()
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
