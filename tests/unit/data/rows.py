"""Rows, and sources of them."""

import json

from lpsel.data.column_forms import Example, Turn
from lpsel.data.dataset import DatasetSpec, Source

ADD = {"instruction": "Add.", "input": "2, 3", "output": "5"}
SAY = {"instruction": "Say hi.", "input": "", "output": "Hi!"}


def source(path, **settings):
    return Source(DatasetSpec(name="t", path=str(path), **settings))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def example(row, tmp_path, **settings):
    return next(iter(source(write(tmp_path / "one.jsonl", row), **settings))).example


def question(instruction, output, extra=""):
    return Example((Turn("user", instruction), Turn("assistant", output)), extra)
