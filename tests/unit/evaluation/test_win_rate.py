import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lpsel.errors import UserError
from lpsel.evaluation.statistics import add_holm, score_interval
from lpsel.evaluation.win_rate import longer_wins, pairwise_metrics, shown_interval, win_rate
from lpsel.storage import finite

PREFERENCES = st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, math.nan]) | st.floats(1, 2), max_size=40)


def test_wins_ties_and_losses_by_hand():
    # 3 wins, 2 ties (both codes), 1 loss, 1 not judged; preferences minus 1 are 1 1 1 .5 .5 0, with mean 4/6 and a sum
    # of squared deviations of 5/6
    found = win_rate([2, 2, 2, 1.5, 0, 1, None])
    assert (found.n, found.wins, found.ties, found.losses, found.failed) == (6, 3, 2, 1, 1)
    assert found.win_rate == pytest.approx(100 * 4 / 6)
    assert found.win_rate == pytest.approx(found.discrete_win_rate)
    assert found.standard_error == pytest.approx(100 * math.sqrt(5 / 6 / 5 / 6))
    assert found.winning_score == pytest.approx(1 + (3 - 1) / 6)
    # 3 of 4 decided: twice the chance of 3 or 4 heads in 4 throws, 2 x 5 / 16
    assert found.p_value == pytest.approx(0.625)


def test_fractional_preferences_are_averaged_and_counted_by_side():
    found = win_rate([1.9, 1.51, 1.2, 1.5])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.win_rate == pytest.approx(100 * (0.9 + 0.51 + 0.2 + 0.5) / 4)
    assert found.discrete_win_rate == pytest.approx(62.5)


def test_without_verdicts_there_are_counts_only():
    for preference in ([], [None, math.nan]):
        found = win_rate(preference)
        assert (found.n, found.failed) == (0, len(preference))
        assert {found.win_rate, found.standard_error, found.ci_low, found.p_value, found.winning_score} == {None}


def test_one_verdict_has_no_interval():
    found = win_rate([2])
    assert (found.win_rate, found.winning_score, found.p_value) == (100, 2, 1)
    assert {found.standard_error, found.ci_low, found.ci_high, found.wilson_low, found.wilson_high} == {None}
    assert shown_interval(asdict(found)) == (None, None)


@given(st.floats(1, 2), st.integers(2, 40))
def test_equal_verdicts_have_their_rate_inside_the_interval(preference, prompts):
    found = win_rate([preference] * prompts, resamples=20)
    assert found.ci_low <= found.win_rate <= found.ci_high


def test_all_ties():
    found = win_rate([1.5] * 20)
    assert (found.win_rate, found.standard_error, found.ci_low, found.ci_high) == (50, 0, 50, 50)
    assert (found.p_value, found.winning_score) == (1, 1)


def test_all_wins():
    found = win_rate([2] * 20)
    assert (found.win_rate, found.standard_error, found.winning_score) == (100, 0, 2)
    assert found.p_value == pytest.approx(2 * 0.5**20)
    assert found.wilson_high == 100
    assert found.wilson_low == pytest.approx(100 * 20 / (20 + stats.norm.ppf(0.975) ** 2))  # its closed form


@pytest.mark.parametrize("wrong", [3.7, 0.5, -1, math.inf])
def test_invalid_preferences_are_rejected(wrong):
    with pytest.raises(UserError) as caught:
        win_rate([2, wrong])
    assert (caught.value.name, caught.value.value) == ("preference", f"{wrong:g}")
    assert caught.value.problem == "row 1 is not a preference"


@pytest.mark.parametrize("p_win", [0.2, 0.5])
def test_the_bootstrap_and_wilson_cover_the_win_rate_of_wins_ties_and_losses(p_win):
    generator = np.random.default_rng(1)
    ties = 0.1
    true = 100 * (p_win + ties / 2)
    inside = np.zeros(2)
    for draw in range(1000):
        found = win_rate(
            generator.choice([2, 1.5, 1], size=120, p=[p_win, ties, 1 - p_win - ties]), resamples=500, seed=draw
        )
        inside += [found.ci_low <= true <= found.ci_high, found.wilson_low <= true <= found.wilson_high]
    assert ((inside >= 930) & (inside <= 970)).all()


