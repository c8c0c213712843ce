"""Rows of every form become the same examples; content ids depend on the content only."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data.column_forms import PROMPT_FORMS, choose_form, forms_of, to_example
from lpsel.data.example import Example, Turn
from lpsel.data.templates import holds_conversations
from lpsel.errors import UnusableRow, UserError

from .rows import ADD, SAY, example, question, source, write

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_alpaca_form_keeps_the_input_separate(tmp_path):
    assert example(ADD, tmp_path) == question("Add.", "5", "2, 3")
    assert example({"instruction": "a", "output": "b"}, tmp_path) == question("a", "b")
    assert example({"instruction": "a", "input": None, "output": None}, tmp_path) == question("a", "")


def test_dolly_form(tmp_path):
    row = {"instruction": "Who?", "context": "Ada.", "response": "Ada", "category": "closed_qa"}
    assert example(row, tmp_path) == question("Who?", "Ada", "Ada.")


def test_the_names_of_alpaca_and_dolly_may_be_mixed(tmp_path):
    for extra, answer in (("context", "output"), ("input", "response"), ("Context", "Output")):
        row = {"instruction": "Who?", extra: "Ada.", answer: "Ada"}
        assert example(row, tmp_path) == question("Who?", "Ada", "Ada.")
    unnamed = {"": "0", "instruction": "Who?", "context": "Ada.", "output": "Ada"}  # pandas writes its index so
    assert example(unnamed, tmp_path) == question("Who?", "Ada", "Ada.")
    both = {"instruction": "Who?", "input": "Ada.", "context": "a book", "output": "Ada"}
    assert example(both, tmp_path) == question("Who?", "Ada", "Ada.")


def test_messages_and_sharegpt_are_the_same_conversation(tmp_path):
    turns = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Ho"))
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    names = ("system", "human", "gpt")
    conversations = [{"from": name, "value": turn.content} for name, turn in zip(names, turns, strict=True)]
    assert example({"messages": messages}, tmp_path) == Example(turns)
    assert example({"conversations": conversations, "id": 3}, tmp_path) == Example(turns)


def test_prompt_and_completion_as_text_or_as_messages(tmp_path):
    assert example({"prompt": "2+3=", "completion": "5"}, tmp_path) == question("2+3=", "5")
    sides = {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2, 3"}],
        "completion": [{"role": "assistant", "content": "5"}],
    }
    assert example(sides, tmp_path) == Example((Turn("system", "Add."), *question("2, 3", "5").turns))


WRITTEN = {
    "prompt": [{"role": "System", "content": "Add."}, {"role": "user", "content": "2, 3"}],
    "completion": [{"from": "gpt", "value": "5"}],
}


def test_a_prompt_and_a_completion_may_be_lists_of_turns_as_text(tmp_path):
    """CSV has no lists; in Parquet, rows are read by column unless a prompt begins like a list."""
    expected = Example((Turn("system", "Add."), *question("2, 3", "5").turns))
    as_text = {name: json.dumps(turns, indent=1) for name, turns in WRITTEN.items()}
    plain = {"prompt": '[{"a": 1}]', "completion": as_text["completion"]}
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(as_text))
        writer.writeheader()
        writer.writerows([as_text, plain])
    pq.write_table(pa.Table.from_pylist([as_text, plain]), tmp_path / "rows.parquet")
    write(tmp_path / "lists.jsonl", WRITTEN, plain)
    sources = [source(tmp_path / name) for name in ("rows.csv", "rows.parquet", "lists.jsonl")]
    for rows in sources:
        assert [row.example for row in rows] == [expected, question(*plain.values())]
        assert rows.ids.to_pylist() == [expected.content_id(), question(*plain.values()).content_id()]
    assert [holds_conversations(rows) for rows in sources] == [True] * 3


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Summarize.", json.dumps(WRITTEN["completion"])),
        (json.dumps(WRITTEN["prompt"]) + " Summarize.", "5"),
        ('[{"role": "manager", "content": "Ada"}]', "5"),
        ("[]", "[{"),
        ("[2, 3]", "5"),
        ("[{'role': 'user'}] is a list. {'a': [1]}", "5"),
    ],
)
def test_other_text_that_looks_like_a_list_stays_text(tmp_path, prompt, completion):
    row = {"prompt": prompt, "completion": completion}
    assert example(row, tmp_path) == question(prompt, completion)
    assert not holds_conversations(source(write(tmp_path / "rows.jsonl", row)))


def test_a_list_prompt_has_a_plain_completion(tmp_path):
    turns, text = question("2, 3", "5").turns, json.dumps(WRITTEN["completion"])
    row = {"prompt": json.dumps(WRITTEN["prompt"]), "completion": "5"}
    assert example(row, tmp_path) == Example((Turn("system", "Add."), *turns))
    row = {"prompt": WRITTEN["prompt"], "completion": text}
    assert example(row, tmp_path).last_answer() == text, "JSON has lists, so this is text"


@pytest.mark.parametrize("separator", [", ", "\n "])
def test_turns_in_pythons_notation_are_unusable(tmp_path, separator):
    """pandas writes lists and NumPy arrays to CSV like this."""
    row = {"prompt": f"[{separator.join(map(str, WRITTEN['prompt']))}]", "completion": str(WRITTEN["completion"])}
    with pytest.raises(UnusableRow, match=r"column prompt: has turns in Python's notation\. Write them as"):
        example(row, tmp_path)


def test_columns_map_other_names(tmp_path):
    row = {"frage": "a", "antwort": "b", "dialog": [{"role": "user", "content": "c"}], "input": "not ours"}
    assert example(row, tmp_path, columns={"instruction": "frage", "output": "antwort"}) == question("a", "b")
    assert example(row, tmp_path, columns={"messages": "dialog"}) == Example((Turn("user", "c"),))


def test_names_of_columns_may_look_like_numbers(tmp_path):
    row, columns = {"0": "a", "1": "b", "2": "topic"}, {"instruction": 0, "output": 1}
    assert example(row, tmp_path, columns=columns, cluster_column=2) == question("a", "b")
    with pytest.raises(UserError, match="column 3: missing in this row, which has 0, 1, 2"):
        example(row, tmp_path, columns={"instruction": 0, "output": 3})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "2, 3"}, Example((Turn("user", "Add."),), "2, 3")),
        ({"prompt": "2+3="}, Example((Turn("user", "2+3="),))),
    ],
)
def test_prompts_have_the_forms_of_rows_without_the_answer(row, expected):
    assert forms_of(tuple(row)) == ()
    assert to_example(row, choose_form(forms_of(tuple(row), PROMPT_FORMS), row)) == expected


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


# --- invalid rows

INVALID = {
    "unknown form": ('{"q": "a", "a": "b"}', "columns q, a", "not a known form"),
    "a missing field": (json.dumps(ADD) + '\n{"instruction": "a"}', "columns instruction", "not a known form"),
    "a list": ('{"instruction": "a", "output": [5]}', "column output", "must be text, found list '[5]'"),
    "no turns": ('{"messages": []}', "column messages", "must be a list of turns, found an empty list"),
    "a turn without role": ('{"messages": [{"content": "a"}]}', "column messages", "every turn must have role and"),
    "an unknown role": (
        '{"messages": [{"role": "wizard", "content": ""}]}',
        "column messages",
        "role 'wizard' must be system, user",
    ),
    "half a pair": (r'{"instruction": "\ud800", "output": ""}', "column instruction", "half of a surrogate pair"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_row_is_rejected_with_its_line(tmp_path, case):
    content, name, problem = INVALID[case]
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError) as caught:
        list(source(tmp_path / "rows.jsonl"))
    assert caught.value.name == name
    assert problem in caught.value.problem
    assert caught.value.location == f"{tmp_path / 'rows.jsonl'}, line {content.count(chr(10)) + 1}"
