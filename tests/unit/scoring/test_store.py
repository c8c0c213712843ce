"""The scores folder and the parts it is put together from."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.errors import UserError
from lpsel.scoring.store import Parts, find_scores, write_scores


class Tokens(SimpleNamespace):
    def __len__(self):
        return len(self.ids)


def three_rows():
    """The second has no supervised token."""
    return Tokens(
        ids=[f"{i:032x}" for i in range(3)],
        prompt_tokens=np.full(3, 5, np.int32),
        response_tokens=np.array([2, 0, 3], np.int32),
        truncated=np.zeros(3, np.bool_),
    )


def test_parts_of_all_ranks_come_together_by_row(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.clear()
    parts.add(0, 0, [2, 0], [1.5, 0.5])
    parts.add(0, 1, [-1], [np.nan])  # keeps ranks in step, is no row
    parts.add(1, 1, [0, 2], [0.25, 0.75])
    parts.wait()
    collected = parts.collect(epochs=1, rows=3)
    np.testing.assert_array_equal(collected, [[0.5, np.nan, 1.5], [0.25, np.nan, 0.75]])


def test_of_a_row_computed_twice_the_first_result_stays(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.clear()
    parts.add(0, 0, [0], [1.0])
    parts.add(0, 0, [0], [1.0000001])
    parts.wait()
    assert parts.collect(epochs=0, rows=1)[0, 0] == 1.0


def test_a_row_without_a_record_is_an_error_not_a_null(tmp_path):
    nll = np.array([[1.0, np.nan, np.nan]])
    with pytest.raises(UserError, match="1 records are missing, the first of row 2 after epoch 0"):
        write_scores(tmp_path / "scores", three_rows(), nll, {"epochs": 0})
    assert not (tmp_path / "scores").exists()


def test_a_writing_error_surfaces(tmp_path):
    parts = Parts(tmp_path / "not-made")
    parts.add(0, 0, [0], [1.0])
    with pytest.raises(FileNotFoundError):
        parts.wait()


def test_the_shortest_complete_folder_is_found(tmp_path):
    nll = np.array([[1.0, np.nan, 2.0], [0.5, np.nan, 1.0], [0.4, np.nan, 0.9]])
    for epochs in (1, 2):
        folder = tmp_path / "scores" / f"opt-dolly-0123-e{epochs}"
        write_scores(folder, three_rows(), nll[: epochs + 1], {"epochs": epochs})
    assert find_scores(tmp_path, "0123", 1).name == "opt-dolly-0123-e1"
    assert find_scores(tmp_path, "0123", 2).name == "opt-dolly-0123-e2"
    assert find_scores(tmp_path, "0123", 3) is None
    assert find_scores(tmp_path, "4567", 1) is None


def test_without_its_manifest_a_folder_is_not_complete(tmp_path):
    folder = tmp_path / "scores" / "opt-dolly-0123-e1"
    write_scores(folder, three_rows(), np.array([[1.0, np.nan, 2.0]] * 2), {"epochs": 1})
    (folder / "manifest.json").unlink()
    assert find_scores(tmp_path, "0123", 1) is None


def test_rows_without_supervised_tokens_are_null(tmp_path):
    path = write_scores(tmp_path / "s", three_rows(), np.array([[1.0, np.nan, 2.0]] * 2), {"epochs": 1})
    assert pq.read_table(path)["nll_0"].to_pylist() == [1.0, None, 2.0]
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["epochs"] == 1