def test_the_bootstrap_covers_the_rate_of_fractional_preferences():
    generator = np.random.default_rng(2)
    true = 100 * 0.3 / (0.3 + 0.9)  # mean of a beta distribution, mostly near 0 and 1 like a judge
    inside = 0
    for draw in range(1000):
        found = win_rate(1 + generator.beta(0.3, 0.9, size=120), resamples=500, seed=draw)
        inside += found.ci_low <= true <= found.ci_high
    assert 930 <= inside <= 970


@given(PREFERENCES, st.randoms())
def test_swapping_the_models_mirrors_every_statistic(preference, random):
    there = win_rate(preference, resamples=50)
    back = win_rate([3 - p if p else 0 for p in preference], resamples=50)
    assert (there.n, there.wins, there.ties, there.losses) == (back.n, back.losses, back.ties, back.wins)
    assert there.n == there.wins + there.ties + there.losses
    assert there.n + there.failed == len(preference)
    assert there.p_value == back.p_value
    if there.n > 1:
        assert there.wilson_low == pytest.approx(100 - back.wilson_high)
    if there.n:
        assert there.win_rate == pytest.approx(100 - back.win_rate, abs=1e-9)
        assert there.winning_score == pytest.approx(2 - back.winning_score)
    shuffled = random.sample(preference, len(preference))
    assert win_rate(shuffled, resamples=50).wins == there.wins


def test_longer_wins_counts_decided_prompts_of_different_length():
    # longer and won, longer and lost, shorter and lost (the longer one won); the rest does not count
    chars = [20, 20, 5, 10, 20, 20, None]
    assert longer_wins([2, 1, 1, 2, 0, None, 2], chars, [10] * 7) == pytest.approx(100 * 2 / 3)
    assert longer_wins([1.5, 2], [20, 10], [10, 10]) is None


def metrics_of(preference, **more):
    lengths = {"model_chars_N": [None] * len(preference), "baseline_chars_N": [None] * len(preference)}
    return pairwise_metrics(preference, **{**lengths, "resamples": 500, **more})


def test_a_single_fractional_preference_does_not_change_the_rule_for_other_prompts():
    # 40 model_first wins that are ties in the other order, 20 flips, 40 losses: 60 ties and 40 losses
    orders = [(2, 1.5)] * 40 + [(1, 2)] * 20 + [(1, 1)] * 40
    plain = metrics_of(orders)
    assert (plain["wins"], plain["ties"], plain["losses"], plain["win_rate"]) == (0, 60, 40, 30)
    assert plain["p_value"] == pytest.approx(2 * 0.5**40)
    for changed in (0, 40, 99):
        one = metrics_of([tuple(1.001 if p == 1 and i == changed else p for p in orders[i]) for i in range(100)])
        assert (one["wins"], one["losses"]) == (0, 40)
        assert one["win_rate"] == pytest.approx(30, abs=0.01)
        assert one["p_value"] < 0.001


def test_the_p_value_is_that_of_the_mean():
    # 70 slight wins and 30 clear losses: the mean of s - .5 is .7 x .02 - .3 x .5 = -.136
    found = win_rate([1.52] * 70 + [1.0] * 30)
    assert found.win_rate == pytest.approx(36.4)
    assert found.p_value < 0.001
    assert found.ci_high < 50
    slight = win_rate([1.52] * 70 + [1.47] * 30 + [1.0] * 1)  # .7 + .014 - .009 - .005 = 0
    assert slight.p_value > 0.5, "a mean of 50 is no difference, however many prompts are won"


