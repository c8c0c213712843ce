"""Two models on the prompts of one evaluation, and what is reported as unreliable."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lpsel.evaluation.comparison import compare, describe_problems, model_differences
from lpsel.evaluation.judgements import group
from lpsel.evaluation.statistics import paired_interval, sign_flip_test
from lpsel.evaluation.win_rate import pairwise_metrics
from lpsel.judging.judge import NOT_ASKED


def verdicts_of(preference_N, model="m", judge="j", ids=None, equal=0):
    """The first `equal` answers are equal to the baseline's; a price cap left out those without a preference."""
    lengths = {"model_chars": None, "baseline_chars": None, "category": None, "prompt_set": None}
    rows = [
        {"id": str(i), "order": "", "model": model, "judge": judge, "baseline": "b", "preference": p, **lengths}
        for i, p in zip(ids or range(len(preference_N)), preference_N, strict=True)
    ]
    for number, row in enumerate(rows):
        row |= {"equal": number < equal, "failure": NOT_ASKED if row["preference"] is None and equal else None}
    [verdicts] = group(rows)
    return verdicts


def metrics_of(preference_NO, **more):
    unknown = [None] * len(preference_NO)
    return pairwise_metrics(preference_NO, model_chars_N=unknown, baseline_chars_N=unknown, resamples=200, **more)


def test_the_difference_between_two_models_by_hand():
    # on the prompts that both have: 2 - 1, 1.5 - 1, 2 - 2, 1 - 2: differences 1, .5, 0, -1 with mean .125
    verdicts = {"x": verdicts_of([2, 1.5, 2, 1, 2, None]), "y": verdicts_of([1, 1, 2, 2, None, 2])}
    [pair] = model_differences(verdicts, seed=0)
    assert (pair["models"], pair["n"], pair["difference"]) == (["x", "y"], 4, pytest.approx(12.5))
    assert pair["standard_error"] == pytest.approx(100 * np.std([1, 0.5, 0, -1], ddof=1) / 2)
    # of 8 signs of 1, .5, 1 the sums 2.5, .5 .5, 1.5 1.5 and their negatives; all are at least .5
    assert pair["p_value"] == 1


def test_a_paired_difference_is_narrower_than_that_of_unpaired_win_rates():
    generator = np.random.default_rng(0)
    hard = generator.random(500)
    verdicts = {name: verdicts_of(np.where(hard < rate, 2, 1)) for name, rate in (("lp", 0.55), ("random", 0.5))}
    found = compare(verdicts, resamples=1000, seed=0)
    [pair], (lp, random) = found["comparisons"], found["models"]
    assert pair["difference"] == pytest.approx(lp["win_rate"] - random["win_rate"])
    unpaired = np.hypot(lp["standard_error"], random["standard_error"])
    assert pair["standard_error"] < 0.4 * unpaired
    assert 0 < pair["ci_low"] < pair["difference"] < pair["ci_high"]


@pytest.mark.parametrize(
    ("rates", "prompts"), [((0.95, 0.9), 10), ((0.95, 0.9), 20), ((0.8, 0.7), 10), ((0.6, 0.4), 50)]
)
def test_the_interval_of_a_difference_covers_with_few_prompts(rates, prompts):
    generator, inside = np.random.default_rng(prompts), 0
    for _ in range(400):
        shared, own = generator.random((2, prompts))
        other = np.where(generator.random(prompts) < 0.5, shared, own)  # half of the prompts are as hard for both
        low, high = paired_interval(100.0 * (shared < rates[0]) - 100.0 * (other < rates[1]), 100)
        inside += low <= 100 * (rates[0] - rates[1]) <= high
    assert inside >= 0.93 * 400


def test_equal_verdicts_leave_room_for_a_difference():
    verdicts = {"x": verdicts_of([2] * 20), "y": verdicts_of([2] * 20)}
    [pair] = model_differences(verdicts, seed=0)
    assert (pair["difference"], pair["p_value"]) == (0, 1)
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((-8.9, 8.9), abs=0.1)  # 196 / 22


def test_a_text_in_several_sets_counts_once_in_a_difference():
    # a and c are the same text, judged differently: the first verdict counts, as in the win rate
    verdicts = {
        name: replace(verdicts_of(of), text_N=["t", "u", "t"]) for name, of in (("x", [2, 2, 1]), ("y", [1, 2, 2]))
    }
    found = compare(verdicts, resamples=100, seed=0)
    (x, y), [pair] = found["models"], found["comparisons"]
    assert (x["win_rate"], y["win_rate"], pair["n"], pair["difference"]) == (100, 50, 2, 50)


