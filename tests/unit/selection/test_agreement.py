"""Agreement of scorers: small tables worked by hand, scipy, and the figures known of the released perplexities."""

import json
import lzma
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from lpsel.errors import UserError
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.npz import names_in_npz, split_npz
from lpsel.scoring.read import read_scores
from lpsel.selection import agreement as module
from lpsel.selection.agreement import agreement, agreement_in_clusters, auc, kendall, lowest, spearman, tie_turns
from lpsel.selection.agreement_study import ALL, DEFINED, numbers, study
from lpsel.selection.diagnosis import learned_and_rising, score_correlations
from lpsel.selection.select import select

OPT = ("opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b")
TIES = np.array([[1.0, 2.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]])


def test_spearman_gives_ties_their_mean_rank():
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: products of deviations 4.5, squares 4.5 and 5.
    assert spearman(TIES)[0, 1] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_tau_b_leaves_ties_out_of_both_counts():
    # Of six pairs of rows five agree; the sixth is tied by the first scorer: 5 / sqrt(5 x 6).
    assert kendall(TIES)[0, 1] == pytest.approx(5 / math.sqrt(30))
    assert kendall(-TIES[:1].repeat(2, 0) * [[1], [-1]])[0, 1] == pytest.approx(-1)


@pytest.mark.parametrize("n", [20, 400])
def test_rank_correlations_are_scipys_for_few_rows_and_many(n):
    scores = np.random.default_rng(0).integers(0, 12, (3, n)).astype(float)
    assert (n > module.ROWS_OF_ALL_PAIRS) == (n == 400)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert spearman(scores)[a, b] == pytest.approx(spearmanr(scores[a], scores[b]).statistic)
        assert kendall(scores)[a, b] == pytest.approx(kendalltau(scores[a], scores[b]).statistic)
    assert np.diag(kendall(scores)) == pytest.approx(1)


@pytest.mark.parametrize("n", [4, 400])
def test_a_constant_scorer_has_no_correlation(n):
    scores = np.array([np.ones(n), np.arange(n)])
    assert np.isnan(spearman(scores)[0, 1])
    assert np.isnan(kendall(scores)[0, 1])


def test_the_overlap_is_of_the_rows_that_both_would_select():
    one = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    other = [0.3, 0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.5, 0.4, 1.0]
    found = agreement(np.array([one, other]), [10, 30, 25])
    # Lowest three: rows 0, 1, 2 and rows 2, 4, 0. 25% of ten rows is 2.5, rounded up as a selection does.
    assert found.lowest.tolist() == [1, 3, 3]
    assert found.common[:, 0, 1].tolist() == [0, 2, 2]
    assert found.share[:, 0, 1] == pytest.approx([0, 2 / 3, 2 / 3])
    assert found.chance[:, 0, 1] == pytest.approx([0.1, 0.3, 0.3])


def test_ties_at_the_cutoff_are_broken_as_in_a_selection(make_table, make_spec):
    rng = np.random.default_rng(0)
    ids = [f"{number:032x}" for number in rng.permutation(40)]
    table = replace(make_table(np.repeat([[2.0], [1.0]], 40, axis=1)), id=pa.array(ids, pa.large_string()))
    (score,) = (learning_percentage(table, "lp_app"),)
    low_N = lowest(score[None], 25, tie_turns([table]))[0]
    assert np.flatnonzero(low_N).tolist() == np.flatnonzero(select(table, make_spec("lp_app"), 25, 0).selected).tolist()
    assert low_N.sum() == 10
    assert not low_N[:10].all(), "not simply the first rows"


