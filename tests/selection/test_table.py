"""Reading tables of scores."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from lpsel.errors import UserError
from lpsel.selection.choose import select
from lpsel.selection.table import cluster_codes, read_scores

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


def test_a_scores_folder_is_as_good_as_its_table(tmp_path):
    pq.write_table(pa.table(SCORES), tmp_path / "scores.parquet")
    assert len(read_scores(tmp_path)) == 3


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


def test_rows_that_tie_in_perplexity_tie_in_score(save, make_spec):
    # LP_app is 1/2 in all; log and exp would move the halves apart by a bit.
    ppl = np.array([3.0, 10, 7, 1e5, 20])
    table = read_scores(save({"ppl_0": ppl, "ppl_1": ppl / 2}))
    assert np.flatnonzero(select(table, make_spec("lp_app"), 40, 0).selected).tolist() == [0, 1]


def test_text_clusters_are_numbered_in_sorted_order(save):
    table = read_scores(save({"nll_0": [1.0, 2.0, 3.0, 4.0], "cluster": ["qa", "chat", "qa", "maths"]}))
    assert np.asarray(table.cluster).tolist() == [2, 0, 2, 1]


def test_cluster_codes_of_several_kinds():
    assert cluster_codes([2.5, -1.0, 2.5]).tolist() == [1, 0, 1]
    assert cluster_codes(pa.array([2**40, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"loss": [1.0]}, r"has no column nll_0 \(or ppl_0\)\. Name the columns nll_0"),
        ({"nll_0": [1.0], "nll_2": [1.0]}, r"has nll_2 and no nll_1\. Give every epoch"),
        ({"ppl_1": [1.0]}, r"has ppl_1 and no ppl_0\. Give every epoch"),
        ({"nll_0": [1.0], "nll_1": ["low"]}, r"column nll_1 is string, must be numbers"),
        ({"ppl_0": [2.0, -3.0]}, r"ppl_0 of row 1 is -3\.0, perplexities are above 0"),
        ({"nll_0": [1.0], "index": [0.5]}, r"column index is double, must be a whole number in every row"),
        ({"nll_0": [1.0, 1.0], "index": [4, 4]}, r"index 4 stands there twice"),
        ({"nll_0": [1.0, 1.0], "response_tokens": [4, None]}, r"column response_tokens is int64 with 1 empty, must be"),
        ({"nll_0": [1.0], "response_tokens": [-1]}, r"column response_tokens holds -1 to -1, must be 0 or more"),
        ({"nll_0": [1.0, 1.0], "cluster": [4, None]}, r"column cluster is int64 with 1 empty.*cluster=none"),
        ({"nll_0": [1.0], "truncated": [7]}, r"column truncated is int64, must be true or false"),
        ({"nll_0": pa.array([], pa.float64())}, "has no rows"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_in_one_line(save, columns, message):
    with pytest.raises(UserError, match=message) as error:
        read_scores(save(columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere.csv", None, "no such file"),
        ("scores.npz", "", "unknown kind of file"),
        ("scores.parquet", "not parquet", "cannot be read"),
        ("scores.csv", "", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_scores(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_of_the_data_set_get_its_content_ids(make_table):
    ids = ["0" * 31 + "a", "0" * 31 + "b"]
    own = make_table([[2.0, 3.0]])
    assert own.of_dataset(ids, "mine").id.to_pylist() == ids, "ids of the user's own making are not compared"
    assert replace(own, id=ids).of_dataset(ids, "mine").id.to_pylist() == ids


def test_scores_of_other_rows_are_refused(make_table):
    ids = ["0" * 31 + "a", "0" * 31 + "b"]
    table = replace(make_table([[2.0, 3.0]]), id=ids)
    with pytest.raises(UserError, match=f"row 0 has id {ids[0]}, in data set mine it is {ids[1]}"):
        table.of_dataset(ids[::-1], "mine")
    with pytest.raises(UserError, match=r"have 2 rows, index 0 to 1, data set mine has 1 from 0"):
        table.of_dataset(ids[:1], "mine")
    with pytest.raises(UserError, match="index 1 to 2"):
        replace(table, index=np.array([1, 2])).of_dataset(ids, "mine")
