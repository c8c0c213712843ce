"""Check a GPU's attention kernel against PyTorch's SDPA in float32 before training starts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpsel.data.packing import MicroBatch, Segment, varlen_of
from lpsel.errors import UserError
from lpsel.model.attention import PackedAttention, flash_supports

# T tokens in a pack, Q queries and K keys in a segment, H query heads, G key heads, D head dimension

# Largest error relative to the norm. A bfloat16 value is rounded by at most 2^-9; float32 matmuls may use TF32.
ROUNDING = {torch.bfloat16: 1e-2, torch.float32: 1e-3}
WINDOW = 64  # short enough to matter in PACK

# Laid out like the packs of `lpsel.data.packing`: prefixes, then rows, then a padding token
_ONE, _TWO = Segment(0, 41), Segment(41, 60)
_ROWS = [Segment(60 + 30 * i, 90 + 30 * i, *(_ONE if i % 2 else _TWO)[:2]) for i in range(8)]
PACK = [_ONE, _TWO, *_ROWS, Segment(300, 430), Segment(430, 431)]


class Heads(NamedTuple):
    """Numbers of query and key heads, and the head dimension."""

    queries: int
    keys: int
    size: int

    @classmethod
    def of(cls, config: Any) -> "Heads":
        text = config.get_text_config()
        queries = text.num_attention_heads
        keys = getattr(text, "num_key_value_heads", None) or queries
        return cls(queries, keys, getattr(text, "head_dim", None) or text.hidden_size // queries)


def check_kernel(config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Check attention with a model's heads on `device`, forward and backward, also with a window if the model has one.

    Raises:
        UserError: an error relative to the norm exceeds ROUNDING.
    """
    for window in {None, WINDOW if getattr(config.get_text_config(), "sliding_window", None) else None}:
        with torch.device("cpu"):  # Lightning makes the GPU the default device while a model is created
            errors = attention_errors(PACK, Heads.of(config), window, dtype, device)
        wrong = [f"{error:.1%} ({part})" for part, error in errors.items() if not error <= ROUNDING[dtype]]  # also NaN
        if wrong:
            kind = str(dtype).removeprefix("torch.")
            problem = f"attention in {kind} is off by {', '.join(wrong)} on this device"
            hint = "set trainer.precision=32-true, or install another version of PyTorch"
            raise UserError(config.model_type, problem=problem, hint=hint)


def attention_errors(
    segments: Sequence[Segment], heads: Heads, window: int | None, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Compute the errors of the result and of the gradients of query, key and value.

    They are relative to the norm of the result and to the norm of all three gradients, respectively.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = segments[-1].stop
    inputs = [
        torch.randn(1, count, tokens, heads.size, generator=generator).to(device, dtype).requires_grad_()
        for count in (heads.queries, heads.keys, heads.keys)
    ]
    exact_inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]
    packed = PackedAttention()
    packed.batch = _pack_of(segments).to(device)
    result_1THD, _ = packed(nn.Module(), *inputs, None, sliding_window=window)
    outer = torch.randn(result_1THD.shape, generator=generator).to(device, dtype)
    reference_1THD = _by_sdpa(segments, window, *exact_inputs)
    gradients = torch.autograd.grad(result_1THD, inputs, outer, materialize_grads=True)
    expected = torch.autograd.grad(reference_1THD, exact_inputs, outer.float())
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    result_error = (result_1THD - reference_1THD).norm() / reference_1THD.norm()
    gradient_errors = [(gradient - exact).norm() / norm for gradient, exact in zip(gradients, expected, strict=True)]
    errors = torch.stack([result_error, *gradient_errors]).tolist()
    return dict(zip(("result", "query", "key", "value"), errors, strict=True))


def kernel_of(heads: Heads, dtype: torch.dtype, device: torch.device) -> str:
    """Return which kernel computes attention with these heads: `varlen`, or `segments` for one segment at a time."""
    query_HTD = torch.empty(heads.queries, 1, heads.size, dtype=dtype, device=device)
    return "varlen" if flash_supports(query_HTD, query_HTD) else "segments"


def _pack_of(segments: Sequence[Segment]) -> MicroBatch:
    """Create a pack of segments without labels, for attention only."""
    starts = {s.prefix_start for s in segments if s.prefix_stop}
    shared = [s for s in segments if s.start in starts and not s.prefix_stop]
    rows = [s for s in segments if s not in shared]
    empty = torch.empty(0, dtype=torch.int64)
    return MicroBatch(
        input_ids_T=empty,
        positions_T=empty,
        predicts_N=empty,
        labels_N=empty,
        row_N=empty,
        supervised_B=empty,
        index_B=empty,
        shared=tuple(shared),
        rows=tuple(rows),
        tokens=0,
        varlen=varlen_of([*shared, *rows]),
    )


def _by_sdpa(
    segments: Sequence[Segment], window: int | None, query_1HTD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor
) -> Tensor:
    """Compute attention one segment at a time with SDPA, shape (1, T, H, D)."""
    parts = []
    for s in segments:
        seen = torch.tensor([*range(s.prefix_start, s.prefix_stop), *range(s.start, s.stop)], device=query_1HTD.device)
        position = torch.arange(len(seen), device=seen.device)
        mask = position[None] <= position[:, None]
        if window is not None:
            mask &= position[None] > position[:, None] - window
        mask_QK = mask[s.prefix_stop - s.prefix_start :]
        query_1HQD = query_1HTD[:, :, s.start : s.stop]
        key_1GKD, value_1GKD = key_1GTD.index_select(2, seen), value_1GTD.index_select(2, seen)
        parts.append(F.scaled_dot_product_attention(query_1HQD, key_1GKD, value_1GKD, mask_QK, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)