def test_unfinished_judging_is_not_diluted_by_equal_answers():
    # 50 of 100 prompts have equal answers, 10 of the others are judged and won: half ties and half wins
    preference, equal = [1.5] * 50 + [2.0] * 10 + [None] * 40, np.arange(100) < 50
    found = win_rate(preference, equal_N=equal)
    assert (found.n, found.wins, found.ties, found.losses, found.failed) == (60, 10, 50, 0, 40)
    assert (found.win_rate, found.discrete_win_rate, found.winning_score) == (75, 75, 1.5)
    of_ten = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert (found.wilson_low, found.wilson_high) == pytest.approx((25 + 50 * of_ten.low, 75))
    assert shown_interval(asdict(found)) == (found.wilson_low, found.wilson_high), "of 10 verdicts, not of 60"
    assert found.p_value == pytest.approx(2 * 0.5**10)
    finished = win_rate([1.5] * 50 + [2.0] * 50, equal_N=equal)
    assert (finished.win_rate, finished.n) == (75, 100)
    assert win_rate([1.5] * 50 + [None] * 50, equal_N=equal).win_rate is None, "nothing was judged"


def test_unfinished_judging_counts_equal_answers_the_same_in_groups_and_length_control():
    chars = np.random.default_rng(0).integers(10, 90, (2, 100))
    metrics = metrics_of(
        [1.5] * 50 + [2.0, 1.0] * 10 + [2.0] * 10 + [None] * 20,
        equal_N=np.arange(100) < 50,
        unfinished=True,
        prompt_set_N=["a", "b"] * 50,
        model_chars_N=chars[0],
        baseline_chars_N=chars[1],
    )
    judged = win_rate([2.0, 1.0] * 10 + [2.0] * 10)
    assert metrics["win_rate"] == pytest.approx(25 + judged.win_rate / 2)
    # of set a, all 15 judged prompts are won; of b, 5 of 15
    rates = [metrics["by_prompt_set"][name]["win_rate"] for name in "ab"]
    assert rates == pytest.approx([75, 25 + 50 / 3])
    assert metrics["mean_of_prompt_sets"]["win_rate"] == pytest.approx(np.mean(rates))
    alone = metrics_of([2.0, 1.0] * 10 + [2.0] * 10, model_chars_N=chars[0, 50:80], baseline_chars_N=chars[1, 50:80])
    assert metrics["length_controlled_win_rate"] == pytest.approx(
        25 + alone["length_controlled_win_rate"] / 2, abs=3
    ), "the scale is that of all answers"


def test_equal_answers_do_not_count_as_judged_without_a_flip():
    # a judge that always prefers A, on 10 pairs, and 10 pairs of equal answers
    orders = [(1, 2)] * 10 + [(1.5, 1.5)] * 10
    assert metrics_of(orders, equal_N=np.arange(20) >= 10)["flip_rate"] == 100


def test_a_text_in_several_prompt_sets_counts_once():
    # sets a and b share the texts 0 to 9, which are won; b has 10 more, which are lost
    text = [str(i) for i in range(10)] + [str(i) for i in range(20)]
    metrics = metrics_of(
        [2.0] * 20 + [1.0] * 10, text_N=text, prompt_set_N=["a"] * 10 + ["b"] * 20, category_N=["x"] * 30
    )
    assert (metrics["n"], metrics["wins"], metrics["losses"], metrics["repeated"]) == (20, 10, 10, 10)
    assert metrics["by_category"]["x"]["n"] == 20
    assert {name: of_set["n"] for name, of_set in metrics["by_prompt_set"].items()} == {"a": 10, "b": 20}
    assert metrics["mean_of_prompt_sets"]["win_rate"] == pytest.approx(75)


def test_the_interval_of_overlapping_sets_covers_the_mean():
    generator, inside = np.random.default_rng(5), np.zeros(2)
    text = [str(i) for i in [*range(100), *range(60), *range(40)]]  # 100 texts; two sets are parts of the first
    sets = ["a"] * 100 + ["b"] * 60 + ["c"] * 40
    for draw in range(400):
        verdict = generator.choice([1.0, 2.0], 100)
        metrics = metrics_of(verdict[[int(i) for i in text]], text_N=text, prompt_set_N=sets, seed=draw)
        mean = metrics["mean_of_prompt_sets"]
        inside += [metrics["ci_low"] <= 50 <= metrics["ci_high"], mean["ci_low"] <= 50 <= mean["ci_high"]]
    assert (inside / 400 >= 0.92).all()