def test_without_content_ids_ties_at_the_cutoff_go_to_the_first_rows(make_table):
    assert tie_turns([make_table([[2.0] * 4])]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(lowest(np.array([[1.0, 0.0, 1.0, 1.0]]), 50)[0]).tolist() == [0, 1]


@given(st.integers(2, 60), st.integers(1, 100), st.integers(0, 1_000))
def test_agreement_is_symmetric_and_complete_with_itself(n, pct, seed):
    scores = np.random.default_rng(seed).random((2, n))
    there, back = agreement(scores, [pct]), agreement(scores[::-1], [pct])
    assert there.spearman[0, 1] == pytest.approx(back.spearman[0, 1])
    assert there.kendall[0, 1] == pytest.approx(back.kendall[0, 1])
    assert there.common[0, 0, 1] == back.common[0, 0, 1]
    assert there.common[0, 0, 0] == there.lowest[0]


def test_random_scorers_overlap_by_chance():
    found = agreement(np.random.default_rng(0).random((2, 200_000)), [10])
    assert found.share[0, 0, 1] == pytest.approx(0.1, abs=0.006)
    assert found.chance == pytest.approx(np.full((1, 2, 2), 0.1))


@pytest.mark.parametrize(
    ("levels", "other", "n", "by_hand"),
    # Half of five ratings' 20% are the first rows of 10%: .5 x .2 x .2 / .1; of all equal, the same rows.
    [(5, 5, 5000, 0.2), (2, 3, 3000, 0.2 * 0.5 / 3 / 0.1), (1, 1, 300, 1), (5, 40, 40, 0.1), (5, 5, 40, 0.2)],
)
def test_unrelated_scorers_with_ties_overlap_by_the_chance_of_their_ties(levels, other, n, by_hand):
    # the same numbers of ties in random orders, ties going to the first rows
    generator = np.random.default_rng(0)
    scores = np.array([np.arange(n) * k // n for k in (levels, other)], float)
    shares = []
    for _ in range(300):
        found = agreement(generator.permuted(scores, axis=1), [10])
        shares.append(found.share[0, 0, 1])
    error = np.std(shares) / 300**0.5
    assert found.chance[0, 0, 1] == pytest.approx(np.mean(shares), abs=4 * error + 0.005)
    assert found.chance[0, 0, 1] == pytest.approx(by_hand, rel=0.2 if n == 40 else 0.02)


def test_within_clusters_it_is_the_median_over_those_with_enough_rows(make_table):
    up, down = np.arange(10.0), np.arange(10.0)[::-1]
    first = np.concatenate([up, up, up, up[:9], up])
    second = np.concatenate([up, down, up, up[:9], down])
    # 7, 3 and 5 count: same, opposite, same. Cluster 9 has nine rows, -1 is no cluster.
    cluster = np.repeat([7, 3, 5, 9, -1], [10, 10, 10, 9, 10]).astype(np.int32)
    assert len(agreement_in_clusters(np.array([first, second]), cluster, [10], np.arange(len(cluster)))) == 3
    # LP_app rises with the score.
    tables = [make_table([np.full(49, 100.0), 99 - score]) for score in (first, second)]
    pair = numbers(study(["a", "b"], tables, [10], cluster))["pairs"][0]["in_clusters"]
    quartiles = {"lower_quartile": 0, "median": 1, "upper_quartile": 1}  # of -1, 1, 1
    assert pair["clusters"] == 3
    assert pair["spearman"] == pytest.approx(quartiles)
    assert pair["kendall_tau_b"] == pytest.approx(quartiles)
    lowest = {"pct": 10, "lower_quartile": 0.5, "median": 1, "upper_quartile": 1, "pooled": 2 / 3, "chance": 0.1}
    assert pair["lowest"] == [pytest.approx(lowest)]


def test_clusters_with_less_than_half_a_lowest_row_do_not_count(make_table):
    table = make_table([np.full(100, 1000.0), np.random.default_rng(0).permutation(100) + 1.0])
    cluster = np.repeat([0, 1], [10, 90]).astype(np.int32)
    low = numbers(study(["a", "b"], [table, table], [1], cluster))["pairs"][0]["in_clusters"]["lowest"][0]
    # 1% of ten rows rounds to 0; of 90 rows it is one.
    assert low["median"] == 1
    assert low["chance"] == pytest.approx(1 / 90)


def test_no_cluster_with_enough_rows_is_noted(make_table):
    table = make_table([[9.0] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 8.5]])
    values = numbers(study(["a", "b"], [table, table], [50], np.zeros(9, np.int32)))
    assert values["pairs"][0]["in_clusters"] is None
    assert values["notes"][-1] == "No cluster has enough rows for a comparison of its own."


def test_auc_is_how_often_a_selected_row_is_longer():
    # 3 against 1, 2 and 3: two wins and a draw.
    assert auc(np.array([1, 2, 3, 3]), np.array([False, False, True, False])) == pytest.approx(2.5 / 3)
    assert math.isnan(auc(np.array([1, 2]), np.array([True, True])))


def test_undefined_rows_are_left_out_in_all_tables_or_count_as_0(make_table):
    # Row 3 learned nothing by the first scorer; row 4 has no token by the second.
    one = make_table([[9.0, 9, 9, 9, 9], [8, 6, 4, 5, 7], [1, 1, 1, 9, 1]])
    other = make_table([[9.0, 9, 9, 9, 1], [4, 6, 8, 5, 1], [1, 1, 1, 1, 1]])
    made = study(["one", "other"], [one, make_table(other.ppl, response_tokens=[1, 1, 1, 1, 0])], [40])
    assert made.defined.tolist() == [True, True, True, False, False]
    # LP of one: 1/8, 3/8, 5/8, undefined, 2/8; of the other: 5/8, 3/8, 1/8, 4/8, undefined.
    assert made.between["lp", DEFINED].spearman[0, 1] == pytest.approx(-1)
    assert made.filled(ALL)[0] == pytest.approx(np.array([[1, 3, 5, 0, 2], [5, 3, 1, 4, 0]]) / 8)
    # Lowest two of five: rows 3, 0 and rows 4, 2.
    assert made.between["lp", ALL].common[0, 0, 1] == 0
    entry = numbers(made)["tables"]
    assert [t["rows_without_supervised_token"] for t in entry] == [0, 1]
    assert [t["rows_otherwise_undefined"] for t in entry] == [1, 0]


def test_one_epoch_is_enough_for_lp_app_only(make_table):
    made = study(["a", "b"], [make_table([[9.0, 9], [4, 3]]), make_table([[9.0, 9], [4, 3], [2, 2]])], [50])
    assert made.metrics == ["lp_app", "lp_app_nll"]
    assert numbers(made)["notes"] == ["LP needs at least 2 recorded epochs and a has 1: LP_app only."]


def test_tables_that_cannot_be_compared_are_an_error(make_table):
    whole, unscored = make_table([[9.0, 9], [4, 3]]), make_table([[9.0, 9]])
    with pytest.raises(UserError, match="b: has no records after an epoch"):
        study(["a", "b"], [whole, unscored], [50])
    with pytest.raises(UserError, match="a, b: 0 rows have a score in all tables"):
        study(["a", "b"], [whole, make_table([[9.0, 9], [4, 3]], response_tokens=[0, 0])], [50])
    with pytest.raises(UserError, match=r"pct=10: is 0\.2 of 2 rows, which rounds to 0"):
        study(["a", "b"], [whole, whole], [10])


def test_scores_are_compared_with_lengths_losses_and_clusters(make_table):
    # LP_app .1 to .5, lengths falling with it: the hardest row is the longest. All rows start at 10; one ends above.
    ppl = [[10.0] * 5, [9, 8, 7, 6, 5], [9, 8, 11, 6, 5]]
    tables = [make_table(ppl, response_tokens=[50, 40, 30, 20, 10])] * 2
    made = study(["a", "b"], tables, [20, 60], np.array([0, 0, 1, 1, 1], np.int32))
    entry = next(entry for entry in numbers(made)["diagnosis"] if entry["metric"] == "lp_app")
    assert entry["spearman"]["response_tokens"] == pytest.approx(-1)
    assert math.isnan(entry["spearman"]["nll_0"])
    # Ranks 1 to 5: between {1, 2} and {3, 4, 5} lie 2 x 1.5^2 + 3 of 10, so 1 - (1 - .75) 4 / 3.
    assert entry["clusters"] == pytest.approx(2 / 3)
    first, three = entry["lowest"]
    assert (first["auc"], first["mean_tokens"], first["mean_tokens_all"]) == (1, 50, 30)
    assert [(low["rows"], low["known"], low["rising"]) for low in (first, three)] == [(1, 0, 0), (3, 0, 0)]
    # LP uses the second epoch as well, after which the loss of row 2 is above the first; its LP, -3, is the lowest.
    by_lp = next(entry for entry in numbers(made)["diagnosis"] if entry["metric"] == "lp")["lowest"]
    assert [(low["rows"], low["known"], low["rising"]) for low in by_lp] == [(1, 0, 1), (3, 0, 1)]


def test_known_and_rising_rows_are_those_of_a_selection_whatever_else_a_table_records(make_table, make_spec):
    # The median NLL after epoch 1 is log 5.9, the mean of log 3.9 and log 9: row 0 starts below. After epoch 2, it is
    # log 2, below which no row starts, and row 0 is above its start.
    ppl = [[4.0, 10, 10, 20, 20, 20], [3.9, 9, 9, 1, 1, 9], [9.0, 2, 2, 2, 2, 2]]
    short, long = make_table(ppl[:2]), make_table(ppl)
    compared = numbers(study(["short", "long"], [short, long], [50]))["diagnosis"]
    counts = [[entry["lowest"][0][name] for name in ("rows", "known", "rising")] for entry in compared]
    assert {entry["metric"] for entry in compared} == {"lp_app", "lp_app_nll"}
    assert counts == [[3, 1, 0]] * 4
    selection = select(long, make_spec("lp_app"), 50, 0)
    assert learned_and_rising(selection.spec.used(long), selection.selected)["known"] == 1


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "released.npz", **arrays)
        return tmp_path / "released.npz"

    return write


def test_a_released_archive_is_read_as_scores(archive):
    table = read_scores(archive(opt=np.array([[8.0, 1, 4], [4, 1, 2]])), "opt")
    assert table.ppl.tolist() == [[8, 1, 4], [4, 1, 2]]
    assert table.nll[:, 0] == pytest.approx([math.log(8), math.log(4)])
    assert table.response_tokens.tolist() == [1, 0, 1], "1 throughout: no supervised token"
    assert (table.epochs, table.tokens_known, table.id) == (1, False, None)


def test_a_scorer_in_an_archive_has_an_address(archive):
    file = archive(opt=np.ones((2, 3)), llama=np.ones((2, 3)))
    assert split_npz(f"{file}:opt") == (file, "opt")
    assert split_npz(str(file)) == (file, None)
    assert split_npz("scores.parquet") is None
    assert names_in_npz(file) == ["opt", "llama"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), r"array opt is float64 of shape \(3,\), must be perplexities \(epochs \+ 1, rows\)"),
        (np.array([["a"]]), r"array opt is <U1 of shape"),
        (np.array([[1.0], [0.0]]), r"ppl_1 of row 0 is 0\.0, perplexities are 1 or more"),
        (np.array([[{}]]), r"cannot be read \(Object arrays cannot be loaded"),
    ],
)
def test_an_array_that_is_no_perplexities_says_why(archive, array, message):
    with pytest.raises(UserError, match=message) as error:
        read_scores(archive(opt=array), "opt")
    assert "\n" not in str(error.value)


