"""What a selection's score correlates with: by hand, by scipy, and on the released records."""

import json
import lzma
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from lpsel.clustering.near_duplicates import NearDuplicates
from lpsel.commands.result_summary import diagnosis as as_pairs
from lpsel.scoring.metrics import known_level, rises
from lpsel.scoring.read import read_scores
from lpsel.selection import diagnosis as module
from lpsel.selection.diagnosis import explained_by_clusters
from lpsel.selection.select import select

NO_CHARACTERS = np.zeros((2, 10), np.int32)
NO_NEAR = NearDuplicates(0, 0)


def diagnosis(selection, characters, near=NO_NEAR):
    return module.diagnosis(selection, characters, near)


# Ten rows, NLL before and after one epoch. LP_app_nll: .5 to .05, falling as the loss and the length rise.
NLL_0 = np.arange(1.0, 11)
DROP = np.array([0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05])
LENGTH = [1, 2, 3, 4, 5, 6, 7, 8, 9, 100]


@pytest.fixture
def table(make_table):
    ppl = np.exp([NLL_0, NLL_0 * (1 - DROP)])
    return make_table(ppl, response_tokens=LENGTH, cluster=[0] * 5 + [1] * 5)


def test_correlations_counts_and_medians_by_hand(table, make_spec):
    selection = select(table, make_spec("lp_app_nll"), 20, 0)
    found = diagnosis(selection, NO_CHARACTERS)
    # The last row of each cluster: 5 and 100 tokens. After the epoch the losses are .5, 1.1, 1.8, 2.6, 3.5, 4.5, 5.6,
    # 6.8, 8.1 and 9.5, with a median of 4; the selected rows started at 5 and 10, and end at 3.5 and 9.5.
    assert np.flatnonzero(selection.selected).tolist() == [4, 9]
    assert found["spearman"].keys() == {"response_tokens", "prompt_tokens", "nll_0"}
    assert (found["spearman"]["response_tokens"], found["spearman"]["nll_0"]) == (pytest.approx(-1), pytest.approx(-1))
    assert math.isnan(found["spearman"]["prompt_tokens"]), "all prompts have 10 tokens"
    assert found["median_response"] == {"unit": "tokens", "selected": 52.5, "all": 5.5}
    assert (found["known"], found["learned"], found["known_level"]) == (0, 1, pytest.approx(4))
    assert (found["rising"], found["duplicates"]) == (0, 0)
    assert found["warnings"] == [
        "The score correlates with the length of responses (Spearman -1.00): the median is 52 tokens for the selected "
        "rows and 6 for all rows. selection.length=matched compares rows of similar length."
    ]


def test_clusters_explain_what_lies_between_them():
    # Ranks 1 to 4 in two clusters: deviations -1.5, -.5, .5, 1.5, of which 2 x 1^2 x 2 = 4 of 5 lie between {1, 2} and
    # {3, 4}, and 0 between {1, 4} and {2, 3}. Epsilon squared: 1 - (1 - 4/5) 3/2 and 1 - 3/2.
    score = np.array([0.1, 0.2, 0.3, 0.4])
    assert explained_by_clusters(score, np.array([7, 7, 9, 9], np.int32)) == pytest.approx(0.7)
    assert explained_by_clusters(score, np.array([7, 9, 9, 7], np.int32)) == pytest.approx(-0.5)
    for one_or_four in ([1, 1, 1, 1], [1, 2, 3, 4]):
        assert math.isnan(explained_by_clusters(score, np.array(one_or_four, np.int32)))


def test_unrelated_clusters_explain_nothing():
    rng = np.random.default_rng(0)
    values = [explained_by_clusters(rng.random(2000), rng.integers(0, 200, 2000).astype(np.int32)) for _ in range(30)]
    assert abs(np.mean(values)) < 0.01, "without the correction it would be 0.1"


def test_known_is_a_loss_below_the_median_after_training_and_rising_above_its_start():
    nll = np.array([[1.0, 2, 3, 4, np.nan], [1.5, 1, 1, 5, np.nan], [0.5, 1, 2, 3, np.nan]])
    assert known_level(nll, np.array([1, 1, 1, 1, 0], np.bool_)) == 1.5
    assert rises(nll).tolist() == [True, False, False, True, False]