@pytest.mark.parametrize("ties", [0, 0.1])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [10, 20, 50, 200])
def test_the_interval_that_is_shown_covers_the_rate(n, rate, ties):
    # Over the distribution of wins and ties instead of draws. Few values are possible for n = 10 and 20.
    counts = np.array([(w, t, n - w - t) for w in range(n + 1) for t in range(n - w + 1 if ties else 1)])
    chances = stats.multinomial.pmf(counts, n, [rate - ties / 2, ties, 1 - rate - ties / 2])
    covered = 0.0
    for chance, numbers in zip(chances, counts, strict=True):
        if chance > 1e-6:
            low, high = score_interval(np.repeat([1, 0.5, 0], numbers))
            covered += chance * (low - 1e-9 <= rate <= high + 1e-9)
    assert (0.91 if n < 50 else 0.93) <= covered <= 0.98
    if n == 200:
        assert covered <= 0.97


@pytest.mark.parametrize("n", [10, 20, 50, 200])
@pytest.mark.parametrize("rate", [0.026, 0.5, 0.8, 0.95])
def test_the_interval_that_is_shown_covers_a_rate_of_fractional_preferences(n, rate):
    # mostly near 0 and 1, as a judge's are
    share_DN = np.random.default_rng(0).beta(0.3 * rate, 0.3 * (1 - rate), (1000, n))
    ends = np.array([score_interval(share_N) for share_N in share_DN])
    assert 0.93 <= ((ends[:, 0] <= rate) & (rate <= ends[:, 1])).mean() <= 0.98


def test_the_interval_that_is_shown_contains_a_fractional_win_rate():
    for preference in ([1.9] * 20 + [1.4] * 5, [1.9] * 6, [1.9, 1.45] * 200):
        found = win_rate(preference, resamples=500)
        low, high = shown_interval(asdict(found))
        assert low <= found.win_rate <= high


def test_equal_verdicts_have_an_interval_with_room():
    # 20 of 20: Wilson's; 20 ties: (10 + .5) / 21 = .5 with variance (5 + .5) / 21 - .25 = .0119, as of 420 verdicts
    for verdict, successes, n in ((2, 20, 20), (1.5, 210, 420)):
        found = win_rate([verdict] * 20)
        expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert shown_interval(asdict(found)) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert shown_interval({"n": 100, "win_rate": 60.0, "ci_low": 50.0, "ci_high": 70.0}) == (50, 70), "another tool's"


def test_a_prompt_that_is_repeated_in_a_set_counts_once_in_it():
    """Prompt x wins and is in set a twice, y loses: 50%, not 67%; set b has x only."""
    metrics = pairwise_metrics(
        [2, 2, 1, 2], model_chars_N=[1] * 4, baseline_chars_N=[1] * 4, text_N=["x", "x", "y", "x"],
        prompt_set_N=["a", "a", "a", "b"], resamples=100,
    )  # fmt: skip
    assert (metrics["n"], metrics["win_rate"], metrics["repeated"]) == (2, 50, 2)
    rates = {name: (of_set["n"], of_set["win_rate"]) for name, of_set in metrics["by_prompt_set"].items()}
    assert rates == {"a": (2, 50), "b": (1, 100)}
    assert metrics["mean_of_prompt_sets"]["win_rate"] == pytest.approx(75)


def test_groups_and_the_mean_of_prompt_sets():
    # set a: 2 wins; set b: 1 win, 3 losses, 1 prompt without a verdict
    metrics = metrics_of(
        [2, 2, 2, 1, 1, 1, None],
        prompt_set_N=["a", "a", "b", "b", "b", "b", "b"],
        category_N=["x", None, "x", "y", "y", "y", "y"],
    )
    assert metrics["win_rate"] == pytest.approx(50)
    assert {name: of_set["win_rate"] for name, of_set in metrics["by_prompt_set"].items()} == {"a": 100, "b": 25}
    assert metrics["by_prompt_set"]["b"]["failed"] == 1
    assert metrics["mean_of_prompt_sets"]["win_rate"] == pytest.approx(62.5)
    # only b varies: resampled between 0 and 100, so the mean of sets is between 50 and 100
    assert 50 <= metrics["mean_of_prompt_sets"]["ci_low"] < 62.5 < metrics["mean_of_prompt_sets"]["ci_high"] <= 100
    assert {name: of_part["n"] for name, of_part in metrics["by_category"].items()} == {"x": 2, "y": 3}