def test_an_archive_that_cannot_be_read_says_why(archive, tmp_path):
    file = archive(opt=np.ones((2, 3)))
    with pytest.raises(UserError, match=r"gpt: no such array in released\.npz, which has opt\."):
        read_scores(file, "gpt")
    with pytest.raises(UserError, match=r"nowhere\.npz: no such file"):
        read_scores(tmp_path / "nowhere.npz", "opt")
    file.write_text("nothing of the kind")
    with pytest.raises(UserError, match=r"released\.npz: cannot be read"):
        read_scores(file, "opt")


@pytest.fixture(scope="module")
def released(shared_data):
    """The study of some scorers of a released archive, or of all."""

    @cache
    def compare(dataset, *names):
        file = Path(shared_data(f"perplexities_{dataset}.npz").zip.filename)
        names = names or names_in_npz(file)
        return study(names, [read_scores(file, name) for name in names], [10.0])

    return compare


def with_opt_13b(made, figures_SS):
    place = made.names.index
    return [f"{figures_SS[place(name), place('opt-13b')]:.3f}" for name in OPT]


def test_alpaca_has_the_known_agreement(released):
    made = released("alpaca", *OPT, "opt-13b")
    lp = made.between["lp", ALL]
    assert with_opt_13b(made, lp.spearman) == ["0.791", "0.865", "0.893", "0.916"]
    assert with_opt_13b(made, lp.kendall) == ["0.601", "0.685", "0.724", "0.757"]
    assert with_opt_13b(made, lp.share[0]) == ["0.504", "0.589", "0.640", "0.659"]
    assert with_opt_13b(made, lp.chance[0]) == ["0.100"] * 4
    assert with_opt_13b(made, made.between["lp_app", ALL].spearman) == ["0.886", "0.929", "0.941", "0.947"]


