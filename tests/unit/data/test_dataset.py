"""Sources: which rows they give, in which order, and what they reject."""

import itertools
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.example import Example
from lpsel.data.subset import write_subset
from lpsel.data.tokens import tokenize
from lpsel.errors import UserError

from .rows import ADD, SAY, source, write

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def test_skip_and_limit_take_a_window(tmp_path):
    path = write(tmp_path / "rows.jsonl", *({"instruction": str(n), "output": ""} for n in range(10)))
    rows = list(source(path, skip=3, limit=4))
    assert [row.raw["instruction"] for row in rows] == ["3", "4", "5", "6"]
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert len(source(path, skip=8, limit=4)) == 2


def test_rows_are_streamed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ADD) + "\n" + json.dumps(SAY) + "\nnot json\n")
    assert [row.raw for row in itertools.islice(source(path), 2)] == [ADD, SAY]
    assert len(source(path, limit=2)) == 2


def test_embedded_rows_come_from_the_generator(monkeypatch):
    def generate(split, rows):
        assert split == "held_out"
        return ({**ADD, "task": "sum"} for _ in range(rows))

    monkeypatch.setitem(sys.modules, "lpsel.toy.data", types.SimpleNamespace(generate=generate))
    spec = DatasetSpec("embedded", split="held_out", cluster_column="task", synthetic={"rows": 3})
    assert [row.raw["task"] for row in Source(spec)] == ["sum"] * 3


def test_a_path_for_the_embedded_rows_is_rejected():
    with pytest.raises(UserError) as caught:
        DatasetSpec("embedded", path="mine.jsonl", synthetic={"rows": 3})
    assert (caught.value.name, caught.value.value) == ("dataset.path", "mine.jsonl")
    assert caught.value.hint == "set dataset=local"


def test_hub_data_sets_are_loaded_by_split(monkeypatch):
    def load_dataset(path, split, streaming, revision):
        assert (streaming, revision) == (False, None)
        if path != "org/name":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.\nMore lines")
        return [SAY, ADD] if split == "train" else [ADD]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(source("org/name")) == 2
    assert len(source("org/name", split="test")) == 1
    with pytest.raises(UserError, match=r"^dataset.path=org/nome: .*doesn't exist on the Hub\. Set it to a local file"):
        list(source("org/nome"))


def test_every_pass_reads_the_commit_that_a_branch_stood_for(monkeypatch):
    heads, loaded = ["c1", "c2"], []

    def dataset_info(self, path, revision, timeout):
        assert (path, revision) == ("org/name", "main")
        return types.SimpleNamespace(sha=heads.pop(0))

    def load_dataset(path, split, streaming, revision):
        loaded.append(revision)
        return [SAY, ADD]

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    rows = source("org/name", revision="main")
    assert [len(list(rows)), len(list(rows)), rows.commit, *loaded] == [2, 2, "c1", "c1"]


def test_the_revision_is_the_given_one_where_the_hub_does_not_reply(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert source("org/name", revision="v1").commit == "v1"


def test_local_rows_have_no_revision(tmp_path):
    assert source(tmp_path / "rows.jsonl").commit is None
    with pytest.raises(UserError) as caught:
        source(tmp_path / "rows.jsonl", revision="main")
    assert (caught.value.name, caught.value.value) == ("dataset.revision", "main")


# --- invalid settings


@pytest.mark.parametrize(("name", "content"), [("rows.jsonl", ""), ("rows.json", " [ ] "), ("rows.csv", "a,b\n")])
def test_a_file_without_rows_is_rejected(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        list(source(tmp_path / name))
    assert (caught.value.name, caught.value.problem) == (str(tmp_path / name), "no rows")


def test_a_missing_file_and_a_folder_are_rejected(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl\.xz: no such file\."):
        list(source(tmp_path / "none.jsonl.xz"))
    with pytest.raises(UserError, match="is a folder without data files"):
        list(source(tmp_path))
    (tmp_path / "rows.txt").touch()
    with pytest.raises(UserError, match=r"must end in \.json, \.jsonl"):
        list(source(tmp_path / "rows.txt"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"path": None}, "dataset.path"),
        ({"skip": -1}, "dataset.skip"),
        ({"limit": 0}, "dataset.limit"),
        ({"columns": {"instruction": "a"}}, "dataset.columns"),
        ({"columns": {"instruction": "a", "output": None}}, "dataset.columns"),
        ({"columns": {"frage": "a", "antwort": "b"}}, "dataset.columns"),
        ({"columns": ["instruction"]}, "dataset.columns"),
    ],
)
def test_an_invalid_setting_is_rejected_before_anything_is_read(change, name):
    with pytest.raises(UserError) as caught:
        DatasetSpec(**{"name": "t", "path": "x.jsonl", **change})
    assert caught.value.name == name


def test_a_missing_cluster_column_is_rejected(tmp_path):
    with pytest.raises(UserError) as caught:
        list(source(write(tmp_path / "rows.jsonl", ADD), cluster_column="topic"))
    assert (caught.value.name, caught.value.value) == ("dataset.cluster_column", "topic")


def test_a_row_to_skip_may_lack_the_cluster_column(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"topic": "a", **ADD}, {"instruction": "Bake"})
    rows = source(path, cluster_column="topic", bad_rows="skip")
    assert [row.unusable is None for row in rows] == [True, False]


def test_skipping_all_rows_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no rows after dataset\.skip=5"):
        list(source(write(tmp_path / "rows.jsonl", ADD), skip=5))


# --- passes


def test_the_rows_are_hashed_once(tmp_path, monkeypatch, make_tokenizer):
    rows = source(write(tmp_path / "rows.jsonl", ADD, SAY))
    hashed = []
    digest = Example.content_digest
    monkeypatch.setattr(Example, "content_digest", lambda self: hashed.append(1) or digest(self))
    assert len(rows) == 2
    tokens = tokenize(rows, make_tokenizer(), "alpaca", 512, tmp_path / "cache")
    write_subset(rows, np.array([True, False]), tmp_path, [0])
    assert tokens.ids.to_pylist() == rows.ids.to_pylist()
    assert len(hashed) == 2


def test_a_file_that_changes_between_two_passes_is_rejected(tmp_path):
    path = write(tmp_path / "rows.jsonl", ADD, SAY)
    rows = source(path)
    assert len(rows) == 2
    write(path, SAY, ADD, ADD)
    with pytest.raises(UserError, match=r"changed while it was being read\. Run the command again\."):
        list(rows)


# --- cost


def test_reading_needs_no_heavy_library():
    heavy = {"torch", "transformers", "datasets", "pandas", "numpy"}
    code = f"import sys, lpsel.data.dataset; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3]
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize(("name", "rows"), [("alpaca", 52002), ("dolly", 15011)])
def test_the_papers_data_sets_have_their_published_sizes(name, rows):
    assert len(source(SHARED / f"{name}.jsonl.xz")) == rows