def test_the_mean_of_few_prompts_has_wilsons_interval():
    # two sets of 20, all won: as many texts of equal weight, n = 40
    mean = metrics_of([2] * 40, prompt_set_N=["a", "b"] * 20)["mean_of_prompt_sets"]
    assert (mean["win_rate"], mean["ci_low"], mean["wilson_high"]) == (100, 100, 100)
    assert mean["wilson_low"] == pytest.approx(100 * stats.binomtest(40, 40).proportion_ci(method="wilson").low)
    # sets of 10 and 30 without common texts: weights 1/20 and 1/60, so n = 1 / (10 / 400 + 30 / 3600) = 30, 15 won
    mean = metrics_of([2, 1] * 5 + [2, 1] * 15, prompt_set_N=["a"] * 10 + ["b"] * 30)["mean_of_prompt_sets"]
    expected = stats.binomtest(15, 30).proportion_ci(method="wilson")
    assert (mean["wilson_low"], mean["wilson_high"]) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_the_mean_of_one_prompt_set_has_the_interval_of_its_win_rate():
    metrics = metrics_of([2, 1.5, 1.5, 1.2] * 8, prompt_set_N=["a"] * 32)
    ends = [metrics["wilson_low"], metrics["wilson_high"]]
    assert [metrics["mean_of_prompt_sets"][name] for name in ("wilson_low", "wilson_high")] == pytest.approx(ends)


def test_without_groups_the_entries_are_none():
    metrics = metrics_of([2, 1, 1.5], category_N=[None] * 3)
    assert (metrics["by_category"], metrics["by_prompt_set"], metrics["mean_of_prompt_sets"]) == (None, None, None)


def test_lengths():
    metrics = metrics_of([2, 2, 1, None], model_chars_N=[10, 30, 5, 15], baseline_chars_N=[20, 20, 20, 20])
    assert (metrics["model_mean_chars"], metrics["baseline_mean_chars"]) == (15, 20)
    assert metrics["longer_wins"] == pytest.approx(100 * 2 / 3)
    assert metrics["length_controlled_win_rate"] is None  # three verdicts


def test_two_orders():
    metrics = metrics_of([(2, 2), (2, 1), (1, 1.5), (2, None)])
    assert (metrics["n"], metrics["wins"], metrics["ties"], metrics["losses"], metrics["failed"]) == (3, 1, 2, 0, 1)
    assert metrics["flip_rate"] == pytest.approx(100 * 2 / 3)


def test_metrics_without_verdicts_are_strict_json():
    for preference in ([], [None, math.nan]):
        metrics = metrics_of(preference, prompt_set_N=["a"] * len(preference))
        json.dumps(metrics, allow_nan=False)
        assert metrics == finite(metrics)
        assert metrics["win_rate"] is None


def test_a_seed_gives_reproducible_intervals():
    preference = np.random.default_rng(0).choice([1.0, 2.0], 60)
    assert metrics_of(preference, seed=3) == metrics_of(preference, seed=3)
    assert metrics_of(preference, seed=3)["ci_low"] is not None


def test_p_values_are_corrected_for_the_number_of_models():
    won, even, unjudged = metrics_of([2] * 12), metrics_of([2, 1] * 6), metrics_of([None] * 3)
    add_holm([won, even, unjudged])
    assert won["p_value"] == pytest.approx(2 * 0.5**12)
    assert won["p_value_holm"] == pytest.approx(2 * 2 * 0.5**12)
    assert even["p_value_holm"] == 1
    assert unjudged["p_value_holm"] is None
