"""Per-sample loss: computes the NLL of every supervised token, and no logits for other tokens.

Head and loss are computed in chunks, so that the full (tokens, vocabulary) tensor is never materialized.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lpsel.data.packing import MicroBatch, Segment, varlen_of
from lpsel.errors import UserError
from lpsel.model.attention import PackedAttention, autocast_dtype, can_pack, padding_tokens
from lpsel.model.device import gpu_memory, logit_bytes

# B rows, T tokens and N supervised tokens in a pack, H hidden size, V vocabulary size

CACHE_BYTES = 4 * 2**20  # float32 data that a CPU processes at a time, small enough to stay in its cache

Measure = Callable[[Tensor, Tensor], Tensor]  # (logits (N, V), labels (N,)) -> values (N,)


class PerSampleLoss(nn.Module):
    """Wraps a transformers causal language model and returns the losses of its supervised tokens.

    Works for every architecture whose logits are its output embedding times the last hidden state, scaled or
    soft-capped as configured; `check_head` compares the result with the model's own logits. Models that support packs
    (`packed`; None: determined by `can_pack`) use `lpsel.model.attention` until `release` is called.

    Attributes:
        head: the implementation of output head and loss: `own`, or `liger` for the fused kernels of Liger (Hsu et al.
            2024, arXiv 2410.10989).
    """

    head = "own"

    def __init__(self, model: Any, packed: bool | None = None) -> None:
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        self.token_nll: Measure = token_nll
        self.own_attention = config._attn_implementation
        packed = can_pack(model) if packed is None else packed
        self.attention = PackedAttention() if packed else None
        if self.attention:
            self.attention.install(model)

    def forward(self, batch: MicroBatch, summed: bool = False, measure: Measure | None = None) -> Tensor:
        """Compute the NLL of every supervised token, or `measure` instead: float32 (N,), without a gradient.

        With `summed`, return the sum of the NLLs, weighted with the batch's weights, with a gradient.
        """
        fused = self.head == "liger" and measure is None and len(batch.labels_N) > 0
        if summed:
            hidden_NH = self.hidden(batch)
            if fused:
                if batch.weight_N is None:
                    return self._by_liger(hidden_NH, batch.labels_N, "sum")
                return (self._by_liger(hidden_NH, batch.labels_N, "none") * batch.weight_N).sum()
            weights = list(self.model.get_output_embeddings().parameters())
            chunk = self._chunk(hidden_NH)
            return _SummedNLL.apply(
                hidden_NH, batch.labels_N, batch.weight_N, self.logits, self.token_nll, chunk, *weights
            )
        with torch.no_grad():
            hidden_NH = self.hidden(batch)
            if fused:
                return self._by_liger(hidden_NH, batch.labels_N, "none")
            weights = [_autocast(weight) for weight in self.model.get_output_embeddings().parameters()]
            compute, size = measure or self.token_nll, self._chunk(hidden_NH)
            chunks = zip(hidden_NH.split(size), batch.labels_N.split(size), strict=True)
            return torch.cat([compute(self.logits(hidden, weights), labels) for hidden, labels in chunks])

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Compute the last hidden states that predict the supervised tokens, shape (N, H)."""
        if self.attention is None:
            return self._hidden_of_padded(batch)
        self.attention.batch = batch
        padding = padding_tokens(len(batch.input_ids_T), self.model.get_input_embeddings().weight)
        ids_1T = F.pad(batch.input_ids_T, (0, padding))[None]
        positions_1T = F.pad(batch.positions_T, (0, padding))[None]
        hidden_1TH = self.model.base_model(
            input_ids=ids_1T, position_ids=positions_1T, use_cache=False
        ).last_hidden_state
        return hidden_1TH[0].index_select(0, batch.predicts_N)

    def _hidden_of_padded(self, batch: MicroBatch) -> Tensor:
        """Run rows padded on the right. They need no mask, since a causal model does not attend to later tokens."""
        whole = [[*range(s.prefix_start, s.prefix_stop), *range(s.start, s.stop)] for s in batch.rows]
        width = max(map(len, whole))
        device = batch.input_ids_T.device
        padded = [row + row[-1:] * (width - len(row)) for row in whole]
        position_BT = torch.tensor(padded, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        hidden_BTH = self.model.base_model(input_ids=batch.input_ids_T[position_BT], use_cache=False).last_hidden_state
        flat_N = batch.row_N * width + batch.positions_T[batch.predicts_N]
        return hidden_BTH.flatten(0, 1).index_select(0, flat_N)

    def logits(self, hidden_NH: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        """Compute logits from hidden states, shape (N, V), optionally with other head weights."""
        head = self.model.get_output_embeddings()
        named = dict(head.named_parameters())
        if weights is not None:
            named = dict(zip(named, weights, strict=True))
        logits_NV = functional_call(head, named, (hidden_NH,))
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def compile_nll(self) -> None:
        """Compile the computation of NLLs from logits, which then takes two thirds of the time on a CPU."""
        self.token_nll = torch.compile(_nll, dynamic=True)

    def _by_liger(self, hidden_NH: Tensor, labels_N: Tensor, reduction: str) -> Tensor:
        """Compute NLLs, or their sum, of at least one token. Gradients of the head are accumulated in float32."""
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias * self.scale
        options = {"reduction": reduction, "softcap": self.softcap, "accum_dtype": torch.float32}
        loss: Tensor = LigerFusedLinearCrossEntropyLoss(**options)(head.weight, hidden_NH * self.scale, labels_N, bias)
        return loss

    def release(self) -> None:
        """Restore the model's own attention."""
        self.model.set_attn_implementation(self.own_attention)

    def _chunk(self, hidden_NH: Tensor) -> int:
        bytes_per_token = 4 * self.model.get_output_embeddings().weight.shape[0]
        return max(1, int(logit_bytes(gpu_memory(hidden_NH.device)) // bytes_per_token))


def token_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Compute the NLL -log softmax(z)_y of every token in nats, float32, shape (N,)."""
    size = _rows_at_once(logits_NV)
    parts = zip(logits_NV.split(size), labels_N.split(size), strict=True)
    return torch.cat([_nll(z_NV, y_N) for z_NV, y_N in parts])


def _nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


class _SummedNLL(torch.autograd.Function):
    """Sums the NLLs and computes the gradient in the same pass over chunks, so that logits are computed only once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        labels_N: Tensor,
        weight_N: Tensor | None,
        logits: Callable[[Tensor, Sequence[Tensor]], Tensor],
        token_nll: Measure,
        chunk: int,
        *weights: Tensor,
    ) -> Tensor:
        used = [_autocast(weight).detach().requires_grad_(weight.requires_grad) for weight in weights]
        trained = [weight for weight in used if weight.requires_grad]
        hidden_gradient = torch.empty_like(hidden_NH)
        weight_gradients: list[Tensor] = []
        total = torch.zeros((), device=hidden_NH.device)
        for start in range(0, len(hidden_NH), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                hidden = hidden_NH[part].detach().requires_grad_()
                nll_N = token_nll(logits(hidden, used), labels_N[part])
                nll = (nll_N if weight_N is None else nll_N * weight_N[part]).sum()
                hidden_gradient[part], *chunk_gradients = torch.autograd.grad(nll, [hidden, *trained])
            if weight_gradients:
                for gradient, chunk_gradient in zip(weight_gradients, chunk_gradients, strict=True):
                    _add(gradient, chunk_gradient)
            else:
                weight_gradients = [gradient.float() for gradient in chunk_gradients]
            total += nll.detach()
        if not len(hidden_NH):
            weight_gradients = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        ctx.save_for_backward(hidden_gradient, *weight_gradients)
        ctx.weights = [(weight.requires_grad, weight.dtype) for weight in weights]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        hidden_gradient, *trained_gradients = ctx.saved_tensors
        remaining = iter(trained_gradients)
        weight_gradients = [
            next(remaining).mul_(outer[0]).to(dtype) if trained else None for trained, dtype in ctx.weights
        ]
        return hidden_gradient.mul_(outer[0]), None, None, None, None, None, *weight_gradients


def _add(total: Tensor, addend: Tensor) -> None:
    """Add to `total` in place, in slices that fit the cache of a CPU."""
    size = _rows_at_once(total)
    for total_slice, addend_slice in zip(total.split(size), addend.split(size), strict=True):
        total_slice += addend_slice


def _rows_at_once(tensor: Tensor) -> int:
    """Return how many rows of logits or weights to process at a time: on a CPU, as many as fit its cache in float32."""
    return len(tensor) if tensor.is_cuda else max(1, CACHE_BYTES // (4 * tensor.shape[1:].numel()))


def _autocast(weight: Tensor) -> Tensor:
    """Cast a weight to autocast's dtype, once instead of in every chunk."""
    return weight.to(autocast_dtype(weight)) if weight.is_floating_point() else weight


def per_sample_nll(token_nll_N: Tensor, row_N: Tensor, supervised_B: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood of each row in nats per supervised token, float32, shape (B,).

    NaN for a row without a supervised token. `row_N` is the row of each token, `supervised_B` the token count per row.
    """
    sums_B = token_nll_N.new_zeros(len(supervised_B)).index_add_(0, row_N, token_nll_N)
    return sums_B / supervised_B


@torch.no_grad()
def check_head(loss: PerSampleLoss) -> None:
    """Compare the logits computed here with the model's own on two packed rows with a shared prefix.

    If the model's attention needs arguments that packing does not support, its rows are padded from then on.

    Raises:
        UserError: the architecture transforms its logits in ways other than scaling and soft-capping.
    """
    model = loss.model
    ids_T = torch.arange(16, device=model.device) * 7919 % model.get_output_embeddings().weight.shape[0]
    rows = torch.stack([ids_T[:11], torch.cat([ids_T[:6], ids_T[11:]])])
    batch = _two_rows(ids_T)
    try:
        logits_NV = loss.logits(loss.hidden(batch)).float()
    except NotImplementedError:
        loss.release()
        loss.attention = None
        logits_NV = loss.logits(loss.hidden(batch)).float()
    loss.release()
    index_N = batch.row_N * 11 + batch.positions_T[batch.predicts_N]
    reference_NV = model(input_ids=rows, use_cache=False).logits.float().flatten(0, 1)[index_N]
    if loss.attention:
        loss.attention.install(model)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    scale = float(reference_NV.nan_to_num().abs().max())
    if not torch.allclose(logits_NV, reference_NV, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        off = float((logits_NV - reference_NV).abs().max())
        problem = f"its logits are not its output embedding times the last hidden state (off by {off:.3g})"
        raise UserError(model.config.model_type, problem=problem, hint="use a model of another architecture")


def _two_rows(ids_T: Tensor) -> MicroBatch:
    """Create a pack of two rows that share tokens 0 to 5 and continue with tokens 6 to 10 and 11 to 15."""
    shared, rows = (Segment(0, 6),), (Segment(6, 11, 0, 6), Segment(11, 16, 0, 6))
    return MicroBatch(
        input_ids_T=ids_T,
        positions_T=torch.tensor([*range(11), *range(6, 11)]),
        predicts_N=torch.arange(6, 16),
        labels_N=ids_T[6:],
        row_N=torch.arange(10) // 5,
        supervised_B=torch.tensor([5, 5]),
        index_B=torch.arange(2),
        shared=shared,
        rows=rows,
        tokens=22,
        varlen=varlen_of([*shared, *rows]),
    ).to(ids_T.device)