def test_unfinished_judging_does_not_dilute_a_difference():
    # 50 of 100 prompts have equal answers of all; x wins the 10 others that were judged, y loses them: half of 100
    verdicts = {
        name: verdicts_of([1.5] * 50 + [won] * 10 + [None] * 40, name, equal=50) for name, won in (("x", 2), ("y", 1))
    }
    [pair] = model_differences(verdicts, seed=0)
    assert (pair["n"], pair["difference"], pair["p_value"]) == (60, 50, pytest.approx(2 * 0.5**10))
    low, high = paired_interval([100.0] * 10, 100)
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((low / 2, high / 2))
    finished = {name: verdicts_of([1.5] * 50 + [won] * 50, name, equal=50) for name, won in (("x", 2), ("y", 1))}
    assert model_differences(finished, seed=0)[0]["difference"] == 50


def test_comparisons_are_corrected_for_their_number_and_within_a_judge():
    verdicts = {
        "a, j": verdicts_of([2] * 12, "a"),
        "b, j": verdicts_of([1] * 12, "b"),
        "c, j": verdicts_of([1] * 12, "c"),
        "a, k": verdicts_of([1] * 12, "a", "k"),
    }
    found = compare(verdicts, resamples=100, seed=0)["comparisons"]
    assert [pair["models"] for pair in found] == [["a, j", "b, j"], ["a, j", "c, j"], ["b, j", "c, j"]]
    assert [pair["p_value"] for pair in found] == pytest.approx([2 * 0.5**12, 2 * 0.5**12, 1])
    assert [pair["p_value_holm"] for pair in found] == pytest.approx([6 * 0.5**12, 6 * 0.5**12, 1])


def test_models_without_common_prompts_have_no_difference():
    verdicts = {"x": verdicts_of([2, 1], ids=["a", "b"]), "y": verdicts_of([2, 1], ids=["c", "d"])}
    [pair] = model_differences(verdicts, seed=0)
    assert {pair[name] for name in ("difference", "ci_low", "p_value", "p_value_holm")} == {None}