def test_epochs_that_the_rule_does_not_use_are_not_diagnosed(table, make_table, make_spec):
    later = np.exp([NLL_0, NLL_0 * (1 - DROP), np.full(10, 20.0)])  # every row rises in a second epoch
    more = make_table(later, response_tokens=LENGTH, cluster=[0] * 5 + [1] * 5)
    found, same = (diagnosis(select(each, make_spec("lp_app_nll"), 20, 0), NO_CHARACTERS) for each in (table, more))
    counts = {"known": 0, "learned": 1, "known_level": pytest.approx(4), "rising": 0}
    assert {name: same[name] for name in counts} == {name: found[name] for name in counts} == counts
    none = diagnosis(select(more, make_spec("perplexity"), 20, 0), NO_CHARACTERS)
    assert [none[name] for name in counts] == [None] * 4


def test_without_token_counts_lengths_are_characters(make_table, make_spec):
    table = make_table([[10.0] * 4, [9, 8, 7, 6]], tokens_known=False)
    characters = np.array([[1, 2, 3, 4], [40, 30, 20, 10]], np.int32)
    found = diagnosis(select(table, make_spec("lp_app"), 25, 0), characters)
    assert found["spearman"]["response_characters"] == pytest.approx(-1)
    assert found["spearman"]["prompt_characters"] == pytest.approx(1)
    assert found["median_response"] == {"unit": "characters", "selected": 40, "all": 25}


def test_every_warning_names_the_option_that_addresses_it(make_table, make_spec):
    # Rows that start low drop little in perplexity. Row 0 rises; rows 0 and 1 have the same content.
    start = np.linspace(0.2, 4, 10)
    nll = np.array([start, np.where(np.arange(10) == 0, start + 0.1, start * 0.5)])
    table = make_table(np.exp(nll), response_tokens=[50, 40, 30, 20, 10, 9, 8, 7, 6, 5], id=list("aacdefghij"))
    warnings = diagnosis(select(table, make_spec("lp_app"), 30, 0), NO_CHARACTERS)["warnings"]
    options = ["selection.length=matched", "selection=lp_app_nll", "selection=lp_app_nll selects"]
    options += [f"selection.{name}=drop" for name in ("known", "rising", "duplicates")]
    assert len(warnings) == 6
    assert all(option in warning for option, warning in zip(options, warnings, strict=True))
    settings = {"length": "matched", "known": "drop", "rising": "drop", "duplicates": "drop"}
    addressed = diagnosis(select(table, make_spec("lp_app_nll", **settings), 30, 0), NO_CHARACTERS)
    assert addressed["warnings"] == []


def test_known_rows_are_those_below_the_level_that_is_set(table, make_spec):
    # Rows 5 to 9 start at 6 or more: 8 and 9 are selected. The losses after the epoch have a median of 4.
    found = diagnosis(select(table, make_spec("lp_app_nll", known="drop", known_level=6), 20, 0), NO_CHARACTERS)
    assert (found["known"], found["known_level"], found["learned"]) == (0, 6, 0)
    # Learned rows are those below the median all the same: .5, 1.1, 1.8, 2.6 and 3.5.
    found = diagnosis(select(table, make_spec("lp_app_nll", known="drop", known_level=0.5), 100, 0), NO_CHARACTERS)
    assert (found["known"], found["known_level"], found["learned"]) == (0, 0.5, 5)


def test_the_rule_in_use_is_not_recommended_against_learned_rows(make_table, make_spec):
    # Three rows with a low loss that drops by 5%, and seven whose loss is halved to 2.5 or more.
    start = np.array([1.0, 1.1, 1.2, *range(5, 12)])
    nll = np.array([start, start * np.where(start < 2, 0.95, 0.5)])

    def advice(table, rule, **settings):
        found = diagnosis(select(table, make_spec(rule, **settings), 30, 0), NO_CHARACTERS)
        assert found["learned"] == 3
        return [warning.split(". ")[-1] for warning in found["warnings"] if "learns them early" in warning]

    table = make_table(np.exp(nll))
    assert advice(table, "lp_app") == ["selection=lp_app_nll selects rows that are learned late."]
    assert advice(table, "lp_app_nll") == []
    falling = make_table(np.exp([np.full(10, 10.0), np.arange(10.0)]))
    easy = advice(falling, "lp_app_nll", bucket="high")
    assert easy == ["selection.bucket=low selects rows that are learned late."]


