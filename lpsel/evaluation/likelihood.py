"""Likelihood of the responses of held-out rows, on one or several devices."""

# N rows, B rows of a pack, S supervised tokens of a pack

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpsel.console import track
from lpsel.data.batching import Rows, packed
from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import Prefixes, find_prefixes
from lpsel.data.tokens import Tokens
from lpsel.model.copies import Copies, MapBatches
from lpsel.model.device import reuse_freed_memory
from lpsel.model.load import load_model
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.spec import ModelSpec

Sums = tuple[NDArray[Any], NDArray[Any]]  # NLLs of rows over supervised tokens, and over text tokens only, (B,) each


class Loaded(NamedTuple):
    """A model on a device and the rows to evaluate it on."""

    loss: PerSampleLoss
    tokens: Tokens
    prefixes: Prefixes

    @classmethod
    def of(cls, spec: ModelSpec, path: str, dtype: torch.dtype, folder: Path, device: torch.device) -> "Loaded":
        """Load the model with weights in `dtype`, and the tokens in `folder`."""
        if device.type == "cpu":
            reuse_freed_memory()
        loss = PerSampleLoss(load_model(spec, path, dtype).to(device))
        check_head(loss)
        tokens = Tokens(folder)
        return cls(loss, tokens, find_prefixes(tokens))


def reference_nll(
    copies: Copies[Loaded],
    tokens: Tokens,
    batch_tokens: int,
    title: str,
    special: Sequence[int] = (),
    at_once: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the NLL of each row, in nats: over all supervised tokens, and without the `special` ones, (N,) each.

    Sums are float64, and 0 for a row without such tokens. A device computes `at_once` packs before it transfers their
    sums to the host.
    """
    nll_N, text_nll_N = np.zeros((2, len(tokens)))
    supervised = np.flatnonzero(tokens.response_tokens > 0)
    packs = packed(supervised, tokens.lengths, batch_tokens)
    groups = [packs[first : first + at_once] for first in range(0, len(packs), at_once)]
    sums = chain.from_iterable(copies.map(partial(_sums, special), groups))
    with track(title, total=len(supervised), unit="rows") as advance:
        for rows, (nll_B, text_nll_B) in zip(packs, sums, strict=True):
            nll_N[rows], text_nll_N[rows] = nll_B, text_nll_B
            advance(len(rows), tokens=int(tokens.lengths[rows].sum()))
    return nll_N, text_nll_N


@torch.inference_mode()
def _sums(special: Sequence[int], loaded: Loaded, packs: list[Rows]) -> list[Sums]:
    """Compute the sums of each pack; in two loops, so that a GPU computes all packs before the first transfer."""
    device = loaded.loss.model.device
    batches = [collate(loaded.tokens, rows, loaded.prefixes, varlen=device.type == "cuda") for rows in packs]
    losses = [loaded.loss(batch.to(device)) for batch in batches]
    sums = []
    for batch, loss in zip(batches, losses, strict=True):
        nll_S, row_S = loss.cpu().double().numpy(), batch.row_N.numpy()
        is_text_S = ~np.isin(batch.labels_N.numpy(), special)
        rows = len(batch.supervised_B)
        nll_B = np.bincount(row_S, weights=nll_S, minlength=rows)
        text_nll_B = np.bincount(row_S[is_text_S], weights=nll_S[is_text_S], minlength=rows)
        sums.append((nll_B, text_nll_B))
    return sums


def with_own_attention(copies: Copies[Loaded]) -> MapBatches:
    """Return `copies.map` for functions that take the transformers model, with its original attention."""
    return lambda function, batches: copies.map(partial(_released, function), batches)


def _released(function: Callable[[Any, Any], Any], loaded: Loaded, batch: Any) -> Any:
    loaded.loss.release()
    return function(loaded.loss.model, batch)
