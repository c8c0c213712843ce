"""Rows of every kind of file are the same dictionaries; invalid files are rejected with the location."""

import csv
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data import formats, size_limits, text_files
from lpsel.data.text_files import CHUNK_BYTES
from lpsel.errors import UserError

from .rows import ADD, SAY, question, source

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def encode(rows, kind, path):
    if kind == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    elif kind == ".json":
        text = json.dumps(rows, indent=1, ensure_ascii=False)
    elif kind == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path.read_bytes()
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path.read_bytes()
    return text.encode()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"instruction": texts, "input": texts, "output": texts}), min_size=1),
    kind=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    compression=st.sampled_from(sorted(COMPRESS)),
)
def test_rows_round_trip_through_every_kind_of_file(tmp_path_factory, rows, kind, compression):
    compression = "" if kind == ".parquet" else compression
    path = tmp_path_factory.mktemp("files") / f"rows{kind}{compression}"
    path.write_bytes(COMPRESS[compression](encode(rows, kind, path)))
    read = list(source(path))
    assert [row.raw for row in read] == rows
    assert [row.index for row in read] == list(range(len(rows)))
    assert read[0].example == question(rows[0]["instruction"], rows[0]["output"], rows[0]["input"])


@pytest.mark.parametrize("name", ["data", "train"])
def test_a_json_object_with_one_list(tmp_path, name):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1.5, "about": {"data": []}, name: [ADD, SAY], "more": [1]}))
    assert [row.raw for row in source(path)] == [ADD, SAY]


def test_a_json_list_longer_than_one_chunk(tmp_path):
    rows = [{"instruction": "x" * 1000, "output": str(n)} for n in range(700)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert path.stat().st_size > 2 * CHUNK_BYTES
    assert [row.raw for row in source(path)] == rows


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in (ADD, SAY)) + b"\r\n")
    assert [row.raw for row in source(path)] == [ADD, SAY]


# --- invalid files

INVALID = {
    "half a JSON line": (
        "rows.jsonl",
        json.dumps(ADD) + '\n{"instruction": "a',
        "rows.jsonl, line 2: not a valid JSON",
    ),
    "a list for a row": ("rows.jsonl", "[1]\n", "line 1: a row must be a JSON object"),
    "a list called .jsonl": ("rows.jsonl", f"[{json.dumps(ADD)}]", r"Name the file \.json if it is one list"),
    "an object in several lines": ("rows.jsonl", json.dumps(ADD, indent=1), r"Write every object in one line"),
    "a list with another name": (
        "rows.json",
        json.dumps({"n": [], "rows": [ADD]}),
        r"no list named data or train, only n, rows",
    ),
    "old line ends": ("rows.csv", "instruction,output\ra,b\r", "rows.csv: its lines end with a carriage return only"),
    "half a JSON list": ("rows.json", "[\n" + json.dumps(ADD) + ",\n{", "rows.json, row 2: not valid JSON"),
    "JSON without commas": ("rows.json", f"[{json.dumps(ADD)}\n{json.dumps(ADD)}]", "row 2: not valid JSON"),
    "JSON list not closed": ("rows.json", f"[{json.dumps(ADD)}", "row 2: not valid JSON"),
    "lines called .json": ("rows.json", json.dumps(ADD) + "\n" + json.dumps(SAY), "no list named data or train"),
    "a value that is no list": ("rows.json", '{"data": {"data": [1]}}', "no list named data or train"),
    "text after a list": ("rows.json", f"[{json.dumps(ADD)}]]", "row 2: not valid JSON"),
    "a text": ("rows.json", '"rows"', "rows.json: must be a list of objects"),
    "a list of numbers": ("rows.json", "[1, 2]", "row 1: a row must be a JSON object"),
    "deep nesting": ("rows.json", "[" * 10**5 + "]" * 10**5, "row 1: not valid JSON .maximum recursion depth"),
    "two lists without a comma": ("rows.json", f'{{"data": [{json.dumps(ADD)}] "x": []}}', "row 2: not valid JSON"),
    "a comma too many": ("rows.json", f"[{json.dumps(ADD)},]", "row 2: not valid JSON"),
    "a long number": ("rows.json", f"[{'9' * 5000}]", "row 1: not valid JSON"),
    "a long CSV row": ("rows.csv", "instruction,output\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2"),
    "an open quote": ("rows.csv", 'instruction,output\na,b\nc,"d\n', "line 3: not valid CSV"),
    "a repeated column": ("rows.csv", "output,output\na,b\n", "rows.csv: 2 columns are named 'output'"),
    "not Parquet": ("rows.parquet", "x", "not readable as Parquet"),
    "not gzip": ("rows.jsonl.gz", "x", "cannot be read to the end"),
}


@pytest.mark.parametrize(
    ("name", "compress", "hint"),
    [
        ("rows.jsonl", gzip.compress, "Name it rows.jsonl.gz"),
        ("rows.json", lzma.compress, "Name it rows.json.xz"),
        ("rows.csv.gz", lambda content: gzip.compress(gzip.compress(content)), "Decompress it first"),
        ("rows.csv", lambda _: b"PK\x03\x04 docs", "its name should end in .zip"),
        ("rows.json", lambda _: b"PAR1\x15\x04", "its name should end in .parquet"),
    ],
)
def test_a_binary_file_with_the_name_of_a_text_file_is_rejected(tmp_path, name, compress, hint):
    (tmp_path / name).write_bytes(compress(b"instruction,output\na,b\n"))
    with pytest.raises(UserError, match=rf"(?i)not text, but the content of a \.\w+ file\. {hint}"):
        list(source(tmp_path / name))


