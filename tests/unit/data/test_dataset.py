"""Rows of every kind of file and every form become the same examples; what cannot be read is named with its place."""

import csv
import gzip
import itertools
import json
import lzma
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data.dataset import DatasetSpec, Example, Source, Turn
from lpsel.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
ADD = {"instruction": "Add.", "input": "2, 3", "output": "5"}
SAY = {"instruction": "Say hi.", "input": "", "output": "Hi!"}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def source(path, **settings):
    return Source(DatasetSpec(name="t", path=str(path), **settings))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def example(row, tmp_path, **settings):
    return next(iter(source(write(tmp_path / "one.jsonl", row), **settings))).example


def question(instruction, output, extra=""):
    return Example((Turn("user", instruction), Turn("assistant", output)), extra)


# --- kinds of file


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
def test_any_rows_come_back_from_any_kind_of_file(tmp_path_factory, rows, kind, compression):
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


def test_a_json_list_longer_than_what_is_read_at_once(tmp_path):
    rows = [{"instruction": "x" * 1000, "output": str(n)} for n in range(700)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert path.stat().st_size > 2 * 2**18
    assert [row.raw for row in source(path)] == rows


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in (ADD, SAY)) + b"\r\n")
    assert [row.raw for row in source(path)] == [ADD, SAY]


# --- forms


def test_alpaca_form_keeps_the_input_apart(tmp_path):
    assert example(ADD, tmp_path) == question("Add.", "5", "2, 3")
    assert example({"instruction": "a", "output": "b"}, tmp_path) == question("a", "b")
    assert example({"instruction": "a", "input": None, "output": None}, tmp_path) == question("a", "")


def test_dolly_form(tmp_path):
    row = {"instruction": "Who?", "context": "Ada.", "response": "Ada", "category": "closed_qa"}
    assert example(row, tmp_path) == question("Who?", "Ada", "Ada.")


def test_messages_and_sharegpt_say_the_same(tmp_path):
    said = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Ho"))
    messages = [{"role": role, "content": content} for role, content in said]
    conversations = [
        {"from": name, "value": turn.content} for name, turn in zip(("system", "human", "gpt"), said, strict=True)
    ]
    assert example({"messages": messages}, tmp_path) == Example(said)
    assert example({"conversations": conversations, "id": 3}, tmp_path) == Example(said)


def test_prompt_and_completion_as_text_or_as_messages(tmp_path):
    assert example({"prompt": "2+3=", "completion": "5"}, tmp_path) == question("2+3=", "5")
    sides = {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2, 3"}],
        "completion": [{"role": "assistant", "content": "5"}],
    }
    assert example(sides, tmp_path) == Example((Turn("system", "Add."), *question("2, 3", "5").turns))


def test_columns_map_other_names(tmp_path):
    row = {"frage": "a", "antwort": "b", "dialog": [{"role": "user", "content": "c"}], "input": "not ours"}
    assert example(row, tmp_path, columns={"instruction": "frage", "output": "antwort"}) == question("a", "b")
    assert example(row, tmp_path, columns={"messages": "dialog"}) == Example((Turn("user", "c"),))


# --- identity


def test_content_id_is_the_same_everywhere():
    # sha256 of {"input":"2, 3","turns":[["user","Add."],["assistant","5"]]}, as `sha256sum` gives it
    assert question("Add.", "5", "2, 3").content_id() == "25328f287323fb876c21a30c479f00e4"


@settings(deadline=None)
@given(texts, texts, texts, st.permutations(["instruction", "input", "output", "note"]))
def test_content_id_does_not_depend_on_key_order_or_other_columns(tmp_path_factory, a, b, c, order):
    row = {"instruction": a, "input": b, "output": c, "note": "n"}
    path = write(tmp_path_factory.mktemp("ids") / "rows.jsonl", {key: row[key] for key in order})
    assert source(path).ids.to_pylist() == [question(a, c, b).content_id()]


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
def test_different_content_has_different_ids(one, other):
    assert (question(*one).content_id() == question(*other).content_id()) == (one == other)


def test_fingerprint_is_of_content_and_order(tmp_path):
    a = write(tmp_path / "a.jsonl", ADD, SAY)
    b = tmp_path / "b.json"
    b.write_text(json.dumps([ADD, SAY]))
    c = write(tmp_path / "c.jsonl", SAY, ADD)
    assert source(a).fingerprint == source(b).fingerprint != source(c).fingerprint
    assert source(c, skip=1).fingerprint == source(a, limit=1).fingerprint


def test_embedding_text_is_the_papers():
    assert question(" Add. ", "5\n", "2, 3 ").embedding_text() == "Instruction: Add. 2, 3 Response: 5"
    chat = Example((Turn("system", "s"), *question("a", "b").turns, *question("c", "d").turns))
    assert chat.embedding_text() == "Instruction: a c  Response: b d"


# --- which rows


def test_skip_and_limit_take_a_window(tmp_path):
    path = write(tmp_path / "rows.jsonl", *({"instruction": str(n), "output": ""} for n in range(10)))
    rows = list(source(path, skip=3, limit=4))
    assert [row.raw["instruction"] for row in rows] == ["3", "4", "5", "6"]
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert len(source(path, skip=8, limit=4)) == 2


def test_rows_are_read_as_they_are_asked_for(tmp_path):
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


def test_a_path_for_the_embedded_rows_is_refused():
    with pytest.raises(
        UserError, match=r"^dataset.path=mine.jsonl: embedded is made from a seed.* say dataset=local.$"
    ):
        DatasetSpec("embedded", path="mine.jsonl", synthetic={"rows": 3})


