import json
import math

import numpy as np
import pytest

from lpsel.evaluation.head_to_head import compare_models, figures
from lpsel.storage import finite


def of(preference, **more):
    lengths = {"model_chars_N": [None] * len(preference), "baseline_chars_N": [None] * len(preference)}
    return figures(preference, **{**lengths, "resamples": 500, **more})


def test_groups_pooled_and_the_mean_of_sets():
    # set a: 2 prompts, both won; set b: 4 prompts, 1 won, 3 lost; one prompt of b was not judged
    found = of(
        [2, 2, 2, 1, 1, 1, None],
        prompt_set_N=["a", "a", "b", "b", "b", "b", "b"],
        category_N=["x", None, "x", "y", "y", "y", "y"],
    )
    assert found["win_rate"] == pytest.approx(50)
    assert {name: of_set["win_rate"] for name, of_set in found["by_prompt_set"].items()} == {"a": 100, "b": 25}
    assert found["by_prompt_set"]["b"]["failed"] == 1
    assert found["mean_of_prompt_sets"]["win_rate"] == pytest.approx(62.5)
    # only b varies: its share of wins in resamples of 4 is from 0 to 1, and the mean of sets between 50 and 100
    assert 50 <= found["mean_of_prompt_sets"]["ci_low"] < 62.5 < found["mean_of_prompt_sets"]["ci_high"] <= 100
    assert {name: of_part["n"] for name, of_part in found["by_category"].items()} == {"x": 2, "y": 3}


def test_without_groups_there_are_none():
    found = of([2, 1, 1.5], category_N=[None] * 3)
    assert (found["by_category"], found["by_prompt_set"], found["mean_of_prompt_sets"]) == (None, None, None)


def test_lengths():
    found = of([2, 2, 1, None], model_chars_N=[10, 30, 5, 15], baseline_chars_N=[20, 20, 20, 20])
    assert (found["model_mean_chars"], found["baseline_mean_chars"]) == (15, 20)
    assert found["longer_wins"] == pytest.approx(100 * 2 / 3)
    assert found["length_controlled_win_rate"] is None  # three verdicts


def test_two_orders():
    found = of([(2, 2), (2, 1), (1, 1.5), (2, None)])
    assert (found["n"], found["wins"], found["ties"], found["losses"], found["failed"]) == (3, 1, 2, 0, 1)
    assert found["flip_rate"] == pytest.approx(100 * 2 / 3)


def test_nothing_judged_is_all_none_and_strict_json():
    for preference in ([], [None, math.nan]):
        found = of(preference, prompt_set_N=["a"] * len(preference))
        json.dumps(found, allow_nan=False)
        assert found == finite(found)
        assert found["win_rate"] is None


def test_the_seed_gives_one_answer():
    preference = np.random.default_rng(0).choice([1.0, 2.0], 60)
    assert of(preference, seed=3) == of(preference, seed=3)
    assert of(preference, seed=3)["ci_low"] is not None


def test_several_models_are_corrected_for_their_number():
    won = of([2] * 12)  # p = 2 x .5^12
    even = of([2, 1] * 6)  # p = 1
    found = compare_models({"good": won, "same": even, "unjudged": of([None] * 3)})
    assert found["good"]["p_value_holm"] == pytest.approx(2 * 2 * 0.5**12)
    assert found["same"]["p_value_holm"] == 1
    assert found["unjudged"]["p_value_holm"] is None
    assert found["good"]["p_value"] == pytest.approx(2 * 0.5**12)
