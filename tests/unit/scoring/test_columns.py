"""Further columns, from passes of the untrained scorer."""

import math

import numpy as np
import pytest
import torch

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.tokens import tokenize
from lpsel.model.load import load_tokenizer
from lpsel.model.spec import ModelSpec
from lpsel.scoring.columns import WithoutPrompt, error_norm


def test_the_error_norm_by_hand():
    # p = (1/4, 3/4): for label 0, (-3/4, 3/4); for label 1, (1/4, -1/4). Certain and right: 0; and wrong: sqrt 2.
    quarters = [0.0, math.log(3)]
    logits = torch.tensor([quarters, quarters, [200.0, 0.0], [200.0, 0.0]])
    expected = [0.75 * math.sqrt(2), 0.25 * math.sqrt(2), 0.0, math.sqrt(2)]
    assert error_norm(logits, torch.tensor([0, 1, 0, 1])).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_error_norm_is_the_norm_of_the_error():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 300, generator=generator) * 5, torch.randint(300, (50,), generator=generator)
    error = logits.softmax(-1) - torch.nn.functional.one_hot(labels, 300)
    torch.testing.assert_close(error_norm(logits, labels), error.norm(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", [None, 7])
def test_a_response_stands_alone_behind_bos(toy_model, instructions, tmp_path, bos):
    spec = ModelSpec("toy", path=str(toy_model), max_length=256)
    source = Source(DatasetSpec("rows", path=str(instructions(rows=9))))
    tokens = tokenize(source, load_tokenizer(spec, spec.path), spec.template, spec.max_length, tmp_path)
    alone = WithoutPrompt(tokens, bos)
    first = [] if bos is None else [bos]
    for i in range(9):
        response = tokens.input_ids(i)[tokens.supervised(i)].tolist()
        assert alone.input_ids(i).tolist() == first + response
        assert alone.supervised(i).tolist() == [False] + [True] * (len(first + response) - 1)
        assert alone.lengths[i] == len(first + response)
        assert alone.response_tokens[i] == len(first + response) - 1
    assert alone.input_ids(0).dtype == np.int32