def test_with_the_papers_budget_warnings_add_the_budget_that_their_option_needs(make_table, make_spec):
    start = np.linspace(0.2, 4, 10)  # as above: row 0 rises, rows 0 and 1 have the same content
    nll = np.array([start, np.where(np.arange(10) == 0, start + 0.1, start * 0.5)])
    table = make_table(np.exp(nll), response_tokens=[50, 40, 30, 20, 10, 9, 8, 7, 6, 5], id=list("aacdefghij"))
    selection = select(table, make_spec("lp_app", budget="paper"), 30, 0)
    warnings = " ".join(diagnosis(selection, NO_CHARACTERS, NearDuplicates(1, 3))["warnings"])
    needs = ["selection.length=matched", "selection=k_center"]
    needs += [f"selection.{name}=drop" for name in ("known", "rising", "duplicates")]
    for option in needs:
        assert warnings.count(option) == warnings.count(f"selection.budget=exact {option}") == 1


def test_k_center_is_not_recommended_to_itself(make_table, make_spec):
    table = make_table([[2.0] * 10], vectors=np.eye(10, dtype=np.float32))
    selection = select(table, make_spec("k_center"), 30, 0)
    assert diagnosis(selection, NO_CHARACTERS, NearDuplicates(1, 3))["warnings"] == []


def test_near_duplicates_are_a_warning_from_one_percent_on(table, make_spec):
    selection = select(table, make_spec("random"), 100, 0)
    others = diagnosis(selection, NO_CHARACTERS, NearDuplicates(1, 101))["warnings"]
    assert not any("near" in warning for warning in others)
    found = diagnosis(selection, NO_CHARACTERS, NearDuplicates(1, 10))
    assert (found["near_duplicates"], found["near_duplicates_among"]) == (1, 10)
    assert found["warnings"] == [
        *others,
        "1 of 10 different selected rows are near-duplicates of another one: at least 70% of their word triples are "
        "the same. selection=k_center selects rows that differ.",
    ]
    warning = diagnosis(selection, NO_CHARACTERS, NearDuplicates(1, 9))["warnings"][-1]
    assert warning.startswith("1 of 9 different selected rows (a random sample) are near-duplicates")


def test_equal_scores_are_reported_as_an_arbitrary_ranking(make_table, make_spec):
    selection = select(make_table([[10.0] * 10, [5.0] * 10]), make_spec("lp_app"), 30, 0)
    (warning,) = diagnosis(selection, NO_CHARACTERS)["warnings"]
    assert warning.startswith("10 rows are tied at the cutoff, and 3 rows are selected")
    without_ties = select(make_table([[10.0] * 10, range(1, 11)]), make_spec("lp_app"), 30, 0)
    assert not any("tied" in warning for warning in diagnosis(without_ties, NO_CHARACTERS)["warnings"])


def test_clusters_without_a_selected_row_are_reported(make_table, make_spec):
    # 1% of 1,000 clusters of 51.2 rows each are 512 rows: no cluster has two
    generator = np.random.default_rng(0)
    cluster = np.sort(np.concatenate([np.arange(1000), generator.integers(0, 1000, 50_200)])).astype(np.int32)
    table = make_table([np.full(51_200, 9.0), 1 + 7 * generator.random(51_200)], cluster=cluster)
    selection = select(table, make_spec("lp_app"), 1, 0)
    assert np.bincount(cluster[selection.selected]).max() == 1
    warnings = diagnosis(selection, np.zeros((2, 51_200), np.int32))["warnings"]
    assert "488 of 1,000 clusters have no selected row, since only 512 rows are selected." in " ".join(warnings)
    enough = diagnosis(select(table, make_spec("lp_app"), 5, 0), np.zeros((2, 51_200), np.int32))["warnings"]
    assert not any("no selected row" in warning for warning in enough)


def test_arbitrary_scores_follow_nothing(table, make_spec):
    found = diagnosis(select(table, make_spec("random"), 20, 0), NO_CHARACTERS)
    assert (found["spearman"], found["clusters"]) == (None, None)
    assert (found["known_level"], found["known"] is not None) == (pytest.approx(4), True)


