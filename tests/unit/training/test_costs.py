"""The sums of the ledger, worked out by hand, and the FLOPs and peaks behind a utilization."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from lpsel.model.flops import forward_flops
from lpsel.training.costs import describe_ledger, ledger, utilization

SCORING = {"tokens": 300, "flops": 2e12, "device_seconds": 4.0, "seconds": 4.0}
TRAINING = {"rows": 5, "tokens": 100, "flops": 1e12, "device_seconds": 10.0}
EVERYTHING = {"tokens": 1000, "flops": 10e12}


def test_selection_and_training_add_up_and_are_compared_with_training_on_all_rows():
    figures = ledger(SCORING, TRAINING, EVERYTHING, 100)
    assert figures["total"] == {"tokens": 400, "flops": 3e12, "device_seconds": 14.0}
    assert figures["everything"] == {"tokens": 1000, "flops": 10e12, "device_seconds": 100.0}
    assert figures["saved"] == {"flops": 7e12, "share": pytest.approx(0.7)}
    assert figures["break_even_pct"] == pytest.approx(80)
    # 5% of the rows have 10% of the FLOPs: they are twice as long, so that 40% of such rows have 80% of the FLOPs
    assert figures["break_even_rows_pct"] == pytest.approx(40)
    assert describe_ledger(figures) == (
        "2e+12 FLOPs to select, 1e+12 to train: 70% less than training on everything (1e+13); breaks "
        "even at 80% of these FLOPs, which is 40% of all rows at the mean length of the selected ones"
    )


def test_a_rule_without_scores_costs_nothing_and_saves_up_to_all_rows():
    figures = ledger(None, TRAINING, EVERYTHING, 100)
    assert figures["selection"] == {"tokens": 0, "flops": 0, "device_seconds": 0}
    assert (figures["break_even_pct"], figures["break_even_rows_pct"]) == (100, 50)
    assert describe_ledger(figures) == "0 FLOPs to select, 1e+12 to train: 90% less than training on everything (1e+13)"


def test_a_scorer_more_expensive_than_the_target_never_saves():
    figures = ledger(SCORING | {"flops": 12e12}, TRAINING, EVERYTHING, 100)
    assert figures["break_even_pct"] == 0
    assert figures["saved"]["share"] == pytest.approx(-0.3)
    assert describe_ledger(figures).endswith(
        "30% more than training on everything (1e+13); selection alone costs as much"
    )


@pytest.mark.parametrize(
    ("name", "percent"), [("NVIDIA H200", 10.0), ("NVIDIA H100 80GB HBM3", 10.0), ("NVIDIA H100 NVL", 11.841)]
)
def test_utilization_is_that_of_dense_products(monkeypatch, name, percent):
    """Lightning does not know an H200, and has the figure with sparsity for an H100 NVL."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    busy = utilization(2 * 98.94e12 * 5, 5.0, torch.device("cuda", 0), 2, "bf16-mixed")
    assert busy["flops_per_second_per_device"] == pytest.approx(98.94e12)
    assert busy["utilization_percent"] == pytest.approx(percent, rel=1e-3)


def test_text_does_not_pass_through_an_image_encoder():
    config = Gemma3Config(
        text_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )  # fmt: skip
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
        text = AutoModelForCausalLM.from_config(config.text_config)
    assert sum(p.numel() for p in whole.parameters()) > sum(p.numel() for p in text.parameters())
    lengths, supervised = np.array([8, 5], np.int32), np.array([3, 2], np.int32)
    assert forward_flops(whole, lengths, supervised) == forward_flops(text, lengths, supervised)
