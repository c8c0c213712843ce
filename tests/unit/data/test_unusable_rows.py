"""Rows that cannot be used: with `dataset.bad_rows=skip` they keep their number and are used nowhere."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.data import tokens as tokens_module
from lpsel.data.content_ids import counts
from lpsel.data.dataset import Source
from lpsel.data.templates import render
from lpsel.data.tokens import count_tokens, tokenize
from lpsel.errors import UnusableRow, UserError
from tests.fixtures.chat_templates import chat_tokenizer

from .rows import ADD, SAY, question, source, write

LIST = {"instruction": "List.", "output": ["a", "b"]}
HALF = {"instruction": "Half.", "output": "\ud83d"}
KINDS = {2: "a list as text", 4: "half a surrogate pair", 5: "a list as text"}
ROWS = [ADD, SAY, LIST, ADD, HALF, {**LIST, "instruction": "More."}]


@pytest.fixture
def odd(tmp_path):
    return write(tmp_path / "odd.jsonl", *ROWS)


def test_a_skipped_row_keeps_its_number_and_has_no_content(odd):
    rows = list(source(odd, bad_rows="skip"))
    assert [row.index for row in rows] == list(range(6))
    assert [row.raw for row in rows] == ROWS
    assert {row.index: row.unusable for row in rows if row.unusable} == KINDS
    assert all(row.example.turns == () for row in rows if row.unusable)


def test_the_first_pass_finds_the_kinds_and_the_ids_of_all_rows(odd, caplog):
    with caplog.at_level("INFO"):
        skipping = source(odd, bad_rows="skip")
        assert len(skipping) == 6
    assert skipping.unusable.to_pylist() == [None, None, *(KINDS.get(i) for i in range(2, 6))]
    assert counts(skipping.unusable) == {"a list as text": 2, "half a surrogate pair": 1}
    assert "3 of 6 rows of t are unusable and skipped: a list as text (2), half a surrogate pair (1)" in caplog.text
    ids = skipping.ids.to_pylist()
    assert ids[0] == ids[3] == question("Add.", "5", "2, 3").content_id()
    assert len(set(ids)) == 5
    assert skipping.contents.position[[2, 4, 5]].tolist() == [-1, -1, -1]
    assert skipping.contents.ids.to_pylist() == sorted(ids[:2])
    assert skipping.contents.ids.take(pa.array(skipping.contents.position[:2])).to_pylist() == ids[:2]


def test_ids_of_skipped_rows_depend_on_their_columns_only(tmp_path, odd):
    other = write(tmp_path / "other.jsonl", SAY, dict(reversed(LIST.items())), HALF)
    ids = source(other, bad_rows="skip").ids.to_pylist()
    assert ids[1:] == [source(odd, bad_rows="skip").ids[i].as_py() for i in (2, 4)]


def test_objects_of_an_unusable_row_have_an_id_without_their_address(monkeypatch):
    class Picture:
        pass

    def ids():
        hub = source("org/pictures", bad_rows="skip")
        monkeypatch.setattr(Source, "_hub", [ADD, {"instruction": "See.", "output": [Picture()]}])
        return hub.ids.to_pylist()

    assert ids() == ids()


def test_an_unusable_row_ends_the_pass_with_its_line_and_the_option(odd):
    with pytest.raises(UnusableRow) as caught:
        list(source(odd))
    assert (caught.value.location, caught.value.kind) == (f"{odd}, line 3", "a list as text")
    assert caught.value.hint.endswith(", or set dataset.bad_rows=skip to leave such rows out")


def test_a_dataset_without_a_usable_row_is_rejected(tmp_path):
    path = write(tmp_path / "none.jsonl", LIST, HALF, LIST)
    with pytest.raises(UserError) as caught:
        len(source(path, bad_rows="skip"))
    problem = "none of 3 rows can be used: a list as text (2), half a surrogate pair (1)"
    assert (caught.value.name, caught.value.problem) == ("dataset", problem)


def test_only_error_and_skip_are_choices(odd):
    with pytest.raises(UserError) as caught:
        source(odd, bad_rows="drop")
    assert (caught.value.name, caught.value.value) == ("dataset.bad_rows", "drop")


# --- empty answers


TEXTS = st.text() | st.text(alphabet=" \t\n\r\x0b\x1c\x85\xa0\u1680\u2003\u2028\u3000") | st.none()


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_empty_answers_are_those_without_text_after_stripping(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    columns = {"instruction": [instruction for instruction, _ in rows], "output": [output for _, output in rows]}
    schema = pa.schema([(name, pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), folder / "rows.parquet")
    lines = [json.dumps({"instruction": instruction, "output": output}) + "\n" for instruction, output in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    expected = [not (output or "").strip() for _, output in rows]
    for name in ("rows.parquet", "rows.jsonl"):
        assert source(folder / name).empty_answer.tolist() == expected


def test_an_answer_of_a_chat_is_empty_if_all_of_its_turns_are(tmp_path):
    def chat(*answers):
        turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in answers]
        return {"messages": [turn for pair in turns for turn in pair]}

    unanswered = {"messages": [{"role": "user", "content": "Hi"}]}
    path = write(tmp_path / "chats.jsonl", chat("", " \n"), chat("", "Ho"), chat("\u3000"), unanswered)
    assert source(path).empty_answer.tolist() == [True, False, True, False]


# --- tokens


@pytest.fixture
def picky(monkeypatch):
    """A template that rejects the rows with this text."""

    def reject(text):
        def picky_render(example, template, tokenizer):
            if text in example.instruction():
                raise UnusableRow("template", None, f"no {text}", "remove the row", kind="template rejects roles")
            return render(example, template, tokenizer)

        monkeypatch.setattr(tokens_module, "render", picky_render)

    return reject


def test_skipped_rows_have_no_tokens(tmp_path, odd, make_tokenizer, picky):
    picky("Say")
    with_odd = tokenize(source(odd, bad_rows="skip"), make_tokenizer(bos=True), "plain", 64, tmp_path)
    kinds = [None, "template rejects roles", "a list as text", None, "half a surrogate pair", "a list as text"]
    assert with_odd.unusable.to_pylist() == kinds
    usable = [0, 3]
    assert np.flatnonzero(with_odd.lengths).tolist() == np.flatnonzero(with_odd.response_tokens).tolist() == usable
    assert with_odd.counted()["rows_without_supervised_token"] == 0
    alone = tokenize(source(write(tmp_path / "usable.jsonl", ADD)), make_tokenizer(bos=True), "plain", 64, tmp_path)
    for row in usable:
        assert with_odd.input_ids(row).tolist() == alone.input_ids(0).tolist()
        assert with_odd.supervised(row).tolist() == alone.supervised(0).tolist()
    assert alone.unusable is None


def test_skipped_rows_do_not_shift_the_rows_of_later_batches(tmp_path, make_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens_module, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(tokens_module, "MAX_CHARACTERS", 20)
    rows = [LIST if i % 3 == 0 else {"instruction": f"{i}", "output": "x" * (i % 5)} for i in range(15)]
    path = write(tmp_path / "rows.jsonl", *rows)
    tokens = tokenize(source(path, bad_rows="skip"), make_tokenizer(), "plain", 64, tmp_path)
    assert tokens.response_tokens.tolist() == [0 if i % 3 == 0 else i % 5 + 1 for i in range(15)]
    assert tokens.ids.to_pylist() == source(path, bad_rows="skip").ids.to_pylist()


def test_a_row_that_the_template_rejects_is_named_with_its_line(tmp_path, make_tokenizer, picky):
    picky("Say")
    path = write(tmp_path / "rows.jsonl", ADD, SAY)
    with pytest.raises(UnusableRow) as caught:
        tokenize(source(path), make_tokenizer(), "plain", 64, tmp_path)
    assert (caught.value.location, caught.value.problem) == (f"{path}, line 2", "no Say")
    assert caught.value.hint == "remove the row, or set dataset.bad_rows=skip to leave such rows out"


def test_tokens_of_a_run_that_skipped_rows_are_not_used_by_one_that_must_not(tmp_path, make_tokenizer, picky):
    picky("Say")
    path = write(tmp_path / "rows.jsonl", ADD, SAY)
    tokenize(source(path, bad_rows="skip"), make_tokenizer(), "plain", 64, tmp_path)
    with pytest.raises(UnusableRow) as caught:
        tokenize(source(path), make_tokenizer(), "plain", 64, tmp_path)
    assert (caught.value.location, caught.value.kind) == (f"{path}, line 2", "template rejects roles")
    assert caught.value.hint == "set dataset.bad_rows=skip to leave such rows out"


def test_a_template_that_rejects_every_row_is_an_error(tmp_path, make_tokenizer, picky):
    picky("")
    path = write(tmp_path / "rows.jsonl", ADD, SAY)
    with pytest.raises(UserError) as caught:
        tokenize(source(path, bad_rows="skip"), make_tokenizer(), "plain", 64, tmp_path)
    assert caught.value.problem == "template=plain can use none of 2 rows: template rejects roles (2)"
    assert caught.value.hint == "use other data"


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_rows_with_tools_need_a_chat_template_that_supports_them(tmp_path, template):
    tokenizer = chat_tokenizer("bytes", "chatml")
    path = write(tmp_path / "rows.jsonl", {**ADD, "tools": [{"name": "add"}]})
    with pytest.raises(UserError) as caught:
        tokenize(source(path, bad_rows="skip"), tokenizer, template, 64, tmp_path)
    assert caught.value.hint == "set template=chat and a model whose chat template supports tools, or use other data"


def test_skipped_rows_count_as_no_tokens_in_an_estimate(odd, make_tokenizer):
    skipping = source(odd, bad_rows="skip")
    lengths, supervised = count_tokens(skipping, list(skipping), make_tokenizer(), "plain", 64)
    assert np.flatnonzero(lengths).tolist() == np.flatnonzero(supervised).tolist() == [0, 1, 3]
