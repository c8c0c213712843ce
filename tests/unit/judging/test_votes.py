"""Unblinding, the outcome of a pair and agreement, against hand calculations and published examples."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.errors import UserError
from lpsel.judging.human import (
    Key,
    KeyPair,
    Vote,
    check_votes,
    krippendorff_alpha,
    last_votes,
    majority,
    mean_preference,
    preference,
    preferences,
    read_votes,
)

# A annotators, N pairs

NONE = np.nan
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def key(*writers):
    return Key("f" * 64, "old", "new", tuple(KeyPair(str(i), a, "", None, 1, 1) for i, a in enumerate(writers)))


def vote(annotator, pair, choice, minutes=0):
    return Vote(annotator, pair, choice, NOON + timedelta(minutes=minutes))


def nominal_alpha(value_AN):
    """1 - (n - 1) (sum of o_ck) / (sum of n_c n_k), both over c != k: Krippendorff (2011), from coincidences."""
    columns = [column[np.isfinite(column)] for column in np.asarray(value_AN, float).T]
    columns = [column for column in columns if len(column) > 1]
    values = np.unique(np.concatenate(columns))
    coincidence = np.zeros((len(values), len(values)))
    for column in columns:
        for i, one in enumerate(column):
            for j, other in enumerate(column):
                if i != j:
                    coincidence[values == one, values == other] += 1 / (len(column) - 1)
    count = coincidence.sum(axis=0)
    observed = coincidence.sum() - np.trace(coincidence)
    return 1 - (count.sum() - 1) * observed / (count.sum() ** 2 - (count**2).sum())


def test_the_preference_of_a_vote():
    preference_by_choice = {
        (choice, a): preference(vote("Ann", 0, choice), key(a)) for choice in "ab" for a in ("model", "baseline")
    }
    assert preference_by_choice == {("a", "model"): 2, ("b", "model"): 1, ("a", "baseline"): 1, ("b", "baseline"): 2}
    assert preference(vote("Ann", 0, "tie"), key("model")) == 1.5
    assert preference(vote("Ann", 0, "skip"), key("model")) is None


def test_preferences_of_several_people():
    votes = [vote("Bob", 0, "a"), vote("Ann", 1, "a"), vote("Ann", 2, "skip")]
    names, preference_AN = preferences(votes, key("model", "baseline", "model"))
    assert names == ["Ann", "Bob"]
    np.testing.assert_array_equal(preference_AN, [[NONE, 1, NONE], [2, NONE, NONE]])


def test_the_last_vote_counts_in_any_order_of_files():
    early, late, other = vote("Ann", 0, "a"), vote("Ann", 0, "tie", minutes=1), vote("Bob", 0, "b")
    assert set(last_votes([early, late, other])) == set(last_votes([late, other, early])) == {late, other}
    assert last_votes([early, early]) == [early]


def test_the_majority_of_a_pair():
    preference_AN = np.array(
        # two of three, shared by two, shared by three, one vote, none, two ties
        [
            [2, 2, 1, 1, NONE, 1.5],
            [2, 1, 1.5, NONE, NONE, 1.5],
            [1, NONE, 2, NONE, NONE, 2],
        ]
    )
    np.testing.assert_array_equal(majority(preference_AN), [2, 1.5, 1.5, 1, NONE, 1.5])
    np.testing.assert_allclose(mean_preference(preference_AN), [5 / 3, 1.5, 1.5, 1, NONE, 5 / 3])


@given(
    st.lists(st.lists(st.sampled_from([1.0, 1.5, 2.0, NONE]), min_size=3, max_size=3), min_size=1, max_size=8),
    st.randoms(),
)
def test_outcomes_do_not_depend_on_the_order_of_people_and_mirror_swapped_models(columns, random):
    preference_AN = np.array(columns).T
    shuffled = preference_AN[random.sample(range(3), 3)]
    for outcome in (majority, mean_preference):
        np.testing.assert_allclose(outcome(shuffled), outcome(preference_AN))
        np.testing.assert_allclose(outcome(3 - preference_AN), 3 - outcome(preference_AN))
    alpha = krippendorff_alpha(preference_AN)
    if alpha is None:
        assert krippendorff_alpha(shuffled) is None
    else:
        assert (
            alpha == pytest.approx(krippendorff_alpha(shuffled)) == pytest.approx(krippendorff_alpha(3 - preference_AN))
        )
        assert alpha == pytest.approx(nominal_alpha(preference_AN))


# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): A, two observers; C, four, values missing
TWO = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


@pytest.mark.parametrize(("value_AN", "published"), [(TWO, 0.095), (FOUR, 0.743)])
def test_alpha_equals_the_published_values(value_AN, published):
    alpha = krippendorff_alpha(np.array(value_AN, float))
    assert alpha == pytest.approx(published, abs=5e-4)
    assert alpha == pytest.approx(nominal_alpha(value_AN))


def test_alpha_by_hand():
    # Of TWO: 5 units agree on 0 and 1 on 1, 4 differ; 14 zeros and 6 ones among 20 values: 1 - 19 x 4 / (14 x 6).
    assert krippendorff_alpha(np.array(TWO, float)) == pytest.approx(1 - 19 * 4 / (14 * 6))


@pytest.mark.parametrize(
    "preference_AN",
    [
        [[1, 2, 1.5]],  # one person
        [[1, NONE], [NONE, 2]],  # no pair in common
        [[2, 2], [2, 2]],  # always the same vote
        [[2, 1], [2, NONE]],  # always the same, where two have voted
        [[NONE], [NONE]],
    ],
)
def test_alpha_is_none_where_it_is_undefined(preference_AN):
    assert krippendorff_alpha(np.array(preference_AN, float)) is None


def file_of(path, **changes):
    entry = {"pair": 0, "vote": "a", "at": "2026-01-01T12:00:00.000Z"}
    path.write_text(json.dumps({"page": "f" * 64, "annotator": " Ann ", "votes": [entry]} | changes))
    return path


def test_a_file_of_votes(tmp_path):
    file = read_votes(file_of(tmp_path / "votes.json"))
    assert file.votes == (vote("Ann", 0, "a"),)
    check_votes(file, key("model"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotator": " "}, "is not a file of votes. Pass files downloaded from the page."),
        ({"annotator": None}, "is not a file of votes. Pass files downloaded from the page."),
        ({"votes": {}}, "is not a file of votes. Pass files downloaded from the page."),
        ({"page": 1}, "is not a file of votes. Pass files downloaded from the page."),
        ({"votes": [3]}, r"vote 1 is damaged \(3\). Download the file again."),
        ({"votes": [{"pair": -1, "vote": "a", "at": "2026-01-01T12:00:00Z"}]}, "vote 1 is damaged"),
        ({"votes": [{"pair": 0, "vote": "c", "at": "2026-01-01T12:00:00Z"}]}, "vote 1 is damaged"),
        ({"votes": [{"pair": 0, "vote": "a", "at": "yesterday"}]}, "vote 1 is damaged"),
        ({"votes": [{"pair": 0, "vote": "a", "at": "2026-01-01T12:00:00"}]}, "vote 1 is damaged"),
        (
            {"page": "0" * 64},
            "has votes on page 000000000000, but the key is for page ffffffffffff. Pass votes on one page",
        ),
        (
            {"votes": [{"pair": 1, "vote": "a", "at": "2026-01-01T12:00:00Z"}]},
            "has a vote on pair 1, but the page has 1 pairs. Download",
        ),
    ],
)
def test_an_unusable_file_is_rejected(tmp_path, changes, message):
    path = file_of(tmp_path / "votes.json", **changes)
    with pytest.raises(UserError, match=rf"votes\.json: {message}"):
        check_votes(read_votes(path), key("model"))


def test_a_missing_file_and_invalid_json(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\). Pass files downloaded"):
        read_votes(tmp_path / "votes.json")
    (tmp_path / "votes.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not a file of votes"):
        read_votes(tmp_path / "votes.json")