def test_the_sign_flip_test_agrees_with_scipy():
    generator = np.random.default_rng(1)
    for n in (8, 40, 300):
        difference = generator.beta(0.5, 0.4, n) - 0.5
        ours = sign_flip_test(difference)
        theirs = stats.permutation_test(
            (difference,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True,
            n_resamples=20_000, batch=2000, rng=np.random.default_rng(2),
        ).pvalue  # fmt: skip
        assert ours == pytest.approx(theirs, abs=0.02)
    assert sign_flip_test([0.5] * 7 + [-0.5] * 3 + [0] * 4) == pytest.approx(stats.binomtest(3, 10).pvalue)
    assert sign_flip_test([]) == sign_flip_test([0, 0]) == 1


def problems(metrics, **more):
    found = describe_problems(metrics, **more)
    return found["informative"], " ".join(found["warnings"])


def test_a_judge_that_prefers_a_position_carries_no_information():
    # always A, on every pair that was judged; half of the pairs have equal answers
    informative, text = problems(metrics_of([(1, 2)] * 60 + [(1.5, 1.5)] * 60, equal_N=np.arange(120) >= 60))
    assert not informative
    assert text.startswith("The judge carries no information: in 100% of the judged pairs")
    informative, text = problems(metrics_of([(1, 2)] * 50 + [(2, 2), (1, 1)] * 200))
    assert (informative, text) == (True, "")


def test_a_judge_that_says_tie_to_everything_carries_no_information():
    informative, text = problems(metrics_of([[1.5, 1.5]] * 40))
    assert not informative
    assert text.startswith("The judge carries no information: all its verdicts on 40 prompts are ties. Use a stronger")
    assert problems(metrics_of([[1.5, 1.5]] * 39 + [[2, 2]])) == (True, "")
    assert not problems(metrics_of([1.5] * 40, equal_N=[True] * 19 + [False] * 21))[0]
    assert problems(metrics_of([1.5] * 40, equal_N=[True] * 20 + [False] * 20)) == (
        True,
        "",
    )  # the models hardly differ


def test_a_single_verdict_is_reported():
    sentence = "A single verdict has no interval and does not generalize to other prompts."
    # two prompts with identical answers count as ties, but only one of the two others has been judged
    unfinished = metrics_of([1, 1.5, 1.5, None], equal_N=[False, True, True, False], unfinished=True)
    assert (unfinished["n"], unfinished["win_rate"], unfinished["ci_low"]) == (3, 25, None)
    assert sentence in describe_problems(unfinished)["warnings"]
    assert describe_problems(metrics_of([[2, 2]])) == {"warnings": [sentence], "informative": True}


def test_a_judge_that_rarely_replies_a_letter_carries_no_information():
    metrics = metrics_of([2, 1] * 200)
    assert problems(metrics, letter_probability=0.9) == (True, "")
    informative, text = problems(metrics, letter_probability=0.003)
    assert not informative
    assert "the mean probability of these next tokens is 0.003" in text


def test_pairs_shown_in_one_order_are_reported():
    # always the first answer, the baseline's: a win rate of 0 that the order explains
    lengths = {"model_chars": None, "baseline_chars": None, "category": None, "prompt_set": None}
    rows = [{"id": str(i), "order": order, "model": "m", "judge": "j", "baseline": "b", "raw": "[[A]]",
             "preference": 1 if order == "baseline_first" else 2, **lengths}
            for i in range(40) for order in ("baseline_first", "model_first")]  # fmt: skip
    [in_one] = compare({"m": group(rows[::2])[0]}, resamples=100, seed=0)["warnings"]
    assert in_one.startswith("All pairs were shown to the judge in one order, baseline_first: ")
    in_both = compare({"m": group(rows)[0]}, resamples=100, seed=0)["warnings"][0]
    assert "carries no information" in in_both
    of_two = compare(dict.fromkeys(("m, 10%, seed 1", "m, 10%, seed 2"), group(rows)[0]), resamples=100, seed=0)
    assert of_two["warnings"][0].startswith("m, 10%, seed 1; m, 10%, seed 2: The judge carries no information")


def test_cut_prompts_and_cut_or_empty_answers_are_reported():
    metrics = metrics_of([2, 1] * 200)
    few = {"name": "m", "prompts": 100, "prompts_cut": 10, "answers_cut": 10, "answers_empty": 0}
    assert problems(metrics, answers=[few]) == (True, "")
    some = {"name": "m", "prompts": 100, "prompts_cut": 0, "answers_cut": 40, "answers_empty": 0}
    assert problems(metrics, answers=[some]) == (
        True, "40 of 100 answers of m are cut off. Raise evaluator.max_new_tokens.",
    )  # fmt: skip
    most = {"name": "m", "prompts": 100, "prompts_cut": 0, "answers_cut": 0, "answers_empty": 60}
    assert problems(metrics, answers=[most])[0] is False
    prompts = {"name": "m", "prompts": 100, "prompts_cut": 60, "answers_cut": 0, "answers_empty": 0}
    assert problems(metrics, answers=[prompts]) == (
        True,
        "60 of 100 prompts do not fit into the context of m, which did not see their beginning. "
        "Lower evaluator.max_new_tokens.",
    )


def test_too_few_prompts_are_reported_with_the_number_to_use():
    # Wilson's interval of 15 of 30 is 33.2 to 66.8; a third as wide at 11.3 times the prompts
    _, text = problems(metrics_of([2, 1] * 15))
    assert "33 to 67%, is too wide to show which model is better: about 340 prompts" in text
    assert problems(metrics_of([2] * 30)) == (True, "")
    assert "20 of 100 prompts lack a verdict in at least one order." in problems(metrics_of([2] * 80 + [None] * 20))[1]


def test_overlapping_prompt_sets_and_few_lengths_are_reported():
    text = [str(i % 60) for i in range(100)]
    for sets, reason in ((["a"] * 60 + ["b"] * 40, ": the prompt sets overlap"), (["a"] * 100, "")):
        metrics = pairwise_metrics(
            [2, 2] * 50, model_chars_N=np.arange(100), baseline_chars_N=np.full(100, 40), text_N=text,
            prompt_set_N=sets, resamples=100,
        )  # fmt: skip
        sentences = describe_problems(metrics)["warnings"]
        assert sentences == [
            f"100 prompts have 60 distinct texts{reason}. Each text counts once.",
            "The length-controlled win rate of 60 prompts is unreliable: use at least 100.",
        ]
