"""Rows with the same value in a column are answers to the same prompt; rows without a value are not."""

import pytest

from lpsel.commands.row_checks import prompt_numbers
from lpsel.data.dataset import DatasetSpec, Source

ROW = '{"instruction": "a", "output": "b", "task": %s}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "instruction,output,task\na,b,7\na,b,\na,b,\na,b,7\n"),
        ("rows.jsonl", ROW % 7 + ROW % "NaN" + ROW % "null" + ROW % 7),
    ],
)
def test_rows_without_a_value_have_prompts_of_their_own(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert prompt_numbers(Source(DatasetSpec("rows", path=str(path))), "task").tolist() == [0, 1, 2, 0]
