"""Files are whole or not there, and JSON has no NaN."""

import ast
import csv
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.storage import digest, finite, folder_atomically, write_atomically, write_csv, write_json, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def half(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
    assert path.read_text() == "old"


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [np.float64("inf"), np.int64(3)], "c": {"d": tmp_path}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 3], "c": {"d": str(tmp_path)}}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_finite_values_are_strict_json(value):
    json.dumps(finite(value), allow_nan=False)


def test_a_lone_surrogate_is_written_as_an_escape(tmp_path):
    # As Python reads the name of a file that is not UTF-8. Other values keep their digests, as in existing caches.
    write_json(tmp_path / "a.json", {"é": "d\udcff.jsonl"})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "\\u00e9": "d\\udcff.jsonl"\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": "d\udcff.jsonl"}
    assert digest("d\udcff") == hashlib.sha256(rb'"d\udcff"').hexdigest()
    assert digest("é") == hashlib.sha256('"é"'.encode()).hexdigest()


@given(st.dictionaries(st.text(), st.integers()))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))


# --- every write of the package

PACKAGE = Path(__file__).resolve().parents[2] / "lpsel"
WRITES = {"write_text", "write_bytes", "rename", "copyfile", "copy2", "os.replace", "os.rename"}
ELSEWHERE = {
    "storage.py": "the functions that the others call",
    "cache.py": "appends lines with a checksum, and syncs",
    "commands/publish.py": "inside folder_atomically",
    "training/trained_models.py": "inside folder_atomically",
}


def bare_writes(tree):
    """Calls that write a file without a temporary name, a sync and a rename."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = f"{getattr(getattr(function, 'value', None), 'id', '')}.{name}"
        modes = [*node.args[(0 if isinstance(function, ast.Attribute) else 1) :], *(k.value for k in node.keywords)]
        writing = any(
            isinstance(m, ast.Constant) and isinstance(m.value, str) and re.fullmatch(r"[wax]b?\+?t?", m.value)
            for m in modes
        )
        if (name == "open" and writing) or owner in WRITES or (isinstance(function, ast.Attribute) and name in WRITES):
            yield name if owner not in WRITES else owner


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_written_through_storage_py(module):
    writes = list(bare_writes(ast.parse(module.read_text())))
    assert str(module.relative_to(PACKAGE)) in ELSEWHERE or writes == []


@pytest.mark.parametrize("line", ["p.write_text('x')", "open(p, 'w')", "p.open('ab')", "os.replace(a, b)"])
def test_bare_writes_are_detected(line):
    assert len(list(bare_writes(ast.parse(line)))) == 1


def test_a_folder_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    done = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    with folder_atomically(tmp_path / "made") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "a").write_text("a")
    there = done[2]
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/\.made\.[0-9a-f]{{8}}\.tmp", there)
    assert done == [f"{there}/inside", f"{there}/inside/a", there, str(tmp_path)]
    assert (tmp_path / "made/inside/a").read_text() == "a"
    write_json(tmp_path / "made/b.json", {})
    assert done[-1] == str(tmp_path / "made")


def test_two_writers_of_a_folder_do_not_mix_their_files(tmp_path):
    with folder_atomically(tmp_path / "made") as first:
        (first / "a").write_text("first")
        with folder_atomically(tmp_path / "made") as second:
            (second / "b").write_text("second")
        assert [p.name for p in (tmp_path / "made").iterdir()] == ["b"]
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_the_old_folder_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("old")
    replace = Path.replace

    def fails_for_the_new_one(path, target):
        if path.suffix == ".tmp":
            raise OSError("disk on fire")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="disk on fire"), folder_atomically(tmp_path / "made"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "old"


def test_the_old_folder_is_deleted_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("old")
    rmtree, deleted = shutil.rmtree, []

    def noted(path, **options):
        if path.exists():
            assert (tmp_path / "made" / "a").read_text() == "new"
            deleted.append((path / "a").read_text())
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", noted)
    with folder_atomically(tmp_path / "made") as folder:
        (folder / "a").write_text("new")
    assert deleted == ["old"]


def test_what_a_killed_writer_left_is_deleted_and_what_looks_like_it_is_not(tmp_path):
    for name in (".made.01234567.tmp", ".made.tmp", ".made.notes.tmp"):
        (tmp_path / name).mkdir()
    with folder_atomically(tmp_path / "made"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".made.notes.tmp", ".made.tmp", "made"]


def test_the_folder_that_a_killed_writer_has_renamed_is_put_back(tmp_path):
    old = tmp_path / ".made.01234567.old"
    old.mkdir()
    (old / "a").write_text("old")
    with pytest.raises(KeyError), folder_atomically(tmp_path / "made"):
        raise KeyError  # the next writer fails as well
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "old"
    old.mkdir()  # of a writer that was killed after the new folder was in place
    with folder_atomically(tmp_path / "made") as folder:
        (folder / "a").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "new"


def test_the_old_folder_of_a_writer_that_is_alive_is_left_to_it(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    replace, seen = Path.replace, []

    def another_writer_starts(path, target):
        if path.name.endswith(".tmp") and not seen:  # the old folder is renamed, the new one not yet in place
            seen.append(path)
            with pytest.raises(KeyError), folder_atomically(tmp_path / "made"):
                raise KeyError
            assert not (tmp_path / "made").exists()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", another_writer_starts)
    with folder_atomically(tmp_path / "made") as folder:
        (folder / "a").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "new"


def test_a_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "made").write_text("mine")
    with pytest.raises(NotADirectoryError), folder_atomically(tmp_path / "made"):
        pass
    assert (tmp_path / "made").read_text() == "mine"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path, text):
    write_csv(tmp_path / "t.csv", [{"name": text, "value": -1.5, "n": None, "safe": "a=1"}])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"name": f"'{text}", "value": "-1.5", "n": "", "safe": "a=1"}]


def test_a_table_is_written_in_blocks_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("lpsel.storage.TABLE_ROWS", 2)
    rows = [{"id": str(i), "x": i / 2} for i in range(5)]
    write_table(tmp_path / "t.parquet", iter(rows), {"x": "float64"})
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert (file.num_row_groups, file.read().to_pylist()) == (3, rows)
