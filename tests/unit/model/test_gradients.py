"""The gradient of a global batch, however it is cut into packs and ranks, with and without shared beginnings."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lpsel.data.batching import training_plan
from lpsel.data.packing import collate
from lpsel.data.shared_prefixes import find_prefixes
from lpsel.data.tokens import Batch
from lpsel.model import attention
from lpsel.model.loss import PerSampleLoss


class Rows:
    """Rows with the interface of Tokens; those with an even number begin with the same ten tokens."""

    def __init__(self):
        draw = np.random.default_rng(0)
        beginning = draw.integers(3, 97, 10)
        own = [draw.integers(3, 97, n) for n in draw.integers(4, 40, 23)]
        self.rows = [np.concatenate([beginning, ids]) if i % 2 == 0 else ids for i, ids in enumerate(own)]
        self.first = [10 if i % 2 == 0 else 1 + i % 3 for i in range(len(own))]
        self.lengths = np.array([len(ids) for ids in self.rows], dtype=np.int32)

    def __len__(self):
        return len(self.rows)

    def batches(self):
        spans = np.array([[first, len(ids)] for first, ids in zip(self.first, self.rows, strict=True)], dtype=np.int32)
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        yield Batch(np.concatenate(self.rows).astype(np.int32), ends, spans.ravel(), np.arange(24) * 2)

    def input_ids(self, i):
        return self.rows[i].astype(np.int32)

    def supervised(self, i):
        return np.arange(len(self.rows[i])) >= self.first[i]


def gradient(model, budget, world, shared):
    """The sum over ranks and packs of the gradients of one step's loss; how many packs that took."""
    rows = Rows()
    prefixes = find_prefixes(rows) if shared else None
    own = rows.lengths - (prefixes.length_N if prefixes else 0)
    supervised = sum(len(ids) - first for ids, first in zip(rows.rows, rows.first, strict=True))
    loss = PerSampleLoss(model)
    packs = 0
    for rank in range(world):
        (step,) = training_plan(np.arange(23), own, 23, budget, rank, world)
        packs += len(step)
        for micro_batch in step:
            (loss(collate(rows, micro_batch, prefixes), summed=True) / supervised).backward()
    return {name: p.grad for name, p in model.named_parameters()}, packs


@pytest.mark.parametrize("kind", ["llama", "tied", "opt-350m-like", "gpt2"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared beginnings", "whole rows"])
def test_a_global_batch_has_one_gradient_however_it_is_split(make_model, kind, shared):
    whole, packs = gradient(make_model(kind), 10_000, 1, shared=False)
    assert packs == 1
    for budget, world in [(10_000, 1), (100, 1), (1, 1), (100, 2), (60, 3), (10_000, 5)]:
        cut, _ = gradient(make_model(kind), budget, world, shared)
        for name, expected in whole.items():
            torch.testing.assert_close(cut[name], expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-9)


def test_sharing_and_splitting_do_happen_in_these_tests(make_model):
    assert sorted(set(find_prefixes(Rows()).length_N.tolist())) == [0, 10]
    assert gradient(make_model(), 100, 3, shared=True)[1] > 3


class Shapes(TorchDispatchMode):
    """Collects the shapes of matrix products in bfloat16."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm") and arguments[-1].dtype == torch.bfloat16:
            self.seen.add((name, *(tuple(a.shape) for a in arguments)))
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 8}], ids=["full attention", "window"])
def test_products_in_bfloat16_have_few_shapes_on_a_cpu(make_model, monkeypatch, changes):
    """A CPU compiles and keeps a kernel for every shape: with one for every length, memory grew with every step."""
    kind = "mistral" if changes else "llama"
    seen, gradients = {}, {}
    for size in (1, 32):
        monkeypatch.setattr(attention, "TOKEN_MULTIPLE", size)
        made = make_model(kind, **changes)
        with Shapes() as shapes, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            gradients[size], _ = gradient(made, 100, 1, shared=True)
        seen[size] = {shape for shape in shapes.seen if shape[0] == "bmm"}
        assert all(torch.isfinite(value).all() for value in gradients[size].values())
    exact, _ = gradient(make_model(kind, **changes), 100, 1, shared=True)
    assert len(seen[1]) > 80
    assert len(seen[32]) <= 24
    for name, expected in exact.items():
        errors = [float((gradients[size][name] - expected).norm() / expected.norm()) for size in (1, 32)]
        assert errors[1] < 1.5 * errors[0] + 1e-3, name
