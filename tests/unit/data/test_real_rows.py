"""Rows as people have them: what each kind becomes, and the kind of error for those that cannot be used."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data.example import Example, Turn
from lpsel.data.subset import write_subset
from lpsel.errors import UnusableRow, UserError

from .rows import ADD, SAY, example, question, source, write

ODD = Path(__file__).resolve().parents[4] / "shared" / "data" / "odd"
CALL = {"type": "function", "id": "1", "function": {"name": "w", "arguments": {"city": "Bonn"}}}


def chat(*turns):
    return {"messages": [dict(zip(("role", "content"), turn, strict=False)) for turn in turns]}


def answer(**fields):
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", **fields}]}


def answered(content="Hello", **about):
    return Example((Turn("user", "Hi"), Turn("assistant", content, **about)))


def calling(arguments):
    call = {"type": "function", "function": {"name": "w", "arguments": arguments}}
    return answered("", fields={"tool_calls": [call]})


HELLO = question("Hi", "Hello")
CALLING = answered("", fields={"tool_calls": [CALL]})
CALL_TEXT = '{"name": "w", "arguments": {"city": "Bonn"}}'

USABLE = {
    "numbers and booleans are their JSON text": (
        {"instruction": 2, "input": 0.5, "output": True},
        question("2", "true", "0.5"),
    ),
    "NaN is null": ({"instruction": "a", "input": float("nan"), "output": "b"}, question("a", "b")),
    "names in any case": ({"INSTRUCTION": "a", "Input": "c", "Output": "b"}, question("a", "b", "c")),
    "a name as written comes first": ({"Output": "no", "instruction": "a", "output": "b"}, question("a", "b")),
    "conversations with role and content": (
        {"conversations": chat(("user", "Hi"), ("assistant", "Hello"))["messages"]},
        HELLO,
    ),
    "messages with from and value": (
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        HELLO,
    ),
    "from with content, role with value": (
        {"messages": [{"from": "human", "content": "Hi"}, {"role": "assistant", "value": "Hello", "content": None}]},
        HELLO,
    ),
    "roles in any case": (chat(("User", "Hi"), (" ASSISTANT", "Hello")), HELLO),
    "roles of other datasets": (chat(("prompter", "Hi"), ("bot", "Hello")), HELLO),
    "JSON inside JSON": (
        {"messages": json.dumps(json.dumps(chat(("user", "Hi"), ("assistant", "Hello"))["messages"]))},
        HELLO,
    ),
    "every message as JSON": (
        {"messages": [json.dumps(turn) for turn in chat(("user", "Hi"), ("assistant", "Hello"))["messages"]]},
        HELLO,
    ),
    "no turns next to an instruction": ({"messages": [], "instruction": "Hi", "output": "Hello"}, HELLO),
    "messages as JSON": ({"messages": json.dumps(chat(("user", "Hi"), ("assistant", "Hello"))["messages"])}, HELLO),
    "text parts are joined": (
        chat(("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), ("assistant", "Hello")),
        HELLO,
    ),
    "a developer is a system turn": (
        chat(("developer", "Be brief."), ("user", "Hi")),
        Example((Turn("system", "Be brief."), Turn("user", "Hi"))),
    ),
    "null content without calls is an empty answer": (answer(content=None), question("Hi", "")),
    "null content with tool calls": (
        answer(content=None, tool_calls=[{**CALL, "function": {"name": "w", "arguments": '{"city": "Bonn"}'}}]),
        CALLING,
    ),
    "flat tool calls without content": (
        answer(tool_calls=[{"id": "1", "name": "w", "arguments": {"city": "Bonn"}}]),
        CALLING,
    ),
    "a legacy function call": (
        answer(content=None, function_call={"name": "w", "arguments": '{"city": null}'}),
        calling({"city": None}),
    ),
    "calls of which nothing is there": (
        answer(content="Hello", function_call={"name": None, "arguments": None}, tool_calls=[{"function": None}, None]),
        HELLO,
    ),
    "arguments that are not JSON stay text": (
        answer(tool_calls=[{"name": "w", "arguments": "Bonn"}]),
        calling("Bonn"),
    ),
    "a call as the text of a turn": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": CALL_TEXT}]},
        calling({"city": "Bonn"}),
    ),
    "a call in another spelling": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "tool_call", "value": CALL_TEXT}]},
        calling({"city": "Bonn"}),
    ),
    "results of tools": (
        chat(("tool", "12"), ("function", "13"), ("observation", "14"), ("tool_response", "15")),
        Example((Turn("tool", "12"), Turn("tool", "13"), Turn("tool", "14"), Turn("tool", "15"))),
    ),
    "the call that a result belongs to": (
        {"messages": [{"role": "tool", "content": "12", "tool_call_id": "1", "name": "w"}]},
        Example((Turn("tool", "12", fields={"name": "w", "tool_call_id": "1"}),)),
    ),
    "reasoning": (
        answer(content="Hello", reasoning_content="Think."),
        answered(fields={"reasoning_content": "Think."}),
    ),
    "reasoning as vLLM writes it": (
        answer(content="Hello", reasoning="Think.", reasoning_content=None),
        answered(fields={"reasoning_content": "Think."}),
    ),
    "a system column": (
        {"system": "Be brief.", "instruction": "Hi", "output": "Hello"},
        Example((Turn("system", "Be brief."), *HELLO.turns)),
    ),
    "a column system_prompt": (
        {"System_Prompt": "Be brief.", "instruction": "Hi", "output": "Hello"},
        Example((Turn("system", "Be brief."), *HELLO.turns)),
    ),
    "a system column next to turns": (
        {"System": "Be brief.", "conversations": chat(("user", "Hi"), ("assistant", "Hello"))["messages"]},
        Example((Turn("system", "Be brief."), *HELLO.turns)),
    ),
    "a system column that repeats the first turn": (
        {"system": "Be brief.", **chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))},
        Example((Turn("system", "Be brief."), *HELLO.turns)),
    ),
    "no system text": ({"system": None, "history": [], "instruction": "Hi", "output": "Hello"}, HELLO),
    "weights": (answer(content="Hello", weight=1.0, train=None), HELLO),
    "a turn with weight 0": (answer(content="Hello", weight=0), answered(supervised=False)),
    "a turn not to train on": (answer(content="Hello", train=False, weight=1), answered(supervised=False)),
    "a turn without a loss": (answer(content="Hello", loss=False), answered(supervised=False)),
    "a row with weight 0": ({"instruction": "Hi", "output": "Hello", "weight": 0}, answered(supervised=False)),
    "a conversation not to train on": ({**answer(content="Hello"), "train": False}, answered(supervised=False)),
    "a row with another weight": ({"instruction": "Hi", "output": "Hello", "weight": 2.5, "train": None}, HELLO),
    "a wanted answer": ({"prompt": "Hi", "completion": "Hello", "label": True}, HELLO),
    "a wanted answer, labeled by a number": ({"prompt": "Hi", "completion": "Hello", "label": 1}, HELLO),
    "a wanted conversation": ({**answer(content="Hello"), "kto_tag": True, "label": None}, HELLO),
    "a conversation of class 0": ({**answer(content="Hello"), "label": 0}, HELLO),
    "an instruction of class 0": ({"instruction": "Hi", "output": "Hello", "label": 0}, HELLO),
    "no images": ({**answer(content="Hello"), "images": [], "image": None}, HELLO),
    "an image of which nothing is there": ({**answer(content="Hello"), "image": {"bytes": None, "path": None}}, HELLO),
    "tools next to an instruction": (
        {"instruction": "Hi", "output": "Hello", "tools": [{"name": "w"}]},
        Example(HELLO.turns, tools=({"name": "w"},)),
    ),
    "tools": (
        {**answer(content="Hello"), "tools": json.dumps([{"name": "w"}])},
        Example(HELLO.turns, tools=({"name": "w"},)),
    ),
}


@pytest.mark.parametrize("case", USABLE)
def test_rows_of_this_kind_are_read(tmp_path, case):
    row, expected = USABLE[case]
    assert example(row, tmp_path) == expected


def test_arguments_of_calls_have_the_same_id_as_objects_and_as_text_in_json_lines_and_parquet(tmp_path):
    """Arrow adds null fields where calls have different arguments, and cannot mix objects and texts."""
    arguments = [{"city": "Bonn"}, {"day": 2}]
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"name": "w", "arguments": a}]}]
             for a in arguments]  # fmt: skip
    as_text = [[asked, {**call, "tool_calls": [{"name": "w", "arguments": json.dumps(a)}]}]
               for (asked, call), a in zip(turns, arguments, strict=True)]  # fmt: skip
    paths = []
    for name, rows in (("objects", turns), ("texts", as_text)):
        paths.append(write(tmp_path / f"{name}.jsonl", *({"messages": row} for row in rows)))
        pq.write_table(pa.table({"messages": rows}), paths[-1].with_suffix(".parquet"))
    ids = [source(file).ids.to_pylist() for path in paths for file in (path, path.with_suffix(".parquet"))]
    assert len(set(map(tuple, ids))) == 1
    assert len(set(ids[0])) == 2


@pytest.mark.parametrize("column", ["train", "weight"])
def test_marks_are_text_in_csv(tmp_path, column):
    path = tmp_path / "rows.csv"
    marks = {"0": False, "0.0": False, "false": False, " FALSE": False, "1": True, "1.0": True, "True": True, "": True}
    path.write_text(f"instruction,output,{column}\n" + "".join(f"Hi,Hello,{mark}\n" for mark in marks))
    assert [row.example.turns[1].supervised for row in source(path)] == list(marks.values())
    assert example(answer(content="Hello", weight="0.0", train="True"), tmp_path) == answered(supervised=False)
    assert example(answer(content="Hello", loss="False"), tmp_path) == answered(supervised=False)
    labels = {"True": True, "False": False, "1": True, "0": False, "1.0": True, "0.0": False, "": True, "3": True}
    path.write_text("prompt,completion,label\n" + "".join(f"Hi,Hello,{label}\n" for label in labels))
    assert [row.unusable is None for row in source(path, bad_rows="skip")] == list(labels.values())


def test_an_undesirable_label_of_parquet_is_an_error(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [1, 0]}), path)
    with pytest.raises(UnusableRow, match=r"row 2: column label: 0 marks an undesirable answer\. Remove the row"):
        _ = source(path).ids


SYSTEM, HI, HELLO_TURN = {"role": "system", "content": "Be."}, *chat(("user", "Hi"), ("assistant", "Hello"))["messages"]


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("Hi", [HI, HELLO_TURN]),
        ([HI], [HI, HELLO_TURN]),
        ([HI], [HELLO_TURN]),
        ([SYSTEM, HI], [SYSTEM, HI, HELLO_TURN]),
        ([SYSTEM, HI], [HI, HELLO_TURN]),
    ],
)
def test_a_completion_that_repeats_the_prompt_has_it_once(tmp_path, prompt, chosen):
    row = {"system": "Be.", "prompt": prompt, "chosen": chosen}
    columns = {"system": "system", "prompt": "prompt", "completion": "chosen"}
    assert example(row, tmp_path, columns=columns) == Example((Turn("system", "Be."), *HELLO.turns))


def test_answers_in_a_prompt_are_context(tmp_path):
    prompt = [HI, HELLO_TURN, HI]
    context = (Turn("user", "Hi"), Turn("assistant", "Hello", False), Turn("user", "Hi"))
    for completion in ("Hello", [HELLO_TURN], [*prompt, HELLO_TURN]):
        read = example({"prompt": prompt, "completion": completion}, tmp_path)
        assert read == Example((*context, Turn("assistant", "Hello")))
    assert example({"prompt": [HI, HELLO_TURN], "completion": [HELLO_TURN]}, tmp_path).turns[1:] == (
        Turn("assistant", "Hello", False),
        Turn("assistant", "Hello"),
    )
    assert all(turn.supervised for turn in example({"messages": [*prompt, HELLO_TURN]}, tmp_path).turns)


UNUSABLE = {
    "a list as text": [{"instruction": "a", "output": ["b"]}, chat(("user", ["a", "b"]))],
    "an infinite number as text": [
        {"instruction": "a", "output": float("inf")},
        chat(("user", "a"), ("assistant", -float("inf"))),
    ],
    "an answer outside the conversation": [
        {"conversations": [HI, HELLO_TURN, HI], "chosen": {"from": "gpt", "value": "Ho"}, "rejected": HELLO_TURN},
    ],
    "earlier turns in a column": [{**ADD, "history": [["Hi", "Hello"]]}],
    "an answer that is not wanted": [
        *({"prompt": "a", "completion": "b", "label": label} for label in (False, 0, 0.0, "0", "False")),
        {"prompt": [HI], "completion": [HELLO_TURN], "Label": 0},
        {**answer(content="Hello"), "label": False},
        {"instruction": "a", "output": "b", "kto_tag": False},
        {**answer(content="Hello"), "kto_tag": 0},
    ],
    "a turn to train on in part": [answer(content="ab", train_detail=[{"begin_offset": 0, "end_offset": 0}])],
    "an object as text": [{"instruction": {"a": 1}, "output": "b"}, chat(("user", {"text": "a"}))],
    "half a surrogate pair": [
        {"instruction": "\ud83d", "output": "b"},
        answer(content="a", reasoning_content="\udc00"),
        answer(tool_calls=[{"name": "w", "arguments": r'{"city": "\ud83d"}'}]),
        {**answer(content="a"), "tools": [{"name": "\ud83d"}]},
    ],
    "images": [
        {**answer(content="Hello"), "images": ["x.png"]},
        {**ADD, "Image": {"bytes": "x"}},
        {**ADD, "image_base64": "iVBORw0KGgo="},
        chat(("user", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What?"}])),
        chat(("user", [{"type": "text", "text": "What?", "image": "x.png"}])),
        {"messages": [{"role": "user", "content": "What?", "images": ["x.png"]}]},
    ],
    "audio": [{**ADD, "audio": "x.wav"}, chat(("user", [{"type": "input_audio"}]))],
    "content parts that are not text": [
        chat(("user", [{"type": "file", "file": "x"}])),
        chat(("user", [{"type": "text", "content": "Hi"}])),
    ],
    "a weight other than 0 and 1": [answer(content="a", weight=0.5), answer(content="a", train="no")],
    "a refusal without content": [answer(content=None, refusal="No.")],
    "a tool call without a name": [answer(tool_calls=[{"id": "1"}]), answer(tool_calls=["w"])],
    "a turn without role or content": [{"messages": [{"role": "user"}]}, {"messages": [{"content": "a"}]}],
    "an unknown role": [chat(("wizard", "a"))],
    "no turns": [{"messages": []}, {"messages": "Hello"}, {"messages": ["Hello"]}, {"messages": None}],
    "invalid JSON": [{"messages": '[{"role": '}],
    "tools that are not objects": [{**answer(content="a"), "tools": ["[1]"]}],
    "an unknown form": [{"text": "a"}, {"prompt": "a", "chosen": "b"}],
}


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in UNUSABLE.items() for row in rows])
def test_a_row_of_this_kind_is_unusable(tmp_path, kind, row):
    path = write(tmp_path / "rows.jsonl", SAY, row)
    with pytest.raises(UnusableRow) as caught:
        list(source(path))
    assert (caught.value.kind, caught.value.location) == (kind, f"{path}, line 2")
    assert [row.unusable for row in source(path, bad_rows="skip")] == [None, kind]


@pytest.mark.parametrize(
    ("line", "kind"), [(b"{", "invalid JSON"), (b"[1]", "a row that is not an object"), (b'{"a": "\xe9"}', "not UTF-8")]
)
def test_a_line_that_holds_no_row_can_be_skipped(tmp_path, line, kind):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(ADD).encode(), line, json.dumps(SAY).encode()]))
    with pytest.raises(UnusableRow) as caught:
        list(source(path))
    assert (caught.value.kind, caught.value.name) == (kind, f"{path}, line 2")
    assert [row.unusable for row in source(path, bad_rows="skip")] == [None, kind, None]


@pytest.mark.parametrize("text", ['[\n{"instruction": "a"}\n]', '[{"instruction": "a"},\n{}]'])
def test_a_list_in_a_file_named_jsonl_is_reported_as_such(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UnusableRow) as caught:
        list(source(tmp_path / "rows.jsonl"))
    assert caught.value.hint.startswith("name the file .json if it is one list")


def test_a_csv_row_with_other_fields_than_the_header_can_be_skipped(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output\na,b\nc\nd,e\n")
    kinds = [row.unusable for row in source(path, bad_rows="skip")]
    assert kinds == [None, "fields unlike the header's", None]


@pytest.mark.parametrize(
    "text",
    [
        "Instruction, Output \n   \n\nHi,Hello\n\t\n",
        '"instruction";"notes, and, more";"output"\n"Hi";"a, b";"Hello"\n',
        "instruction|input|output\nHi||Hello\n",
        "\n \t\ninstruction;output\nHi;Hello\n",
        '\ufeff"instruction"\t"output"\r\nHi\t"Hello"\r\n',
    ],
)
def test_csv_as_spreadsheets_write_it_is_read(tmp_path, text):
    """With blank lines, spaces around names, other delimiters, and delimiters in quoted names."""
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    assert [row.example for row in source(path)] == [HELLO]


def test_maps_and_decimals_of_parquet_are_read(tmp_path):
    turn = pa.map_(pa.string(), pa.string())
    rows = [[[("role", "user"), ("content", "Hi")], [("role", "assistant"), ("content", "Hello")]]]
    pq.write_table(pa.table({"messages": pa.array(rows, pa.list_(turn))}), tmp_path / "maps.parquet")
    numbers = pa.table({"instruction": ["Hi"], "output": [Decimal("1.50")]})
    pq.write_table(numbers, tmp_path / "decimals.parquet")
    for name, expected in (("maps", HELLO), ("decimals", question("Hi", "1.50"))):
        rows_read = source(tmp_path / f"{name}.parquet")
        assert [row.example for row in rows_read] == [expected]
        write_subset(rows_read, np.array([True]), tmp_path, returned=[0])
        assert pq.read_table(tmp_path / "subset.parquet").equals(pq.read_table(tmp_path / f"{name}.parquet"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_row_that_is_not_utf8_can_be_skipped(tmp_path, delimiter):
    path = tmp_path / "rows.csv"
    rows = ["instruction,output", "a,é", 'b,"two', 'ß lines"', "c,d"]  # of which the last one is UTF-8
    path.write_bytes("\n".join(rows).replace(",", delimiter).encode("latin-1"))
    with pytest.raises(UnusableRow) as caught:
        list(source(path))
    assert (caught.value.kind, caught.value.name) == ("not UTF-8", f"{path}, line 2")
    read = list(source(path, bad_rows="skip"))
    assert [row.unusable for row in read] == ["not UTF-8", "not UTF-8", None]
    assert read[2].raw == {"instruction": "c", "output": "d"}


def test_a_csv_header_that_is_not_utf8_cannot_be_skipped(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("instruction,output,größe\na,b,c\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        list(source(path, bad_rows="skip"))


def test_the_last_value_of_a_repeated_key_counts(tmp_path):
    text = '{"instruction": "a", "output": "b", "output": "c"}'
    for name, content in {"rows.jsonl": text, "rows.json": f"[{text}]"}.items():
        (tmp_path / name).write_text(content)
        assert [row.raw for row in source(tmp_path / name)] == [{"instruction": "a", "output": "c"}]


@pytest.mark.parametrize("text", ["instruction,output\na\rb,c\n", 'instruction,output\na,"b" c\n', 'a,"b\n'])
def test_csv_that_cannot_be_parsed_is_one_line(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    with pytest.raises(UserError, match="not valid CSV") as caught:
        list(source(path))
    assert caught.value.name.startswith(f"{path}, line ")
    assert "\n" not in str(caught.value)


def test_a_system_column_in_parquet_has_the_ids_of_json_lines(tmp_path):
    rows = [{"system": text, "instruction": "Hi", "output": "Hello"} for text in ("Be brief.", "", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    ids = source(tmp_path / "rows.parquet").ids
    assert ids == source(write(tmp_path / "rows.jsonl", *rows)).ids
    assert ids[1].as_py() == ids[2].as_py() == HELLO.content_id()


@pytest.mark.parametrize(
    ("columns", "mapping"),
    [
        (("prompt", "chosen", "rejected"), "{prompt: prompt, completion: chosen}"),
        (("question", "answer"), "{prompt: question, completion: answer}"),
        (("Query", "Response"), "{prompt: Query, completion: Response}"),
        (
            ("id", "question", "context", "best answer"),
            '{instruction: question, input: context, output: "best answer"}',
        ),
        (("input", "output"), "{prompt: input, completion: output}"),
        (("inputs", "targets"), "{prompt: inputs, completion: targets}"),
        (
            ("system_prompt", "question", "response"),
            "{system: system_prompt, prompt: question, completion: response}",
        ),
    ],
)
def test_an_unknown_form_gets_the_mapping_to_paste(tmp_path, columns, mapping):
    row = dict.fromkeys(columns, "text")
    with pytest.raises(UnusableRow) as caught:
        example(row, tmp_path)
    assert f"'dataset.columns={mapping}'" in caught.value.hint
    assert example(row, tmp_path, columns=yaml.safe_load(mapping)).turns[-1] == Turn("assistant", "text")


def test_a_chosen_conversation_is_mapped_to_messages(tmp_path):
    row = {"prompt": "Hi", "chosen": answer(content="Hello")["messages"], "rejected": answer(content="Go")["messages"]}
    with pytest.raises(UnusableRow, match=r"'dataset\.columns=\{messages: chosen\}'"):
        example(row, tmp_path)
    assert example(row, tmp_path, columns={"messages": "chosen"}) == HELLO


def test_columns_of_objects_are_not_mapped(tmp_path):
    turns = answer(content="Hello")["messages"]
    row = {"input": {"messages": turns[:1]}, "preferred_output": turns[1:], "non_preferred_output": turns[1:]}
    hint = "write the prompt and the answer as columns, not in an object such as input"
    with pytest.raises(UnusableRow, match=f"not a known form. .*{hint[1:]}"):  # OpenAI's preference pairs
        example(row, tmp_path)


def test_a_prompt_and_a_chosen_answer_as_turns_are_mapped_to_both(tmp_path):
    greeting, hello = answer(content="Hello")["messages"]
    row = {"prompt": [greeting], "chosen": [hello], "rejected": [{**hello, "content": "Go"}]}
    with pytest.raises(UnusableRow, match=r"'dataset\.columns=\{prompt: prompt, completion: chosen\}'"):
        example(row, tmp_path)
    assert example(row, tmp_path, columns={"prompt": "prompt", "completion": "chosen"}) == HELLO


def test_each_row_is_read_in_its_own_form(tmp_path):
    rows = [ADD, answer(content="Hello"), {"prompt": "a", "completion": "b"}, {"instruction": "c", "response": "d"}]
    expected = [question("Add.", "5", "2, 3"), HELLO, question("a", "b"), question("c", "d")]
    assert [row.example for row in source(write(tmp_path / "rows.jsonl", *rows))] == expected
    pq.write_table(pa.Table.from_pylist(rows, schema=_union(rows)), tmp_path / "rows.parquet")
    assert source(tmp_path / "rows.parquet").ids == source(tmp_path / "rows.jsonl").ids


def _union(rows):
    return pa.unify_schemas([pa.Table.from_pylist([row]).schema for row in rows])


def test_a_system_turn_is_merged_into_the_user_turn_after_it(tmp_path):
    path = write(tmp_path / "rows.jsonl", chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")))
    merged = source(path, system="merge")
    assert next(iter(merged)).example == question("Be brief.\n\nHi", "Hello")
    assert merged.fingerprint != source(path).fingerprint
    without_user = write(tmp_path / "without_user.jsonl", chat(("system", "Be brief."), ("assistant", "Hello")))
    with pytest.raises(UnusableRow) as caught:
        list(source(without_user, system="merge"))
    assert caught.value.kind == "a system turn without a user turn"
    with pytest.raises(UserError, match=r"dataset\.system=drop: must be one of keep, merge"):
        source(path, system="drop")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
optional = st.none() | texts
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "developer"]), "content": texts},
    optional={
        "name": optional,
        "reasoning_content": optional,
        "weight": st.sampled_from([None, 0, 1]),
        "tool_calls": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"name": texts},
                optional={"id": optional, "arguments": st.dictionaries(st.sampled_from("ab"), optional)},
            ),
            max_size=2,
        ),
    },
)


@settings(deadline=None)
@given(st.lists(st.lists(messages, min_size=1, max_size=3), min_size=1, max_size=3))
def test_conversations_are_the_same_in_json_lines_parquet_and_as_json(tmp_path_factory, conversations):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"messages": turns} for turns in conversations]
    lines = source(write(folder / "lines.jsonl", *rows))
    as_json = source(write(folder / "json.jsonl", *({"messages": json.dumps(turns)} for turns in conversations)))
    arguments = pa.struct([("a", pa.string()), ("b", pa.string())])
    call = pa.struct([("name", pa.string()), ("id", pa.string()), ("arguments", arguments)])
    fields = dict.fromkeys(("role", "content", "name", "reasoning_content"), pa.string())
    turn = pa.struct([*fields.items(), ("weight", pa.float64()), ("tool_calls", pa.list_(call))])
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("messages", pa.list_(turn))])), folder / "rows.parquet")
    expected = [row.example for row in lines]
    for other in (as_json, source(folder / "rows.parquet")):
        assert [row.example for row in other] == expected
        assert other.ids == lines.ids


odd = pytest.mark.skipif(not ODD.is_dir(), reason="needs ../shared/data/odd")
ODD_KINDS = {"09": "a list as text", "21": "an unknown form", "22": "an unknown form", "42": "images"}
ODD_KINDS["28"] = "half a surrogate pair"


@odd
@pytest.mark.parametrize("path", sorted(ODD.glob("*")), ids=lambda path: path.name)
def test_the_odd_files_are_read_or_have_the_expected_kind(path):
    if "utf16" in path.name or "cp1252" in path.name:
        encoding = "UTF-16" if "utf16" in path.name else "CP1252"
        with pytest.raises(UserError, match=f"not UTF-8.*{encoding}.* iconv -f {encoding} -t UTF-8"):
            list(source(path))
    elif kind := ODD_KINDS.get(path.name[:2]):
        assert kind in [row.unusable for row in source(path, bad_rows="skip")]
    else:
        rows = list(source(path))
        assert len(rows) >= 1
        assert all(row.example.turns for row in rows)
