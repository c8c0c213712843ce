"""Token ids and labels, counted by hand: the tokenizer gives one token per byte unless it has merges."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.templates import render, render_prompt
from lpsel.data.tokens import ROWS_PER_BATCH, JoinedTokens, tokenize
from lpsel.errors import UserError, resource_errors

from .conftest import CHATML

DOLLY = Path(__file__).resolve().parents[4] / "shared" / "data" / "dolly.jsonl.xz"


@pytest.fixture
def source(tmp_path):
    def make(*pairs):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
        return Source(DatasetSpec("t", path=str(path)))

    return make


def labels(tokens, tokenizer, i=0):
    return tokenizer.convert_ids_to_tokens(tokens.input_ids(i)[tokens.supervised(i)].tolist())


def fed(tokens, tokenizer, i=0):
    return tokenizer.convert_ids_to_tokens(tokens.input_ids(i).tolist())


def test_the_answer_and_its_eos_are_labels(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    tokens = tokenize(source(("2+3=", "5"), ("ab", "cde")), tokenizer, "plain", 16, tmp_path)
    assert fed(tokens, tokenizer, 0) == ["2", "+", "3", "=", "5", "</s>"]
    assert tokens.supervised(0).tolist() == [False] * 4 + [True] * 2
    assert labels(tokens, tokenizer, 1) == ["c", "d", "e", "</s>"]
    assert tokens.prompt_tokens.tolist() == [4, 2]
    assert tokens.response_tokens.tolist() == [2, 4]
    assert tokens.lengths.tolist() == [6, 6]
    assert tokens.prompt_tokens.dtype == tokens.response_tokens.dtype == tokens.lengths.dtype == np.int32
    assert tokens.input_ids(0).dtype == np.int32
    assert tokens.supervised(0).dtype == tokens.truncated.dtype == np.bool_
    assert len(tokens) == 2


def test_a_bos_is_added_where_the_tokenizer_has_one(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer(bos=True)
    tokens = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path)
    assert fed(tokens, tokenizer) == ["<s>", "a", "b", "</s>"]
    assert labels(tokens, tokenizer) == ["b", "</s>"]


def test_long_rows_are_truncated_on_the_right(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    tokens = tokenize(source(("ab", "cd"), ("ab", "cde"), ("abcde", "f"), ("ab", "")), tokenizer, "plain", 5, tmp_path)
    assert tokens.truncated.tolist() == [False, True, True, False]
    assert [labels(tokens, tokenizer, i) for i in range(4)] == [["c", "d", "</s>"], ["c", "d", "e"], [], ["</s>"]]
    assert tokens.lengths.tolist() == [5, 5, 5, 3]
    counted = {"rows": 4, "rows_truncated": 2, "rows_without_supervised_token": 1, "rows_unusable": {}}
    assert tokens.counted() == counted


def test_the_first_token_is_never_a_label(make_tokenizer, source, tmp_path):
    tokens = tokenize(source(("", "ab")), make_tokenizer(), "plain", 16, tmp_path)
    assert tokens.supervised(0).tolist() == [False, True, True]


def test_a_token_that_begins_in_the_prompt_is_not_a_label(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer(merges=[("f", "o"), ("fo", "o"), ("Ġ", "foo")])
    tokens = tokenize(source(("a ", "foo b")), tokenizer, "plain", 16, tmp_path)
    assert fed(tokens, tokenizer) == ["a", "Ġfoo", "Ġ", "b", "</s>"]
    assert labels(tokens, tokenizer) == ["Ġ", "b", "</s>"]


def test_lone_spaces_and_bytes_of_a_character_are_labels(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    tokens = tokenize(source(("a", "  é")), tokenizer, "plain", 16, tmp_path)
    assert labels(tokens, tokenizer) == ["Ġ", "Ġ", "Ã", "©", "</s>"]


def test_an_answer_that_contains_eos_as_text_still_ends_with_eos(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    tokens = tokenize(source(("<s>a", "b</s>")), tokenizer, "plain", 16, tmp_path)
    assert fed(tokens, tokenizer) == ["<", "s", ">", "a", "b", "<", "/", "s", ">", "</s>"]
    assert tokens.response_tokens.tolist() == [6]


def test_every_answer_of_a_conversation_is_a_label(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(bos=True, chat_template=CHATML, eos="<|im_end|>")
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))
    conversation = Source(DatasetSpec("t", path=str(path)))
    chat = tokenize(conversation, tokenizer, "chat", 512, tmp_path)
    assert labels(chat, tokenizer) == ["b", "<|im_end|>", "d", "<|im_end|>"]
    assert fed(chat, tokenizer)[0] == "<|im_start|>"
    alpaca = tokenize(conversation, tokenizer, "alpaca", 512, tmp_path)
    assert labels(alpaca, tokenizer) == ["b", "<|im_end|>", "d", "<|im_end|>"]
    assert fed(alpaca, tokenizer)[0] == "<s>"


# --- the cache


def test_a_conversation_written_once_per_answer_has_one_turn_of_it_in_each_row(make_tokenizer, tmp_path):
    """What docs/explanation/design.md suggests in place of a record of every turn."""
    contents = ["One?", "1", "Two?", "22", "Three?", "333"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    copies = []
    for trained in (1, 3, 5):
        weights = {i: {"weight": int(i == trained)} for i in (1, 3, 5)}
        copies.append([turn | weights.get(i, {}) for i, turn in enumerate(turns)])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in [turns, *copies]))
    source = Source(DatasetSpec("t", path=str(path)))
    tokens = tokenize(source, make_tokenizer(chat_template=CHATML, eos="<|im_end|>"), "chat", 512, tmp_path / "cache")
    whole, *parts = [tokens.supervised(i) for i in range(4)]
    assert [tokens.input_ids(i).tolist() for i in (1, 2, 3)] == 3 * [tokens.input_ids(0).tolist()]
    assert np.add.reduce(parts, dtype=np.int64).tolist() == whole.astype(np.int64).tolist()
    assert len(set(source.ids.to_pylist())) == 4


def test_rows_beyond_one_record_batch_keep_their_order(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    rows = [(f"{n}=", "x" * (n % 3)) for n in range(ROWS_PER_BATCH + 5)]
    data = source(*rows)
    tokens = tokenize(data, tokenizer, "plain", 64, tmp_path)
    joined = JoinedTokens(tokens, tokens)
    assert tokens.ids.to_pylist() == data.ids.to_pylist()
    for i in (0, 1, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, ROWS_PER_BATCH + 4):
        assert "".join(fed(tokens, tokenizer, i)) == "".join(rows[i]) + "</s>"
        assert tokens.supervised(i).sum() == tokens.response_tokens[i] == len(rows[i][1]) + 1
        assert joined.input_ids(len(rows) + i).tolist() == tokens.input_ids(i).tolist()
        assert joined.supervised(len(rows) + i).tolist() == tokens.supervised(i).tolist()
    assert joined.ids.to_pylist() == 2 * tokens.ids.to_pylist()
    assert joined.lengths.tolist() == 2 * tokens.lengths.tolist()


def test_tokens_are_computed_once_and_memory_mapped(make_tokenizer, source, tmp_path):
    data = source(("a", "b"))
    first = tokenize(data, make_tokenizer(), "plain", 16, tmp_path)
    again = tokenize(source(("a", "b")), make_tokenizer(), "plain", 16, tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert first.folder == again.folder
    assert again.folder.parent == tmp_path / "tokens"
    assert not again.input_ids(0).flags.owndata
    assert not again.input_ids(0).flags.writeable
    assert not list(tmp_path.rglob("*.tmp"))


def test_everything_that_changes_the_tokens_changes_the_key(make_tokenizer, source, tmp_path):
    requests = [
        (source(("a", "b")), make_tokenizer(), "plain", 16),
        (source(("a", "b")), make_tokenizer(), "plain", 17),
        (source(("a", "b")), make_tokenizer(), "alpaca", 16),
        (source(("a", "b")), make_tokenizer(bos=True), "plain", 16),
        (source(("a", "b")), make_tokenizer(eos="<|im_end|>"), "plain", 16),
        (source(("a", "c")), make_tokenizer(), "plain", 16),
    ]
    tokens = []
    for data, *rest in requests:  # sources share one file, written anew for each
        data = source(("a", "c")) if data is requests[-1][0] else source(("a", "b"))
        tokens.append(tokenize(data, *rest, tmp_path))
    assert not any(one.reused for one in tokens)
    assert len({one.folder for one in tokens}) == len(requests)


def test_truncation_and_padding_of_the_tokenizer_do_not_matter(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokens = tokenize(source(("ab", "c")), tokenizer, "plain", 16, tmp_path)
    assert fed(tokens, tokenizer) == ["a", "b", "c", "</s>"]
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2
    assert tokenize(source(("ab", "c")), make_tokenizer(), "plain", 16, tmp_path).reused


@pytest.mark.parametrize("broken", ["manifest.json", "tokens.arrow"])
def test_an_incomplete_entry_is_rebuilt(make_tokenizer, source, tmp_path, broken):
    tokenizer = make_tokenizer()
    folder = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path).folder
    (folder / broken).write_bytes(b"half")
    tokens = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path)
    assert not tokens.reused
    assert fed(tokens, tokenizer) == ["a", "b", "</s>"]


@pytest.mark.parametrize("position", [200, -200])
def test_a_flipped_bit_is_reported_and_repaired(make_tokenizer, source, tmp_path, position, caplog):
    tokenizer = make_tokenizer()
    whole = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path).folder / "tokens.arrow"
    content = bytearray(whole.read_bytes())
    content[position] ^= 1
    whole.write_bytes(content)
    tokens = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path)
    assert not tokens.reused
    assert fed(tokens, tokenizer) == ["a", "b", "</s>"]
    assert "tokens.arrow: has changed since it was written" in caplog.text
    assert caplog.text.rstrip().endswith("Rebuilding it.")
    assert tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path).reused


def test_tokens_of_another_format_or_key_are_rebuilt(make_tokenizer, source, tmp_path, caplog):
    tokenizer = make_tokenizer()
    manifest = tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path).folder / "manifest.json"
    written = json.loads(manifest.read_text())
    for change, problem in (
        ({"format": 1}, "has format 1, lpsel"),
        ({"key": written["key"] | {"data": "0"}}, "belongs to another entry of the cache"),
    ):
        manifest.write_text(json.dumps(written | change))
        assert not tokenize(source(("a", "b")), tokenizer, "plain", 16, tmp_path).reused
        assert problem in caplog.text


def _build(make_tokenizer, source, cache_dir, reused):
    reused.put(tokenize(source, make_tokenizer(), "plain", 16, cache_dir).reused)


def test_concurrent_processes_tokenize_once(make_tokenizer, source, tmp_path):
    data = source(("a", "b"))
    context = multiprocessing.get_context("fork")
    reused = context.SimpleQueue()
    processes = [context.Process(target=_build, args=(make_tokenizer, data, tmp_path, reused)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(reused.get() for _ in processes) == [False, True, True]


# --- invalid input


def test_a_tokenizer_without_eos_is_rejected(make_tokenizer, source, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer of hand-made: has no end-of-sequence token\. Set eos_token"):
        tokenize(source(("a", "b")), make_tokenizer(eos=None), "plain", 16, tmp_path)


def test_a_slow_tokenizer_is_rejected(source, tmp_path):
    class Slow:
        is_fast = False
        name_or_path = "slow"

    with pytest.raises(UserError, match="tokenizer of slow: must be a fast tokenizer"):
        tokenize(source(("a", "b")), Slow(), "plain", 16, tmp_path)


def test_a_cache_that_is_not_writable_is_rejected(make_tokenizer, source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught, resource_errors():  # as every command does
        tokenize(source(("a", "b")), make_tokenizer(), "plain", 16, tmp_path / "file")
    assert caught.value.name.startswith(str(tmp_path / "file"))


def test_a_row_that_the_template_rejects_is_named_by_its_line(make_tokenizer, source, tmp_path):
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('no') if 'z' in messages[0]['content'] }}")
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: chat template of hand-made: rejects"):
        tokenize(source(("a", "b"), ("z", "b")), tokenizer, "chat", 16, tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))


# --- real tokenizers


@pytest.mark.real
@pytest.mark.skipif(not DOLLY.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_labels_are_those_of_the_papers_method(model, real_models, tmp_path):
    """The paper masks as many tokens as the prompt has alone, of `prompt + answer + eos` cut to length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_models / model)
    dolly = Source(DatasetSpec("dolly", path=str(DOLLY), limit=300))
    short, long = (tokenize(dolly, tokenizer, "alpaca", max_length, tmp_path) for max_length in (128, 512))
    for i, row in enumerate(dolly):
        prompt = tokenizer(render_prompt(row.example, "alpaca", tokenizer).text).input_ids
        whole = tokenizer(render(row.example, "alpaca", tokenizer).text + tokenizer.eos_token).input_ids
        mask = np.arange(len(whole)) >= len(prompt)
        for tokens, max_length in ((short, 128), (long, 512)):
            assert tokens.input_ids(i).tolist() == whole[:max_length]
            np.testing.assert_array_equal(tokens.supervised(i), mask[:max_length], err_msg=f"row {i}")