def test_dolly_rows_without_response_inflate_the_overlap(released):
    made = released("dolly")
    assert made.defined.sum() == 14_245, "765 rows have no token for Llama, one more for OPT alone"
    assert with_opt_13b(made, made.between["lp", ALL].share[0])[0] == "0.614"
    assert with_opt_13b(made, made.between["lp", DEFINED].share[0])[0] == "0.447"


@pytest.mark.parametrize(("dataset", "known"), [("alpaca", "0.806"), ("dolly", "0.802")])
def test_lp_and_lp_app_of_opt_350m_agree_as_known(released, dataset, known):
    made = released(dataset, "opt-350m", "opt-13b")
    entries = {(w["table"], w["rows"], w["a"], w["b"]): w["spearman"] for w in numbers(made)["within"]}
    assert f"{entries['opt-350m', ALL, 'lp', 'lp_app']:.3f}" == known


@pytest.mark.parametrize(
    ("name", "spearman", "shares"),
    [
        ("opt-350m", ["0.785", "0.901"], [["0.468", "0.611"], ["0.469", "0.612"]]),
        ("opt-2.7b", ["0.911", "0.952"], [["0.668", "0.743"], ["0.668", "0.744"]]),
    ],
)
def test_on_losses_a_small_scorer_agrees_with_a_large_one_on_dolly(shared_data, name, spearman, shares):
    shared_data("perplexities_dolly.npz")
    names = [name, "opt-13b"]
    tables = [read_scores(shared_data.folder / "perplexities_dolly.npz", scorer) for scorer in names]
    made = study(names, tables, [9.995, 10])
    between = [made.between[metric, DEFINED] for metric in ("lp_app", "lp_app_nll")]
    assert between[0].n == 14_467
    assert between[0].lowest.tolist() == [1446, 1447], "10% of the rows, rounded down and as a selection rounds"
    assert [f"{agreed.spearman[0, 1]:.3f}" for agreed in between] == spearman
    assert [[f"{agreed.share[p, 0, 1]:.3f}" for agreed in between] for p in (0, 1)] == shares