def test_buckets_are_diagnosed_by_the_scores_of_all_buckets(table, make_spec):
    found = diagnosis(select(table, make_spec("lp_app_nll", bucket="low"), 20, 0), NO_CHARACTERS)
    assert (found["rows"], found["spearman"]["nll_0"]) == (10, pytest.approx(-1))


def test_a_sample_of_many_rows_is_close_to_all(make_table, make_spec, monkeypatch):
    rng = np.random.default_rng(1)
    length = rng.integers(1, 500, 20_000)
    table = make_table([[100.0] * 20_000, 99 - length / 10 + rng.normal(0, 8, 20_000)], response_tokens=length)
    selection = select(table, make_spec("lp_app"), 10, 0)
    every, expected = diagnosis(selection, NO_CHARACTERS), spearmanr(selection.score, length).statistic
    assert every["spearman"]["response_tokens"] == pytest.approx(expected)
    monkeypatch.setattr(module, "MOST_ROWS", 5_000)
    assert diagnosis(selection, NO_CHARACTERS)["spearman"]["response_tokens"] == pytest.approx(expected, abs=0.02)


def test_the_summary_has_a_line_for_each(table, make_spec):
    pairs = dict(as_pairs(diagnosis(select(table, make_spec("lp_app_nll"), 20, 0), NO_CHARACTERS)))
    assert pairs["Score correlates"].startswith("response_tokens -1.00, nll_0 -1.00, clusters 0.73 (Spearman;")
    assert pairs["Selected rows"] == (
        "median response 52 tokens (all: 6), 0 known before training, 1 learned by the scorer, 0 with rising loss, "
        "0 duplicates, 0 near-duplicates among 0"
    )
    assert "selection.length=matched" in pairs["Warning"]


@pytest.fixture(scope="module")
def characters(shared_data):
    """Characters of the prompts and the responses of Alpaca, (2, N)."""
    with lzma.open(shared_data.folder / "alpaca.jsonl.xz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return np.array(
        [[len(r["instruction"]) + len(r["input"]) for r in rows], [len(r["output"]) for r in rows]], np.int32
    )


def test_lp_app_of_alpaca_follows_length_and_initial_loss_as_measured(shared_data, characters, make_spec):
    shared_data("perplexities_alpaca.npz")
    table = read_scores(shared_data.folder / "perplexities_alpaca.npz", "opt-350m")
    found = diagnosis(select(table, make_spec("lp_app"), 10, 0), characters)
    assert f"{found['spearman']['response_characters']:.2f}" == "-0.88"
    assert f"{found['spearman']['nll_0']:.2f}" == "0.61"
    length, loss = found["warnings"][:2]
    assert "(Spearman -0.88)" in length
    assert "selection.length=matched" in length
    assert "(Spearman 0.61)" in loss
    assert "selection=lp_app_nll" in loss
    nll = diagnosis(select(table, make_spec("lp_app_nll"), 10, 0), characters)
    assert 0.19 <= nll["spearman"]["nll_0"] <= 0.29
    assert len(nll["warnings"]) == 1


@pytest.mark.parametrize("data", ["alpaca", "dolly"])
def test_only_a_selection_of_easy_rows_has_mostly_learned_ones(shared_data, make_spec, data):
    shared_data(f"perplexities_{data}.npz")
    table = read_scores(shared_data.folder / f"perplexities_{data}.npz", "opt-350m")
    hard, easy, some = (
        diagnosis(select(table, spec, 10, 0), np.zeros((2, len(table.index)), np.int32))
        for spec in (make_spec("lp_app_nll"), make_spec("lp_app_nll", bucket="high"), make_spec("random"))
    )
    n = round(len(table.index) / 10)
    assert (hard["learned"] / n, easy["learned"] / n) == (pytest.approx(0.06, abs=0.02), pytest.approx(0.85, abs=0.1))
    assert some["learned"] == pytest.approx(0.5 * n, rel=0.05)
    warned = [any("learns them early" in warning for warning in found["warnings"]) for found in (hard, easy, some)]
    assert warned == [False, True, False]
