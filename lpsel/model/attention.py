"""Packed attention: every segment of a pack attends causally to its prefix and itself, without padding.

It replaces the attention function of a transformers model through `ALL_ATTENTION_FUNCTIONS`; the model's code does not
change. On a GPU, one variable-length flash-attention call computes all segments; a CPU computes them one by one.
"""

from functools import cache, partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from lpsel.data.packing import MicroBatch, Segment
from lpsel.model.device import time_ratio

# T tokens in a pack, Q queries and K keys in a segment, H query heads, G key heads, R = H / G, D head dimension

LAYER_TYPES = {"full_attention", "sliding_attention"}
TOKEN_MULTIPLE = 32  # for bfloat16 on CPUs, segments and packs are padded to a multiple of this many tokens
KNOWN_ARGUMENTS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position"}


def can_pack(model: Any) -> bool:
    """Whether tokens in `model` interact only through softmax attention that can be replaced.

    This excludes state-space, linear-attention, chunked-attention and ALiBi models, whose rows are padded instead.
    """
    config = model.config.get_text_config()
    if (
        getattr(model, "_is_stateful", False)
        or getattr(config, "alibi", False)
        or config.model_type in ("bloom", "mpt")
    ):
        return False
    layers = getattr(config, "layer_types", None) or []
    return bool(getattr(model, "_supports_attention_backend", False)) and LAYER_TYPES.issuperset(layers)