@pytest.mark.parametrize(
    ("dataset", "metric", "loss", "words"),
    [
        ("alpaca", "lp_app", ("0.61", "0.75"), ("-0.90", "-0.77")),
        ("alpaca", "lp_app_nll", ("0.19", "0.29"), ("-0.86", "-0.80")),
        ("dolly", "lp_app", ("0.20", "0.63"), ("-0.91", "-0.56")),
        ("dolly", "lp_app_nll", ("-0.26", "-0.19"), ("-0.82", "-0.73")),
    ],
)
def test_scores_of_seven_scorers_follow_loss_and_length_as_published(shared_data, dataset, metric, loss, words):
    with lzma.open(shared_data.folder / f"{dataset}.jsonl.xz", "rt") as lines:
        words_N = np.array([len(json.loads(line)["output"].split()) for line in lines], np.int32)
    found = []
    for name in shared_data(f"perplexities_{dataset}.npz").files:
        table = read_scores(shared_data.folder / f"perplexities_{dataset}.npz", name)
        score_N = learning_percentage(table, metric)
        rows = np.flatnonzero(np.isfinite(score_N) & (table.response_tokens > 0) & (words_N > 0))
        found.append(score_correlations(score_N, table, rows, {"words": words_N})["spearman"])
    for column, bounds in (("nll_0", loss), ("words", words)):
        values = [entry[column] for entry in found]
        assert (len(values), f"{min(values):.2f}", f"{max(values):.2f}") == (7, *bounds)
