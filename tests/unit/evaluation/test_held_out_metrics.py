import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.tokens import tokenize
from lpsel.evaluation.held_out_metrics import RowMetrics, compare, reference_nll, response_bytes
from lpsel.model.loss import PerSampleLoss

ROWS = [
    {"instruction": "Add 1 and 2", "input": "", "output": "3"},
    {"instruction": "Say ü", "input": "", "output": "ü, as in über"},
    {"instruction": "Nothing", "input": "please", "output": ""},
    {"instruction": "Count", "input": "", "output": "one two three four five six"},
]


def source_of(folder):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Source(DatasetSpec(name="rows", path=str(file)))


def test_metrics_by_hand():
    # 6 nats over 4 tokens and 3 bytes; one of two answers right
    measured = RowMetrics(
        nll=np.array([2.0, 4.0]),
        tokens=np.array([1, 3]),
        response_bytes=np.array([1, 2]),
        exact_match=np.array([1.0, 0.0]),
        rouge_l=np.array([1.0, 0.2]),
    )
    (metrics,) = compare([measured], 100, 0)
    assert {name: estimate["value"] for name, estimate in metrics["metrics"].items()} == pytest.approx(
        {"nll": 1.5, "perplexity": math.exp(1.5), "bits_per_byte": 2 / math.log(2), "exact_match": 0.5, "rouge_l": 0.6}
    )
    assert metrics["difference"] is None


def test_the_paired_interval_matches_scipy():
    generator = np.random.default_rng(0)
    one, two = (generator.integers(0, 2, 40).astype(float) for _ in range(2))
    tokens = np.full(40, 5)
    ours = compare([RowMetrics(one, tokens, tokens, one, one), RowMetrics(two, tokens, tokens, two, two)], 20_000, 1)[1]
    theirs = stats.bootstrap(
        (two, one),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    difference = ours["difference"]["exact_match"]
    assert (difference["low"], difference["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.026)  # 1/40
    # per token: a fifth of the difference per row
    assert ours["difference"]["nll"]["value"] == pytest.approx((two.mean() - one.mean()) / 5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3"])
def test_nll_matches_the_loss_of_transformers(random_models, byte_tokenizer, tmp_path, kind):
    model = random_models[kind]
    tokens = tokenize(source_of(tmp_path), byte_tokenizer, "plain", 32, tmp_path / "cache")
    loss = PerSampleLoss(model)
    nll = reference_nll(loss, tokens, 70, "References")
    loss.release()
    for i in range(len(ROWS)):
        ids = torch.from_numpy(tokens.input_ids(i).astype(np.int64))
        labels = ids.masked_fill(~torch.from_numpy(tokens.supervised(i).copy()), -100)
        with torch.no_grad():
            mean = model(ids[None], labels=labels[None]).loss
        assert nll[i] / tokens.response_tokens[i] == pytest.approx(float(mean), rel=1e-5)


def test_response_bytes_exclude_template_and_prompt(byte_tokenizer, tmp_path):
    source = source_of(tmp_path)
    examples = [row.example for row in source]
    whole = tokenize(source, byte_tokenizer, "plain", 60, tmp_path / "cache")
    assert [response_bytes(e, whole, i, byte_tokenizer) for i, e in enumerate(examples)] == [1, 15, 0, 27]
    # BOS, "Count", then 14 bytes of the response; a row truncated before its response has none
    cut = tokenize(source, byte_tokenizer, "plain", 20, tmp_path / "cache")
    assert [response_bytes(e, cut, i, byte_tokenizer) for i, e in enumerate(examples)][3] == 14
    short = tokenize(source, byte_tokenizer, "plain", 4, tmp_path / "cache")
    assert short.response_tokens[3] == 0
    assert response_bytes(examples[3], short, 3, byte_tokenizer) == 0