def test_hub_data_sets_are_loaded_by_split(monkeypatch):
    def load_dataset(path, split):
        if path != "org/name":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.\nMore lines")
        return [SAY, ADD] if split == "train" else [ADD]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(source("org/name")) == 2
    assert len(source("org/name", split="test")) == 1
    with pytest.raises(UserError, match=r"dataset.path=org/nome .*doesn't exist on the Hub\. Name a local file or"):
        list(source("org/nome"))


# --- mistakes

MISTAKES = {
    "half a JSON line": ("rows.jsonl", json.dumps(ADD) + '\n{"instruction": "a', "rows.jsonl, line 2: not a whole"),
    "a list for a row": ("rows.jsonl", "[1]\n", "line 1: a row must be a JSON object"),
    "empty file": ("rows.jsonl", "", "rows.jsonl: no rows"),
    "empty list": ("rows.json", " [ ] ", "rows.json: no rows"),
    "half a JSON list": ("rows.json", "[\n" + json.dumps(ADD) + ",\n{", "rows.json, line 3: .*not a whole JSON value"),
    "JSON without commas": ("rows.json", f"[{json.dumps(ADD)}\n{json.dumps(ADD)}]", "line 2: .*, expected"),
    "JSON list not closed": ("rows.json", f"[{json.dumps(ADD)}", ", expected, found the end of the file"),
    "lines called .json": ("rows.json", json.dumps(ADD) + "\n" + json.dumps(SAY), "one object a line, call it .jsonl"),
    "text after a list": ("rows.json", f"[{json.dumps(ADD)}]]", "text after the list"),
    "a list of numbers": ("rows.json", "[1, 2]", "line 1: a row must be a JSON object"),
    "a CSV row too long": ("rows.csv", "instruction,output\na,b\nc,d,e\n", "line 3: 3 fields where the header has 2"),
    "an open quote": ("rows.csv", 'instruction,output\na,b\nc,"d\n', "line 3: not CSV"),
    "only a header": ("rows.csv", "instruction,output\n", "rows.csv: no rows"),
    "unknown form": ("rows.jsonl", '{"q": "a", "a": "b"}', r"columns q, a: .*dataset.columns=\{instruction: COLUMN"),
    "a field gone": ("rows.jsonl", json.dumps(ADD) + '\n{"instruction": "a"}', "line 2: no column output"),
    "a number": ("rows.jsonl", '{"instruction": "a", "output": 5}', "line 1: column output: must be text, found int"),
    "no turns": ("rows.jsonl", '{"messages": []}', "column messages: must be a list of turns, found an empty list"),
    "a turn without role": ("rows.jsonl", '{"messages": [{"content": "a"}]}', "a turn must have role and content"),
    "an unknown role": ("rows.jsonl", '{"messages": [{"role": "tool", "content": ""}]}', "role 'tool' is none of"),
    "half a character": ("rows.jsonl", r'{"instruction": "\ud800", "output": ""}', "half of a surrogate pair"),
    "unknown ending": ("rows.txt", "x", "unknown kind of file, must end in .json, .jsonl"),
    "not Parquet": ("rows.parquet", "x", "not readable as Parquet"),
    "not gzip": ("rows.jsonl.gz", "x", "cannot be read to its end"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_place(tmp_path, mistake):
    name, content, message = MISTAKES[mistake]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as told:
        list(source(tmp_path / name))
    assert "\n" not in str(told.value)
    assert name in str(told.value)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_another_encoding_is_told_with_its_line(tmp_path, kind):
    path = tmp_path / f"rows{kind}"
    rows = {".jsonl": '{"instruction": "a", "output": "é"}', ".json": "[\né]", ".csv": "instruction,output\na,é"}
    path.write_bytes(rows[kind].encode("latin-1"))
    line = 1 if kind == ".jsonl" else 2
    with pytest.raises(UserError, match=f"rows{kind}, line {line}: not UTF-8"):
        list(source(path))


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_half_a_compressed_file_is_told(tmp_path, ending):
    path = tmp_path / f"rows.jsonl{ending}"
    whole = COMPRESS[ending](b"".join(json.dumps({**ADD, "n": n}).encode() + b"\n" for n in range(1000)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be read to its end|not a whole JSON object"):
        list(source(path))


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl\.xz: no such file\. Check"):
        list(source(tmp_path / "none.jsonl.xz"))
    with pytest.raises(UserError, match="is a folder; name a file"):
        list(source(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": None}, "dataset t: no path"),
        ({"skip": -1}, "dataset.skip=-1"),
        ({"limit": 0}, "dataset.limit=0: must be at least 1"),
        ({"columns": {"instruction": "a"}}, "must name instruction and output"),
        ({"columns": {"frage": "a", "antwort": "b"}}, "must name instruction and output"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_read(wrong, message):
    with pytest.raises(UserError, match=message):
        DatasetSpec(**{"name": "t", "path": "x.jsonl", **wrong})


def test_a_cluster_column_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"dataset.cluster_column=topic: no such column, found instruction, input"):
        list(source(write(tmp_path / "rows.jsonl", ADD), cluster_column="topic"))


def test_rows_past_the_end_are_told(tmp_path):
    with pytest.raises(UserError, match=r"no rows after dataset\.skip=5"):
        list(source(write(tmp_path / "rows.jsonl", ADD), skip=5))


# --- what it costs


def test_reading_needs_no_heavy_library():
    heavy = {"torch", "transformers", "datasets", "pandas", "numpy"}
    code = f"import sys, lpsel.data.dataset; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3]
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize(("name", "rows"), [("alpaca", 52002), ("dolly", 15011)])
def test_the_papers_data_sets_have_their_published_sizes(name, rows):
    assert len(source(SHARED / f"{name}.jsonl.xz")) == rows
