"""Reading tables of scores."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from lpsel.errors import UserError
from lpsel.integrity import seal
from lpsel.scoring.metrics import learning_percentage
from lpsel.scoring.read import cluster_codes, read_scores

SCORES = {
    "index": [0, 1, 2],
    "id": ["a", "b", "c"],
    "prompt_tokens": pa.array([5, 6, 7], pa.int32()),
    "response_tokens": pa.array([3, 0, 9], pa.int32()),
    "truncated": [False, True, False],
    "nll_0": [2.0, None, 4.0],
    "nll_1": [1.0, None, 3.5],
}


@pytest.fixture(params=["parquet", "csv"])
def save(request, tmp_path):
    """Writes columns as a file of either kind."""

    def write(columns):
        file = tmp_path / f"scores.{request.param}"
        table = pa.table(columns)
        pq.write_table(table, file) if request.param == "parquet" else csv.write_csv(table, file)
        return file

    return write


def test_a_scores_table_is_read_as_it_is(save):
    table = read_scores(save(SCORES | {"cluster": [4, -1, 4]}))
    assert table.index.tolist() == [0, 1, 2]
    assert table.id.to_pylist() == ["a", "b", "c"]
    assert (table.prompt_tokens.tolist(), table.response_tokens.tolist()) == ([5, 6, 7], [3, 0, 9])
    assert table.truncated.tolist() == [False, True, False]
    assert table.nll == pytest.approx(np.array([[2, np.nan, 4], [1, np.nan, 3.5]]), nan_ok=True)
    assert np.asarray(table.cluster).tolist() == [4, -1, 4]
    assert (table.epochs, table.tokens_known, table.ppl) == (1, True, None)
    assert [np.asarray(a).dtype for a in (table.index, table.prompt_tokens, table.nll, table.cluster)] == [
        np.int64,
        np.int32,
        np.float64,
        np.int32,
    ]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_unusable_rows_are_those_with_a_text(save, kind):
    unusable = pa.array([None, "images", ""])
    unusable = unusable.dictionary_encode() if kind == "dictionary" else unusable.cast(kind)
    table = read_scores(save(SCORES | {"unusable": unusable}))
    assert table.unusable.type == pa.string()
    assert table.unusable.to_pylist() == [None, "images", None]
    assert table.usable.tolist() == [True, False, True]
    assert read_scores(save(SCORES | {"unusable": pa.array(["", None, ""])})).unusable is None


def test_unusable_rows_may_be_string_views(tmp_path):
    pytest.importorskip("pyarrow", "22", "older versions neither write nor cast string views")
    unusable = pa.array([None, "images", ""], pa.string_view())
    pq.write_table(pa.table(SCORES | {"unusable": unusable}), tmp_path / "scores.parquet")
    assert read_scores(tmp_path / "scores.parquet").unusable.to_pylist() == [None, "images", None]


@pytest.mark.parametrize("unusable", [[1, 2, 3], [["a"], ["b"], ["c"]]])
def test_unusable_rows_need_a_text(tmp_path, unusable):
    pq.write_table(pa.table(SCORES | {"unusable": unusable}), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=r"column unusable is .*, must be a string where a row cannot be used"):
        read_scores(tmp_path / "scores.parquet")


def test_a_scores_folder_is_as_good_as_its_table(tmp_path):
    pq.write_table(pa.table(SCORES), tmp_path / "scores.parquet")
    seal(tmp_path / "manifest.json", ["scores.parquet"], {"format": 1})
    assert len(read_scores(tmp_path)) == 3


def test_a_folder_without_a_manifest_is_not_complete_and_its_table_alone_is_the_users_own(tmp_path):
    pq.write_table(pa.table(SCORES), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=r"has no manifest\.json, which is written last, so it is not complete\. Score"):
        read_scores(tmp_path)
    assert len(read_scores(tmp_path / "scores.parquet")) == 3


def test_what_a_table_lacks_is_filled_in(save):
    table = read_scores(save({"nll_0": [2.0, None], "something_else": ["x", "y"]}))
    assert table.index.tolist() == [0, 1]
    assert table.response_tokens.tolist() == [1, 0]
    assert (table.id, table.cluster, table.tokens_known, table.epochs) == (None, None, False, 0)


def test_perplexities_are_taken_for_their_losses(save):
    table = read_scores(save({"ppl_0": [10.0, 1.0, None], "ppl_1": [5, 1, None]}))
    assert table.nll[:, 0] == pytest.approx([math.log(10), math.log(5)])
    assert np.asarray(table.ppl)[:, 0].tolist() == [10, 5]
    assert table.response_tokens.tolist() == [1, 0, 0], "1 throughout is how released tables show an empty response"


def test_perplexities_of_1_nan_and_infinity_are_defined_as_far_as_they_go(save):
    table = read_scores(save({"ppl_0": [1.0, math.nan, math.inf, 4.0], "ppl_1": [1.0, 2.0, 2.0, 2.0]}))
    np.testing.assert_allclose(table.nll[0], [0, math.nan, math.inf, math.log(4)])
    # A loss of 0 before and after training, and one that is null, are those of rows without a supervised token.
    assert table.response_tokens.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(learning_percentage(table, "lp_app"), [0, math.nan, math.nan, 0.5])


def test_ten_epochs_are_sorted_as_numbers(save):
    table = read_scores(save({f"nll_{e}": [float(e)] for e in (10, *range(10))}))
    assert table.nll[:, 0].tolist() == list(range(11))


def test_rows_are_put_in_the_order_of_their_index(save):
    order = [2, 0, 1]
    shuffled = pa.table(SCORES | {"cluster": [7, 8, 9]}).take(order)
    table = read_scores(save({name: shuffled[name] for name in shuffled.column_names}))
    assert table.id.to_pylist() == ["a", "b", "c"]
    assert np.asarray(table.cluster).tolist() == [7, 8, 9]
    assert table.nll[0, 2] == 4


def test_rows_that_tie_in_perplexity_tie_in_score(save):
    # LP_app is 1/2 in all; log and exp would separate the halves by a bit.
    ppl = np.array([3.0, 10, 7, 1e5, 20])
    table = read_scores(save({"ppl_0": ppl, "ppl_1": ppl / 2}))
    assert learning_percentage(table, "lp_app").tolist() == [0.5] * 5


def test_text_clusters_are_numbered_in_sorted_order(save):
    table = read_scores(save({"nll_0": [1.0, 2.0, 3.0, 4.0], "cluster": ["qa", "chat", "qa", "maths"]}))
    assert np.asarray(table.cluster).tolist() == [2, 0, 2, 1]


def test_a_table_of_a_run_without_clusters_has_none(save):
    cluster = pa.array([None, None], pa.int32())  # as in selection.parquet
    assert read_scores(save({"nll_0": [1.0, 2.0], "cluster": cluster})).cluster is None


def test_clusters_that_nobody_wants_are_not_looked_at(save):
    file = save({"nll_0": [1.0, 2.0], "cluster": [4, None]})
    assert read_scores(file, clusters=False).cluster is None


def test_a_loss_of_0_may_be_off_by_rounding(save):
    assert read_scores(save({"ppl_0": [0.9999999, 2.0]})).response_tokens.tolist() == [1, 1]


def test_cluster_codes_of_several_kinds():
    assert cluster_codes([2.5, -1.0, 2.5]).tolist() == [1, 0, 1]
    assert cluster_codes(pa.array([2**40, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ppl_1": [1.0]}, r"has ppl_1 but no ppl_0\. Add every epoch"),
        ({"nll_0": [1.0, 1.0], "index": [0, None]}, r"column index is int64 with 1 empty, must be an integer"),
        ({"ppl_0": [2.0, 0.5]}, r"ppl_0 of row 1 is 0\.5, perplexities are 1 or more"),
        (
            {"nll_0": [2.0], "nll_1": [-1.5]},
            r"nll_1 of row 0 is -1\.5, losses are 0 or more\. Negate log-likelihoods",
        ),
        ({"nll_0": [1.0, 1.0], "response_tokens": [4, None]}, r"column response_tokens is int64 with 1 empty, must be"),
        (
            {"nll_0": [1.0], "response_tokens": [-1]},
            r"column response_tokens has values from -1 to -1, must be 0 or more",
        ),
        ({"nll_0": [1.0], "truncated": [7]}, r"column truncated is int64, must be true or false"),
        ({"nll_0": ["1.5", None, "N.A."]}, r"column nll_0 is string.* with 'N\.A\.' in row 2, must be numbers"),
        ({"gain": [1.0], "text": ["a"]}, r"has no column nll_0 .* selection\.column=NAME, of gain, text"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_in_one_line(save, columns, message):
    """Next to the tables of tests/e2e/wrong_input."""
    with pytest.raises(UserError, match=message) as error:
        read_scores(save(columns))
    assert "\n" not in str(error.value)


def test_scores_of_the_data_set_get_its_content_ids(make_table, caplog):
    ids = ["0" * 31 + "a", "0" * 31 + "b"]
    own = make_table([[2.0, 3.0]])
    with caplog.at_level("INFO"):
        assert replace(own, id=ids).of_dataset(ids, "mine").id.to_pylist() == ids
        assert "trust" not in caplog.text
        assert own.of_dataset(ids, "mine").id.to_pylist() == ids, "ids of the user's own making are not compared"
    assert "row i is assumed to be row i of dataset mine" in caplog.text


def test_scores_in_another_order_are_matched_by_content_id(make_table, caplog):
    a, b, c = ("0" * 31 + digit for digit in "abc")
    table = replace(make_table([[2.0, 3.0, 4.0, 5.0]], cluster=[0, 1, 2, 3]), id=[b, a, c, a])
    with caplog.at_level("INFO"):
        matched = table.of_dataset([a, a, b, c], "mine")
    assert np.asarray(matched.ppl)[0].tolist() == [3, 5, 2, 4], "the first of two with the same content is the first"
    assert np.asarray(matched.cluster).tolist() == [1, 3, 0, 2]
    assert matched.id.to_pylist() == [a, a, b, c]
    assert matched.index.tolist() == [0, 1, 2, 3]
    assert "the order differs from dataset mine; rows are matched by content id" in caplog.text


def test_scores_of_other_rows_are_refused(make_table):
    ids = ["0" * 31 + "a", "0" * 31 + "b"]
    table = replace(make_table([[2.0, 3.0]]), id=ids)
    with pytest.raises(
        UserError, match=f"row 1 of dataset mine, with id {'0' * 31}c, has no score: the scores are for other rows"
    ):
        table.of_dataset([ids[0], "0" * 31 + "c"], "mine")
    with pytest.raises(UserError, match=f"row 1 of dataset mine, with id {ids[0]}, has no score"):
        table.of_dataset([ids[0]] * 2, "mine")
    with pytest.raises(UserError, match="have 2 rows, index 0 to 1; dataset mine has 1, index from 0"):
        table.of_dataset(ids[:1], "mine")
    for first, last in ((1, 2), (-1, 0), (0, 2)):
        with pytest.raises(UserError, match=f"index {first} to {last}"):
            replace(table, index=np.array([first, last])).of_dataset(ids, "mine")


def test_released_perplexities_are_taken_as_they_are(tmp_path):
    ppl = np.array([[10.0, 1, 8], [5, 1, 6], [4, 1, 5], [2, 1, 4]])
    np.savez(tmp_path / "one.npz", small=ppl)
    table = read_scores(tmp_path / "one.npz")
    assert (np.asarray(table.ppl) == ppl).all()
    assert (table.epochs, table.response_tokens.tolist(), table.tokens_known) == (3, [1, 0, 1], False)
    np.savez(tmp_path / "two.npz", small=ppl, large=ppl + 1, cluster=np.array([4, 4, 9]))
    table = read_scores(tmp_path / "two.npz", "large")
    assert (np.asarray(table.ppl) == ppl + 1).all()
    assert np.asarray(table.cluster).tolist() == [4, 4, 9]


def test_further_columns_are_kept_where_they_are_asked_for(save):
    file = save({"nll_0": [1.0, 2.0], "reward": [3, None], "ppl_0_noprompt": [1.0, 10.0], "other": ["x", "y"]})
    table = read_scores(file, columns=["reward", "nll_0_noprompt", "missing"])
    assert table.columns.keys() == {"reward", "nll_0_noprompt"}
    assert table.columns["reward"] == pytest.approx([3, np.nan], nan_ok=True)
    assert table.columns["nll_0_noprompt"] == pytest.approx([0, math.log(10)])
    assert read_scores(file).columns == {}
    with pytest.raises(UserError, match="column other is string with 'x' in row 0, must be numbers, empty where a row"):
        read_scores(file, columns=["other"])


def test_a_table_may_have_nothing_but_the_column_to_rank_by(save):
    table = read_scores(save({"reward": [1.0, 2.0]}), columns=["reward"])
    assert (len(table), table.epochs, table.response_tokens.tolist()) == (2, 0, [1, 1])


def test_parquet_from_a_database_is_read_or_refused_in_one_line(tmp_path):
    file, gain = tmp_path / "scores.parquet", pa.array(["0.25", "1.5"]).cast(pa.decimal128(9, 2))
    pq.write_table(pa.table({"gain": gain}), file)
    assert read_scores(file, columns=["gain"]).columns["gain"].tolist() == [0.25, 1.5]
    for ids in ([b"\xff", b"a"], [[1], [2]]):
        pq.write_table(pa.table({"gain": gain, "id": ids}), file)
        with pytest.raises(UserError, match=r"column id is .*, must be an id in every row"):
            read_scores(file, columns=["gain"])


@pytest.mark.parametrize("text", ["gain\n1\n\n2\n", "gain\r\n1\r\n\r\n2\r\n"])
def test_an_empty_line_of_a_single_column_is_a_row_without_a_value(tmp_path, text):
    file = tmp_path / "scores.csv"
    file.write_bytes(text.encode())
    assert read_scores(file, columns=["gain"]).columns["gain"] == pytest.approx([1, math.nan, 2], nan_ok=True)


@pytest.mark.parametrize("end", ["\n", "\n\n\n", "\r\n"])
def test_empty_lines_at_the_end_of_a_single_column_are_rows_only_if_the_dataset_has_them(tmp_path, end):
    file = tmp_path / "scores.csv"
    file.write_bytes(f"gain\n1\n2\n{end}".encode())
    for rows, expected in ((2, [1, 2]), (3, [1, 2, math.nan]), (1, [1, 2])):
        gain = read_scores(file, columns=["gain"], rows=lambda rows=rows: rows).columns["gain"]
        assert gain == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("name", "delimiter"), [("scores.csv", ","), ("SCORES.CSV", ";"), ("scores.tsv", "\t")])
def test_a_csv_file_may_have_the_texts_of_the_rows_and_another_delimiter(tmp_path, name, delimiter):
    file, text = tmp_path / name, "a line\nand, " * 300
    row = f'"{text}"{delimiter}0.5\n'
    file.write_text(f'text{delimiter}"reward"\n' + 400 * row)  # more than Arrow reads at a time
    assert read_scores(file, columns=["reward"]).columns["reward"].tolist() == 400 * [0.5]


def test_a_missing_archive_names_the_option_that_chooses_a_scorer(tmp_path):
    with pytest.raises(UserError) as caught:
        read_scores(tmp_path / "p.npz")
    assert (caught.value.name, caught.value.problem) == ("scores", "no such file")
    assert "scores_key=SCORER" in caught.value.hint


def test_integers_that_float64_cannot_hold_are_rounded(save):
    table = read_scores(save({"index": [0, 1], "large": pa.array([2**62, 2**62 + 1], pa.int64())}), columns=["large"])
    assert table.columns["large"].tolist() == [2.0**62, 2.0**62]