@pytest.mark.parametrize("first", ["sep=,\n", "SEP=,\r\n\n"])
def test_the_first_line_of_excel_names_the_delimiter(tmp_path, first):
    (tmp_path / "rows.csv").write_bytes(f'\ufeff{first}instruction,output;x\n"a;b",c\nd\n'.encode())
    rows = source(tmp_path / "rows.csv", columns={"instruction": "instruction", "output": "output;x"})
    line = 4 + first.count("\n\n")
    with pytest.raises(
        UserError, match=rf"line {line}: 1 fields, but the header has 2\. Quote fields that contain ','"
    ):
        list(rows)
    assert next(iter(rows)).raw == {"instruction": "a;b", "output;x": "c"}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_file_is_rejected_in_one_line_with_its_location(tmp_path, case):
    name, content, message = INVALID[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        list(source(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert caught.value.name.startswith(str(tmp_path / name))


def test_ndjson_and_tsv_are_read_as_json_lines_and_csv(tmp_path):
    (tmp_path / "rows.ndjson").write_text(json.dumps(ADD) + "\n")
    (tmp_path / "rows.tsv").write_text("\t".join(ADD) + "\n" + "\t".join(ADD.values()) + "\n")
    assert [[row.raw for row in source(tmp_path / name)] for name in ("rows.ndjson", "rows.tsv")] == 2 * [[ADD]]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_another_encoding_is_rejected_with_its_line(tmp_path, kind):
    path = tmp_path / f"rows{kind}"
    rows = {".jsonl": '{"instruction": "a", "output": "é"}', ".json": "[\né]", ".csv": "instruction,output\na,é"}
    path.write_bytes(rows[kind].encode("latin-1"))
    line = 1 if kind == ".jsonl" else 2
    with pytest.raises(UserError, match=f"rows{kind}, line {line}: not UTF-8"):
        list(source(path))


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_half_a_compressed_file_is_rejected(tmp_path, kind, extension):
    path = tmp_path / f"rows{kind}{extension}"
    rows = [{**ADD, "n": n} for n in range(1000)]
    text = json.dumps(rows) if kind == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    whole = COMPRESS[extension](text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be read to the end|not (a )?valid JSON"):
        list(source(path))


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_a_value_that_would_fill_the_memory_is_rejected(tmp_path, monkeypatch, kind, extension):
    for module in (formats, text_files):
        monkeypatch.setattr(module, "VALUE_BYTES", 1000)
        monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    path = tmp_path / f"rows{kind}{extension}"
    rows = [ADD, {**SAY, "output": "x" * 5000}]
    text = json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows))
    path.write_bytes(COMPRESS[extension](text.encode()))
    with pytest.raises(UserError, match=f"{'row' if kind == '.json' else 'line'} 2: a value of more than"):
        list(source(path))


def test_decompression_bombs_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(size_limits, "EXPANDED_BYTES", 1000)
    for kind, text in ((".json", "[" + " " * 10**6 + "]"), (".jsonl", "\n" * 10**6)):
        (tmp_path / f"rows{kind}.xz").write_bytes(lzma.compress(text.encode()))
        with pytest.raises(UserError, match=f"rows{kind}.xz: .* bytes expand to .* or more, over 200 times the size"):
            list(source(tmp_path / f"rows{kind}.xz"))


def test_json_numbers_are_those_of_json_lines(tmp_path):
    row = {**ADD, "numbers": [1, 2.5, -0.0, 1e300, 123456789012345678901234567890]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert next(source(tmp_path / "rows.json").raw_rows()) == row


@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_half_a_surrogate_pair_is_rejected_with_its_row(tmp_path, kind):
    path = tmp_path / f"rows{kind}"
    whole = json.dumps({**ADD, "output": "\\ud83d \U0001f600"})
    half = json.dumps({**ADD, "output": "\ud83d!"})
    path.write_text(f"[{whole}, {half}]" if kind == ".json" else f"{whole}\n{half}\n")
    with pytest.raises(UserError, match="contains half of a surrogate pair") as caught:
        list(source(path))
    assert caught.value.name == "column output"
    assert caught.value.location == f"{path}, {'row' if kind == '.json' else 'line'} 2"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3), min_size=1),
    before=st.dictionaries(st.sampled_from(["a", "b", "c"]), json_values),
    chunk_bytes=st.integers(1, 40),
    escaped=st.booleans(),
    indent=st.none() | st.just(1),
)
def test_a_json_list_is_the_same_in_chunks_of_any_size(tmp_path_factory, rows, before, chunk_bytes, escaped, indent):
    path = tmp_path_factory.mktemp("files") / "rows.json"
    text = json.dumps({**before, "data": rows, "more": [1]}, ensure_ascii=escaped, indent=indent)
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair can only be written as an escape
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for module in (formats, text_files):
            patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        assert list(source(path).raw_rows()) == json.loads(text)["data"]
