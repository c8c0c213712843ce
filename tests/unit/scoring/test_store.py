"""The scores folder and the parts it is put together from."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from lpsel.cache import Entry
from lpsel.errors import UserError
from lpsel.scoring.store import Parts, find_scores, scores_folder, write_scores
from lpsel.storage import read_json, write_json


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
        unusable=None,
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
    with pytest.raises(UserError, match="1 records are missing or damaged, the first of row 2 after epoch 0"):
        write_scores(tmp_path / "scores", three_rows(), nll, {"epochs": 0})
    assert not (tmp_path / "scores").exists()


def test_damaged_records_of_an_earlier_epoch_name_the_folder_to_delete(tmp_path, caplog):
    parts = Parts(tmp_path / "parts")
    parts.clear()
    parts.add(0, 0, [0, 2], [1.5, 0.5])
    parts.add(1, 0, [0, 2], [1.0, 0.25])
    parts.wait()
    damaged = next((tmp_path / "parts").glob("epoch000-*"))
    damaged.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        write_scores(tmp_path / "scores", three_rows(), parts.collect(1, 3), {"epochs": 1}, records=parts.folder)
    assert f"Records {damaged} are damaged" in caplog.text
    assert caught.value.name == str(parts.folder)
    assert caught.value.problem == "2 records are missing or damaged, the first of row 0 after epoch 0"
    assert caught.value.hint.startswith("delete it to score again")


def test_a_writing_error_surfaces(tmp_path):
    parts = Parts(tmp_path / "not-made")
    parts.add(0, 0, [0], [1.0])
    with pytest.raises(FileNotFoundError):
        parts.wait()


@pytest.fixture
def entry(tmp_path):
    return Entry.of(tmp_path, "scores", {"template": "alpaca"}, label="opt dolly")


def write(entry, epochs, columns=()):
    folder = scores_folder(entry, epochs, columns)
    values = {name: np.ones(3) for name in columns}
    manifest = {"key": entry.key, **entry.key, "epochs": epochs, "columns": [*columns]}
    write_scores(folder, three_rows(), np.array([[1.0, np.nan, 2.0]] * (epochs + 1)), manifest, values)
    return folder


def test_the_complete_folder_with_the_fewest_epochs_is_found(tmp_path, entry):
    one, two = write(entry, 1), write(entry, 2)
    assert one.name == f"opt-dolly-{entry.digest}-e1"
    assert find_scores(entry, 0) == find_scores(entry, 1) == one
    assert find_scores(entry, 2) == two
    assert find_scores(entry, 3) is None
    assert find_scores(Entry.of(tmp_path, "scores", {"template": "chat"}, label="opt dolly"), 1) is None
    assert find_scores(Entry.of(tmp_path, "scores", {"template": "alpaca"}, label="another name"), 1) == one


def test_scores_with_more_columns_are_found(entry):
    write(entry, 1)
    both = write(entry, 1, ["el2n_0", "nll_0_noprompt"])
    assert both.name.endswith("-e1+el2n_0+nll_0_noprompt")
    assert find_scores(entry, 1, ["nll_0_noprompt"]) == both
    assert find_scores(entry, 1, ["other"]) is None


def test_without_its_manifest_a_folder_is_not_complete(entry):
    (write(entry, 1) / "manifest.json").unlink()
    assert find_scores(entry, 1) is None


@pytest.mark.parametrize("change", [{"template": "chat"}, {"key": {}}, {"epochs": "1"}, {"columns": None}])
def test_damaged_scores_are_an_error_even_where_others_would_do(entry, change):
    write(entry, 1)
    two = write(entry, 2)
    write_json(two / "manifest.json", read_json(two / "manifest.json") | change)
    with pytest.raises(UserError) as caught:
        find_scores(entry, 1)
    assert caught.value.name == str(two / "manifest.json")
    assert caught.value.hint == f"delete {two} to compute these scores again"


def test_a_loss_that_is_not_finite_is_infinite_and_not_missing(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.clear()
    parts.add(0, 0, [0, 2], [np.nan, -np.inf])
    parts.wait()
    nll = parts.collect(epochs=0, rows=3)
    assert nll.tolist() == [[np.inf, pytest.approx(np.nan, nan_ok=True), np.inf]]
    path = write_scores(tmp_path / "scores", three_rows(), nll, {"epochs": 0})
    assert pq.read_table(path)["nll_0"].to_pylist() == [np.inf, None, np.inf]
    assert read_json(path.with_name("manifest.json"))["rows_not_finite"] == 2


def test_rows_without_supervised_tokens_are_null(tmp_path):
    path = write_scores(tmp_path / "s", three_rows(), np.array([[1.0, np.nan, 2.0]] * 2), {"epochs": 1})
    assert pq.read_table(path)["nll_0"].to_pylist() == [1.0, None, 2.0]
    assert read_json(tmp_path / "s" / "manifest.json")["epochs"] == 1
