"""Content ids by column (Parquet) equal those by row (JSON lines), for every form in the table."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.data import column_forms, content_ids
from lpsel.data.column_forms import FORMS, Field, Form
from lpsel.data.content_ids import fingerprint, id_array
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.example import Example, Turn


@pytest.mark.parametrize(("skip", "limit"), [(0, None), (1, 3), (3, None), (0, 2)])
def test_ids_of_a_parquet_file_equal_those_of_json_lines(parquet, lines, skip, limit):
    by_column, by_row = (
        Source(DatasetSpec("rows", path=str(path), skip=skip, limit=limit)) for path in (parquet, lines)
    )
    assert by_column.ids.to_pylist() == by_row.ids.to_pylist() == [row.example.content_id() for row in by_column]
    assert by_column.fingerprint == by_row.fingerprint
    assert len(by_column) == len(by_row.ids)


@given(st.lists(st.tuples(st.text(), st.text(), st.none() | st.text()), min_size=1, max_size=5))
def test_ids_by_column_equal_ids_by_row_for_any_text(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    questions, answers, extra = zip(*rows, strict=True)
    schema = pa.schema([(name, pa.string()) for name in ("q", "a", "i")])
    pq.write_table(pa.table({"q": questions, "a": answers, "i": extra}, schema=schema), path)
    source = Source(DatasetSpec("rows", path=str(path), columns={"instruction": "q", "output": "a", "input": "i"}))
    assert source.ids.to_pylist() == [row.example.content_id() for row in source]


def test_ids_of_nested_parquet_columns_are_those_of_texts(tmp_path):
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]
    pq.write_table(pa.table({"messages": turns}), tmp_path / "chat.parquet")
    pq.write_table(pa.table({"prompt": ["Hi"], "completion": ["Ho"]}), tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"prompt": [turns[0][:1]], "completion": [turns[0][1:]]}), tmp_path / "both.parquet")
    ids = [Source(DatasetSpec("x", path=str(tmp_path / f"{n}.parquet"))).ids for n in ("chat", "pairs", "both")]
    assert ids[0] == ids[1] == ids[2]


TEXTS = ["Add.", "", None, 'Say "ü"\n\\', "x"]
OPTIONAL_SYSTEM = Form(
    (
        Field("system", "system", "system", optional=True),
        Field("question", "question", "user"),
        Field("notes", "notes", "input", optional=True),
        Field("answer", "answer", "assistant"),
        Field("source", "source", "user", optional=True),
    )
)


def test_of_columns_that_differ_only_by_case_the_one_as_in_the_form_counts_else_the_first(tmp_path):
    columns = {"Instruction": ["no", "no"], "instruction": ["a", "b"], "OUTPUT": ["c", "d"], "Output": ["no", "no"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [Example((Turn("user", a), Turn("assistant", b))).content_id() for a, b in ("ac", "bd")]
    for name in ("rows.parquet", "rows.jsonl"):
        assert Source(DatasetSpec("t", str(tmp_path / name))).ids.to_pylist() == expected


@pytest.mark.parametrize("form", [form for form in (*FORMS, OPTIONAL_SYSTEM) if form.fields[-1].role], ids=str)
@pytest.mark.parametrize("empty", [None, ""])
def test_a_form_added_to_the_table_hashes_alike_by_column_and_by_row(tmp_path, monkeypatch, form, empty):
    """`empty`: in Parquet, the optional fields of a row that does not have them in JSON."""
    monkeypatch.setattr(column_forms, "FORMS", (form,))
    columns = {field.column: TEXTS[i:] + TEXTS[:i] for i, field in enumerate(form.fields)}
    rows = [dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True)]
    for column in (field.column for field in form.fields if field.optional):
        del rows[3][column]
        columns[column][3] = empty
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "rows.parquet")
    by_row, by_column = (Source(DatasetSpec("x", path=str(tmp_path / name))) for name in ("rows.jsonl", "rows.parquet"))
    with monkeypatch.context() as patch:
        patch.setattr(content_ids, "_by_row", None)  # a fallback to rows would fail
        ids = by_column.ids.to_pylist()
    assert ids == by_row.ids.to_pylist() == [row.example.content_id() for row in by_column]


def test_an_optional_turn_needs_text():
    rows = ({"system": text, "question": "q", "answer": "a"} for text in ("Be brief.", ""))
    full, empty = (
        column_forms.to_example(row, *column_forms.forms_of(tuple(row), [OPTIONAL_SYSTEM])).turns for row in rows
    )
    assert [turn.role for turn in full] == ["system", "user", "assistant"]
    assert [turn.role for turn in empty] == ["user", "assistant"]


def test_the_fingerprint_is_the_sha256_of_the_ids():
    ids = id_array([bytes(range(32)), bytes(range(16))])
    assert ids.to_pylist() == [bytes(range(16)).hex(), bytes(range(16, 32)).hex(), bytes(range(16)).hex()]
    # printf '%s\n%s\n%s' ... | sha256sum
    assert fingerprint(ids) == "92d1b353090fdca8c8bf7de97caad11c27d33a824109c9d6c53d4a82aadd4cef"
