"""Per-sample loss: the NLL of every supervised token, without logits for any other.

Only a token that predicts a supervised one needs the output head. Its hidden states are taken out of the batch,
pushed through the head in chunks and reduced at once, so that the (batch, length, vocabulary) tensor never exists.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lpsel.errors import UserError

# B rows of a batch, T tokens of a row (padded), N supervised tokens of the batch, H hidden size, V vocabulary

LOGIT_BYTES = 128 * 2**20  # of one chunk in float32; a handful of such chunks is what the head needs above the weights


class PerSampleLoss(nn.Module):
    """A causal language model of transformers, reduced to the losses of its supervised tokens.

    Works for every architecture whose logits are its output embedding times the last hidden state, scaled or
    soft-capped as the configuration says; `check_head` compares against the model's own logits.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        head = model.get_output_embeddings()
        self.chunk = max(1, LOGIT_BYTES // (4 * head.weight.shape[0]))

    def forward(self, input_ids_BT: Tensor, predicts_N: Tensor, labels_N: Tensor) -> Tensor:
        """NLL of every supervised token, in nats, float32, shape (N,).

        Args:
            input_ids_BT: right-padded token ids. No attention mask: a causal model never looks at what stands right.
            predicts_N: flat positions (in B*T) whose hidden state predicts a label.
            labels_N: token ids.
        """
        hidden_BTH = self.model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, predicts_N)
        chunks = zip(hidden_NH.split(self.chunk), labels_N.split(self.chunk), strict=True)
        if torch.is_grad_enabled() and len(labels_N) > self.chunk:
            return torch.cat([checkpoint(self._token_nll, h, y, use_reentrant=False) for h, y in chunks])
        return torch.cat([self._token_nll(h, y) for h, y in chunks])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """The model's logits of hidden states, shape (N, V)."""
        logits_NV = self.model.get_output_embeddings()(hidden_NH)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def _token_nll(self, hidden_NH: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(hidden_NH).float(), labels_N, reduction="none")


def per_sample_nll(token_nll_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """Mean negative log-likelihood of each row, in nats per supervised token, float32, shape (rows,).

    NaN where a row has no supervised token: the caller decides, this function does not invent a number.
    """
    sums_B = token_nll_N.new_zeros(rows).index_add_(0, row_N, token_nll_N)
    return sums_B / torch.bincount(row_N, minlength=rows)


@torch.no_grad()
def check_head(loss: PerSampleLoss) -> None:
    """Compare the logits computed here with the model's own on a few tokens.

    Raises:
        UserError: an architecture that does more to its logits than scaling or soft-capping them.
    """
    model = loss.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids_BT = (torch.arange(8, device=model.device) * 7919 % vocabulary)[None]
    own_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    ours_TV = loss.logits(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[0]).float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    scale = float(own_TV.nan_to_num().abs().max())
    if not torch.allclose(ours_TV, own_TV, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise UserError(
            f"{model.config.model_type}: its logits are not its output embedding times the last hidden state "
            f"(off by {float((ours_TV - own_TV).abs().max()):.3g}); this architecture is not supported."
        )
