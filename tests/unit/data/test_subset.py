"""Subsets contain the selected rows as in the source."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.data import subset
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.subset import write_subset

from .rows import COLUMNS


@pytest.mark.parametrize(("skip", "limit"), [(0, None), (1, 3)])
def test_a_parquet_source_gives_a_parquet_subset_of_the_same_types(parquet, tmp_path, skip, limit):
    source = Source(DatasetSpec("rows", path=str(parquet), skip=skip, limit=limit))
    selected = np.arange(len(source)) % 2 == 0
    path, seen = write_subset(source, selected, tmp_path, returned=[1, 2])
    assert path == tmp_path / "subset.parquet"
    every = pa.table(COLUMNS)
    assert pq.read_table(path).equals(every.slice(skip, limit).filter(pa.array(selected)))
    assert {row: example.instruction() for row, example in seen.rows.items()} == {
        row: COLUMNS["instruction"][skip + row] or "" for row in (1, 2)
    }


def test_any_other_source_gives_json_lines(lines, tmp_path):
    source = Source(DatasetSpec("rows", path=str(lines)))
    path, seen = write_subset(source, np.array([False, True, False, True, False]), tmp_path, returned=[4])
    assert path == tmp_path / "subset.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [rows[1], rows[3]]
    assert seen.rows.keys() == {4}
    assert seen.rows[4].instruction() == "Last"


def test_string_views_which_arrow_cannot_filter_give_json_lines(tmp_path):
    texts = pa.array(["a", "b"], pa.string_view())
    pq.write_table(pa.table({"instruction": texts, "output": texts}), tmp_path / "views.parquet")
    source = Source(DatasetSpec("rows", path=str(tmp_path / "views.parquet")))
    path, _ = write_subset(source, np.array([False, True]), tmp_path, returned=[])
    assert (path.name, json.loads(path.read_bytes())) == ("subset.jsonl", {"instruction": "b", "output": "b"})


@pytest.mark.parametrize("form", ["parquet", "lines"])
def test_characters_of_all_and_of_selected_rows_are_counted(form, tmp_path, request):
    source = Source(DatasetSpec("rows", path=str(request.getfixturevalue(form)), skip=1))
    _, seen = write_subset(source, np.array([False, False, True, True]), tmp_path, returned=[])
    # Prompts "x", "", 'Say "\u00fc\u2028\\"' + "y" and "Last" + "z": 1, 0, 10, 5 characters; responses 1, 1, 0, 1.
    assert seen.characters.tolist() == [[1, 0, 10, 5], [1, 1, 0, 1]]
    means = seen.mean_characters(np.array([False, False, True, True]), np.full(4, True))
    assert means == {"prompt": {"selected": 7.5, "all": 4.0}, "response": {"selected": 0.5, "all": 0.75}}
    means = seen.mean_characters(np.array([False, False, True, True]), np.array([True, False, True, True]))
    assert means == {"prompt": {"selected": 7.5, "all": 16 / 3}, "response": {"selected": 0.5, "all": 2 / 3}}


@pytest.mark.parametrize("form", ["parquet", "lines"])
def test_texts_to_compare_are_kept_once_for_every_content(form, tmp_path, request, monkeypatch):
    path = request.getfixturevalue(form)
    source = Source(DatasetSpec("rows", path=str(path)))
    _, seen = write_subset(source, np.full(len(source), True), tmp_path, returned=[], compared=[1, 4])
    expected = {row.example.content_id(): row.example.embedding_text() for row in source if row.index in (1, 4)}
    assert (seen.texts, seen.rows) == (expected, {})
    monkeypatch.setattr(subset, "ENDS", 5)
    _, seen = write_subset(source, np.full(len(source), True), tmp_path, returned=[], compared=[4])
    assert [*seen.texts.values()] == [f"{text[:5]} {text[-5:]}" for text in [*expected.values()][1:]]


def test_characters_of_conversations_are_counted_by_side(tmp_path):
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), ("assistant", "So.")]
    pq.write_table(
        pa.table({"messages": [[{"role": role, "content": text} for role, text in turns]]}), tmp_path / "chat.parquet"
    )
    _, seen = write_subset(
        Source(DatasetSpec("chat", path=str(tmp_path / "chat.parquet"))), np.array([True]), tmp_path, []
    )
    assert seen.characters.tolist() == [[8 + 2 + 4], [2 + 3]]
