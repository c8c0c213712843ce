"""Several files, folders and globs are one dataset; Hub datasets can be streamed."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.paths import absolute, is_hub_id, local_files
from lpsel.data.subset import write_subset
from lpsel.errors import UnusableRow, UserError

from .rows import ADD, SAY, source, write

ROWS = [{"instruction": f"Count to {n}.", "input": "", "output": str(n)} for n in range(7)]


def several(*paths, **settings):
    return Source(DatasetSpec("t", path=[str(path) for path in paths], **settings))


@pytest.fixture
def folder(tmp_path):
    """Seven rows in files of three kinds, in the order of their names."""
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.jsonl", *ROWS[:3])
    with (folder / "b.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(ROWS[3:5])
    pq.write_table(pa.Table.from_pylist(ROWS[5:]), folder / "c.parquet")
    (folder / "README.md").write_text("Seven rows")
    (folder / ".hidden.jsonl").write_text("not JSON")
    return folder


def test_a_folder_a_glob_and_a_list_are_one_dataset(folder, tmp_path):
    whole = source(write(tmp_path / "whole.jsonl", *ROWS))
    listed = several(folder / "a.jsonl", folder / "b.csv", folder / "c.parquet")
    for joined in (source(folder), source(folder / "*.[jcp]*"), listed):
        assert [row.index for row in joined] == list(range(7))
        assert [row.raw for row in joined] == ROWS
        assert joined.ids == whole.ids
    assert [row.raw for row in source(folder, skip=2, limit=4)] == ROWS[2:6]
    assert source(folder, skip=2, limit=4).ids == source(tmp_path / "whole.jsonl", skip=2, limit=4).ids
    assert source(tmp_path / "**" / "a.jsonl").ids == source(folder / "a.jsonl").ids


def test_messages_name_the_file_and_its_own_line(folder):
    write(folder / "b2.jsonl", ADD, {"instruction": "a", "output": ["b"]})
    with pytest.raises(UnusableRow) as caught:
        list(source(folder))
    assert caught.value.location == f"{folder / 'b2.jsonl'}, line 2"
    assert source(folder).location(3) == f"{folder / 'b.csv'}, line 2"


def test_of_a_folder_with_splits_one_is_read(folder):
    write(folder / "test.jsonl", ADD)
    write(folder / "train-00000.jsonl", SAY)
    assert [row.raw for row in source(folder)] == [SAY]
    assert [row.raw for row in source(folder, split="test")] == [ADD]


SPLITS = {
    "train": [
        *("train.jsonl", "Train-00000-of-00002.parquet", "train-00001-of-00002-0123456789abcdef.parquet"),
        *("train_00.jsonl.gz", "train7.csv", "my_train.jsonl", "data.train.jsonl"),
    ],
    "train_sft": ["train_sft-00000-of-00001.parquet", "train_sft.jsonl"],
    "test_sft": ["test_sft-00000-of-00001.parquet"],
    "fold1": ["fold1.jsonl", "fold1-00000.jsonl"],
    "fold10": ["fold10.jsonl"],
    "pretrain": ["pretrain.jsonl"],
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_whole_name_of_a_split_counts(tmp_path, split):
    for name in [name for names in SPLITS.values() for name in names]:
        (tmp_path / name).touch()
    assert {file.name for file in local_files(str(tmp_path), split)} == set(SPLITS[split])
    assert local_files(str(tmp_path), split.upper()) == local_files(str(tmp_path), split)


def test_a_folder_of_other_splits_only_is_rejected(tmp_path):
    for name in ("train_sft.jsonl", "validation.jsonl"):
        write(tmp_path / name, ADD)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=rf"dataset\.split={split}: .* only train_sft\.jsonl, validation\.jsonl"):
            local_files(str(tmp_path), split)
    write(tmp_path / "latest.jsonl", ADD)
    assert len(local_files(str(tmp_path), "test")) == 3, "a file that is named for no split may be of any"


def test_a_file_that_changes_or_disappears_between_two_passes_is_rejected(folder):
    rows = source(folder)
    assert len(rows) == 7
    write(folder / "a.jsonl", *ROWS[:2])
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was being read"):
        list(rows)
    rows = source(folder)
    assert len(rows) == 6
    (folder / "c.parquet").unlink()
    with pytest.raises(UserError, match=r"c\.parquet: changed while it was being read"):
        list(rows)


def test_files_that_describe_a_dataset_are_not_read_from_folders(tmp_path):
    """Of LLaMA-Factory, the Hub's cache and `save_to_disk`; a file that is named is read."""
    write(tmp_path / "rows.jsonl", ADD)
    for name in ("dataset_info.json", "dataset_infos.json", "state.json"):
        (tmp_path / name).write_text("[{}]")
    assert len(source(tmp_path)) == len(source(tmp_path / "*.json*")) == 1
    assert len(list(source(tmp_path / "state.json").raw_rows())) == 1
    (tmp_path / "rows.jsonl").rename(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(
        UserError, match=r"without data files\. Write it with Dataset\.to_parquet instead of save_to_disk"
    ):
        list(source(tmp_path))


def test_paths_without_files_are_rejected(tmp_path, tmp_path_factory):
    with pytest.raises(UserError, match="no such file"):
        list(several(write(tmp_path / "rows.jsonl", ADD), "org/name"))
    with pytest.raises(UserError, match="is a folder without data files"):
        list(source(tmp_path_factory.mktemp("empty")))
    with pytest.raises(UserError, match="matches no file that ends in"):
        list(source(tmp_path / "*.csv"))


@pytest.mark.parametrize(
    ("types", "name"), [((pa.string(),) * 2, "parquet"), ((pa.string(), pa.large_string()), "jsonl")]
)
def test_the_subset_of_parquet_files_is_parquet_if_their_schemas_are_the_same(tmp_path, types, name):
    for i, kind in enumerate(types):
        schema = pa.schema([(column, kind) for column in ROWS[0]])
        pq.write_table(pa.Table.from_pylist(ROWS[i * 3 : i * 3 + 3], schema), tmp_path / f"{i}.parquet")
    rows = source(tmp_path / "*.parquet", skip=1)
    selected = np.array([True, False, True, False, True])
    path, seen = write_subset(rows, selected, tmp_path, returned=[3])
    assert path.name == f"subset.{name}"
    written = pq.read_table(path).to_pylist() if name == "parquet" else list(map(json.loads, path.open()))
    assert written == [ROWS[1], ROWS[3], ROWS[5]]
    assert seen.rows[3].instruction() == "Count to 4."
    assert seen.characters.tolist() == [[11] * 5, [1] * 5]


def test_a_dataset_folder_is_streamed_without_storing_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    stored = folder / "stored"
    stored.mkdir()
    write(stored / "train.jsonl", *ROWS)
    streamed = source(stored, streaming=True)
    assert streamed.files == []
    assert [row.raw for row in streamed] == [row.raw for row in streamed] == ROWS
    assert streamed.ids == source(stored).ids
    assert [row.raw for row in source(stored, streaming=True, skip=2, limit=2)] == ROWS[2:4]
    assert not list(tmp_path.rglob("*.arrow"))
    with pytest.raises(UserError, match="the Hub reports for split test"):
        list(source(stored, streaming=True, split="test"))


def test_paths_in_manifests_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", ADD)
    assert absolute(["rows.jsonl", "*.csv"]) == [str(tmp_path / "rows.jsonl"), str(tmp_path / "*.csv")]
    assert absolute(".") == str(tmp_path)
    assert absolute("org/name") == "org/name"
    paths = ("org/name", "rows.jsonl", "*.csv", ".", None, ["a"], "/org/deleted", "~/deleted")
    assert [is_hub_id(path) for path in paths] == [True, *[False] * 7]
