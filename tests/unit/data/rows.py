"""Rows, and sources of them."""

import json

import pyarrow as pa

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.example import Example, Turn

ADD = {"instruction": "Add.", "input": "2, 3", "output": "5"}
SAY = {"instruction": "Say hi.", "input": "", "output": "Hi!"}
COLUMNS = {
    "instruction": ["Add 2 and 3.\nPlease.", "", None, 'Say "ü\u2028\\"', "Last"],
    "context": [None, "x", "", "y", "z"],
    "response": ["5", "b", "c", None, "e"],
    "score": pa.array([1, 2, 3, 4, 5], pa.int16()),
}


def source(path, **settings):
    return Source(DatasetSpec(name="t", path=str(path), **settings))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def example(row, tmp_path, **settings):
    return next(iter(source(write(tmp_path / "one.jsonl", row), **settings))).example


def question(instruction, output, extra=""):
    return Example((Turn("user", instruction), Turn("assistant", output)), extra)