class PackedAttention:
    """The attention function of one model.

    Attributes:
        batch: the pack for the next forward and backward pass.
        flash: whether the variable-length kernel supports a query and a value; replaced in memory estimates.
        masks: the largest mask so far, by window, device and dtype.
    """

    def __init__(self) -> None:
        self.batch: MicroBatch
        self.flash = flash_supports
        self.name = f"lpsel_packed_{id(self)}"
        self.masks: dict[tuple[int | None, torch.device, torch.dtype], Tensor] = {}

    def install(self, model: Any) -> None:
        AttentionInterface.register(self.name, self.__call__)
        model.set_attn_implementation(self.name)

    @torch.compiler.disable
    def __call__(
        self,
        module: nn.Module,
        query_1HTD: Tensor,
        key_1GTD: Tensor,
        value_1GTD: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Compute attention with the signature that transformers expects; the result has shape (1, T, H, D)."""
        unknown = [name for name, value in others.items() if value is not None and name not in KNOWN_ARGUMENTS]
        if unknown:
            raise NotImplementedError(f"attention with {', '.join(unknown)}")
        dtype = autocast_dtype(value_1GTD)
        query_HTD, key_GTD, value_GTD = (tensor[0].to(dtype) for tensor in (query_1HTD, key_1GTD, value_1GTD))
        if scaling is None:
            scaling = query_HTD.shape[-1] ** -0.5
        if softcap is None and self.flash(query_HTD, value_GTD):
            attended_THD = self._on_gpu(query_HTD, key_GTD, value_GTD, scaling, sliding_window)
        else:
            attended_THD = self._by_segment(query_HTD, key_GTD, value_GTD, scaling, sliding_window, softcap)
        return attended_THD[None], None

    def _by_segment(
        self,
        query_HTD: Tensor,
        key_GTD: Tensor,
        value_GTD: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Compute attention one segment at a time, shape (T, H, D)."""
        tokens, segments = query_HTD.shape[1], [*self.batch.shared, *self.batch.rows]
        if segments[-1].stop < tokens:
            segments.append(Segment(segments[-1].stop, tokens))  # padding
        # The backward pass of a slice fills a tensor as large as the whole pack; that of `split` is one `cat`.
        lengths = [s.stop - s.start for s in segments]
        queries, keys, values = (tensor.split(lengths, dim=1) for tensor in (query_HTD, key_GTD, value_GTD))
        dtype = query_HTD.dtype
        precise = torch.promote_types(dtype, torch.float32)  # accumulates gradients of a shared prefix
        prefixes = {
            prefix.start: (key.to(precise), value.to(precise))
            for prefix, key, value in zip(self.batch.shared, keys, values, strict=False)  # the first segments
        }
        parts = []
        for s, query_HQD, key_GKD, value_GKD in zip(segments, queries, keys, values, strict=True):
            if s.prefix_stop:
                prefix_key, prefix_value = prefixes[s.prefix_start]
                key_GKD = torch.cat([prefix_key.to(dtype), key_GKD], dim=1)
                value_GKD = torch.cat([prefix_value.to(dtype), value_GKD], dim=1)
            parts.append(self._segment(query_HQD, key_GKD, value_GKD, scaling, window, softcap))
        return torch.cat(parts, dim=1).transpose(0, 1)

    def _segment(
        self,
        query_HQD: Tensor,
        key_GKD: Tensor,
        value_GKD: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Compute attention of the last Q of K tokens to all K tokens, shape (H, Q, D)."""
        queries = query_HQD.shape[1]
        if padding := padding_tokens(key_GKD.shape[1], query_HQD):
            query_HQD, key_GKD, value_GKD = (
                F.pad(tensor, (0, 0, 0, padding)) for tensor in (query_HQD, key_GKD, value_GKD)
            )
        length = key_GKD.shape[1]
        mask_QK = self._mask(length, window, query_HQD)[length - query_HQD.shape[1] : length, :length]
        if softcap is None and (
            query_HQD.dtype == torch.float32 or (not torch.is_grad_enabled() and fused_is_faster())
        ):
            attended_HQD = _fused(query_HQD, key_GKD, value_GKD, mask_QK, scaling)
        else:
            attended_HQD = _products(query_HQD, key_GKD, value_GKD, mask_QK, scaling, softcap)
        return attended_HQD[:, :queries] if padding else attended_HQD

    def _mask(self, length: int, window: int | None, query: Tensor) -> Tensor:
        """Return the additive mask by position in the row: 0 where a query attends to a key, -inf elsewhere.

        It has the dtype of `query` and a shape of at least (length, length).
        """
        settings = window, query.device, query.dtype
        mask = self.masks.get(settings)
        if mask is None or len(mask) < length:
            seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_()
            if window is not None:
                seen.triu_(1 - window)
            mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
            self.masks[settings] = mask
        return mask

    def _on_gpu(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
        """Compute attention of all segments with one call of the variable-length kernel, shape (T, H, D)."""
        from torch.nn.attention.varlen import varlen_attn

        varlen = self.batch.varlen
        assert varlen is not None, "the pack was made for a CPU"
        attended_THD: Any = varlen_attn(
            query.transpose(0, 1).contiguous(),
            self._gather(key.transpose(0, 1), varlen.seen_K),
            self._gather(value.transpose(0, 1), varlen.seen_K),
            varlen.query_ends_S1,
            varlen.key_ends_S1,
            varlen.longest_query,
            varlen.longest_key,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            **_grouped_heads(varlen_attn),
        )
        return attended_THD

    def _gather(self, tensor_TGD: Tensor, seen_K: Tensor) -> Tensor:
        """Gather keys or values in the order the kernel reads them, repeating a shared prefix for every row."""
        if not self.batch.shared:
            return tensor_TGD.contiguous()
        gathered_KGD: Tensor = _Gather.apply(tensor_TGD, seen_K)
        return gathered_KGD


@cache
def _grouped_heads(kernel: Any) -> dict[str, Any]:
    """Return the argument that allows fewer key heads than query heads; before torch 2.12, none is needed."""
    return {"enable_gqa": True} if "enable_gqa" in signature(kernel).parameters else {}


class _Gather(torch.autograd.Function):
    """`index_select` along the first dimension that sums gradients in float32, since many rows can share a prefix."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = source.shape
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        summed = outer[0].new_zeros(ctx.shape, dtype=torch.float32).index_add_(0, index, outer[0].float())
        return summed.to(outer[0].dtype), None


def _fused(query_HQD: Tensor, key_GKD: Tensor, value_GKD: Tensor, mask_QK: Tensor, scaling: float) -> Tensor:
    query, key, value = query_HQD[None], key_GKD[None], value_GKD[None]  # the fused kernel needs four dimensions
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_QK, scale=scaling, enable_gqa=True)[0]


def _products(
    query_HQD: Tensor, key_GKD: Tensor, value_GKD: Tensor, mask_QK: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    heads, groups, (queries, length) = len(query_HQD), len(key_GKD), mask_QK.shape
    query_GQD = query_HQD.reshape(groups, heads // groups * queries, -1)
    score_GQK = torch.bmm(query_GQD * scaling, key_GKD.transpose(1, 2))
    if softcap is not None:
        score_GQK = softcap * torch.tanh(score_GQK / softcap)
    score_GRQK = score_GQK.view(groups, heads // groups, queries, length)
    weight_GRQK = torch.softmax(score_GRQK + mask_QK, dim=-1)
    return torch.bmm(weight_GRQK.view_as(score_GQK), value_GKD).view(heads, queries, -1)


@cache
def fused_is_faster() -> bool:
    """Whether bfloat16 attention without gradients is faster in the fused kernel than as matmuls on this CPU.

    The kernel takes half as long with AMX and up to twice as long with AVX-512; its backward pass is slower on both.
    """
    query = torch.ones(9, 100, 64, dtype=torch.bfloat16)
    key, mask = query[:3], torch.zeros(100, 100, dtype=torch.bfloat16)
    fused, products = (partial(kernel, query, key, key, mask, 0.125) for kernel in (_fused, _products))
    return time_ratio(fused, products) < 1


def flash_supports(query: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's flash attention supports a query of shape (H, T, D) and a value of shape (G, T, D)."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] == size <= 256
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def padding_tokens(length: int, tensor: Tensor) -> int:
    """Return how many padding tokens to add to `length` tokens, so that matmuls with `tensor` have few shapes.

    For bfloat16, CPUs compile and cache a kernel for every matmul shape.
    """
    compiled = tensor.device.type == "cpu" and autocast_dtype(tensor) == torch.bfloat16
    return -length % TOKEN_MULTIPLE if compiled else 0


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which matmuls with `tensor` are computed."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
