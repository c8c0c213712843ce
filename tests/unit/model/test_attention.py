"""The call that a GPU gets, against what a CPU computes: the kernel is stood in for by its documented definition."""

from dataclasses import replace
from functools import wraps

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import varlen

from lpsel.data.packing import MicroBatch, Segment, varlen_of
from lpsel.model import attention
from lpsel.model.attention import PackedAttention, flash_supports
from lpsel.model.loss import PerSampleLoss, per_sample_nll

SHARED = (Segment(0, 5), Segment(5, 14))
ROWS = (Segment(14, 21, 0, 5), Segment(21, 24, 5, 14), Segment(24, 30), Segment(30, 32, 0, 5))
TOKENS = 35  # the last three fill the pack up


def defined(query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale, window_size, enable_gqa):
    """varlen_attn by its documentation: each sequence for itself, causal from its end, `left` keys before a query."""
    left, right = window_size
    assert (right, enable_gqa) == (0, True)
    out = torch.zeros_like(query)
    for i in range(len(query_ends) - 1):
        q, k, v = (
            tensor[int(ends[i]) : int(ends[i + 1])]
            for tensor, ends in ((query, query_ends), (key, key_ends), (value, key_ends))
        )
        assert len(q) <= longest_query
        assert len(k) <= longest_key
        place = torch.arange(len(q))[:, None] + len(k) - len(q)
        seen = torch.arange(len(k)) <= place
        if left >= 0:
            seen &= torch.arange(len(k)) >= place - left
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
        score = torch.einsum("qhd,khd->hqk", q, k) * scale
        share = score.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out[int(query_ends[i]) : int(query_ends[i + 1])] = torch.einsum("hqk,khd->qhd", share, v)
    return out


def before_torch_2_12(*given, scale, window_size):
    """varlen_attn without the option `enable_gqa`."""
    return defined(*given, scale=scale, window_size=window_size, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by the fused kernel, and by products as in bfloat16
@pytest.mark.parametrize(
    ("window", "kernel"), [(None, defined), (1, defined), (4, defined), (100, defined), (4, before_torch_2_12)]
)
def test_the_gpu_kernel_computes_the_same_as_the_cpu(monkeypatch, window, kernel, dtype):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    packed = PackedAttention()
    packed.batch = pack_of([*SHARED, *ROWS, Segment(32, TOKENS)])
    torch.manual_seed(0)
    query, key, value = (torch.randn(heads, TOKENS, 8, dtype=dtype) for heads in (4, 2, 2))
    for _ in range(2):  # layers of one pass: the second has the first one's masks
        on_cpu, _ = packed(torch.nn.Module(), query[None], key[None], value[None], None, 0.3, sliding_window=window)
    on_gpu = packed._on_gpu(query, key, value, 0.3, window)
    torch.testing.assert_close(on_gpu, on_cpu[0], rtol=1e-5, atol=1e-6)


def pack_of(segments=None):
    nothing = torch.empty(0, dtype=torch.int64)
    return MicroBatch(*[nothing] * 7, SHARED, ROWS, 0, varlen_of(segments) if segments else None)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_both_kernels_for_bfloat16_compute_the_same_as_float32(monkeypatch, window, fused):
    calls, kernel = [], attention._fused
    monkeypatch.setattr(attention, "fused_is_faster", lambda: fused)
    monkeypatch.setattr(attention, "_fused", lambda *given: calls.append(given[0].dtype) or kernel(*given))
    packed = PackedAttention()
    packed.batch = pack_of()
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, TOKENS, 8) for heads in (4, 2, 2)]
    half = [tensor.bfloat16() for tensor in whole]
    expected, _ = packed(torch.nn.Module(), *whole, None, 0.3, sliding_window=window)
    with torch.no_grad():
        recorded, _ = packed(torch.nn.Module(), *half, None, 0.3, sliding_window=window)
    assert calls.count(torch.bfloat16) == fused * 7  # segments
    trained, _ = packed(torch.nn.Module(), *half, None, 0.3, sliding_window=window)
    assert calls.count(torch.bfloat16) == fused * 7  # with gradients, products
    for result in (recorded, trained):
        torch.testing.assert_close(result.float(), expected, rtol=0.03, atol=0.03)


def test_the_kernel_for_bfloat16_is_chosen_once():
    attention.fused_is_faster.cache_clear()
    first = attention.fused_is_faster()
    assert isinstance(first, bool)
    assert attention.fused_is_faster() is first
    assert attention.fused_is_faster.cache_info().misses == 1


@pytest.mark.parametrize(
    ("size", "value_size", "dtype", "capability", "takes"),
    [
        (64, 64, torch.bfloat16, (8, 0), True),
        (256, 256, torch.bfloat16, (9, 0), True),
        (64, 64, torch.float32, (9, 0), False),
        (64, 64, torch.bfloat16, (7, 5), False),
        (512, 512, torch.bfloat16, (9, 0), False),
        (20, 20, torch.bfloat16, (9, 0), False),
        (192, 128, torch.bfloat16, (9, 0), False),
    ],
)
def test_the_gpu_kernel_is_called_only_for_heads_it_supports(monkeypatch, size, value_size, dtype, capability, takes):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():  # tensors of a GPU without its memory
        query, value = (
            torch.empty(heads, 7, d, dtype=dtype, device="cuda") for heads, d in ((4, size), (2, value_size))
        )
        assert flash_supports(query, value) is takes
    assert not flash_supports(torch.empty(4, 7, 64), torch.empty(2, 7, 64))


@pytest.mark.parametrize("kind", ["llama", "tied", "opt-350m-like", "gpt2"])
def test_a_pass_never_synchronizes_with_the_gpu(make_model, batch, monkeypatch, kind):
    """Tensors without values go through a pack's forward and backward pass: no operation needs a value."""
    monkeypatch.setattr(attention, "flash_supports", lambda query, value: True)
    calls, kernel = [], varlen.varlen_attn
    monkeypatch.setattr(
        varlen, "varlen_attn", wraps(kernel)(lambda *given, **how: calls.append(1) or kernel(*given, **how))
    )
    model, batch = make_model(kind).to(torch.bfloat16), replace(batch, varlen=varlen_of([*batch.rows]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss = PerSampleLoss(model)
        nll_B = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        loss(batch, summed=True).backward()
        with pytest.raises(DataDependentOutputException):
            nll_B.tolist()
    assert nll_B.shape == (4,)
    assert len(calls) == 2 * 2  # layers, passes
    assert all(parameter.grad is not None for parameter in model.parameters())
