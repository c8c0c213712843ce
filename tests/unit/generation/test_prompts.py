import functools
import gzip
import http.server
import json
import os
import sys
import threading
import types

import pytest

from lpsel.data.column_forms import Turn
from lpsel.errors import UnusableRow, UserError
from lpsel.generation.prompts import known_sets, load_prompts

FIVE = {"vicuna": 80, "koala": 180, "wizardlm": 218, "self_instruct": 252, "alpaca_eval": 805}


@pytest.fixture
def load(tmp_path):
    return lambda *given, **options: load_prompts(*given, cache_dir=tmp_path / "cache", **options)[0]


@pytest.fixture
def written(tmp_path):
    def write(rows, name="own.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(("name", "size"), FIVE.items())
def test_the_five_sets_are_complete(shared_data, load, name, size):
    prompts = load(name, folder=shared_data / "eval")
    assert len(prompts) == len({prompt.id for prompt in prompts}) == size
    assert {prompt.prompt_set for prompt in prompts} == {name}
    rows = [json.loads(line) for line in (shared_data / "eval" / f"{name}.jsonl").read_text().splitlines()]
    assert [prompt.id for prompt in prompts] == [row["id"] for row in rows]
    assert [prompt.example.turns[0].content for prompt in prompts] == [row["instruction"] for row in rows]
    assert [prompt.example.input for prompt in prompts] == [row.get("input", "") for row in rows]
    assert [prompt.category for prompt in prompts] == [row.get("category") for row in rows]
    assert [prompt.reference for prompt in prompts] == [row.get("reference_output") or None for row in rows]


def test_the_limit_applies_to_each_set(shared_data, load):
    prompts = load(["koala", "vicuna"], 3, folder=shared_data / "eval")
    assert [prompt.id for prompt in prompts] == ["koala_0", "koala_1", "koala_2", "vicuna_1", "vicuna_2", "vicuna_3"]


def test_every_data_format_and_form_can_hold_prompts(tmp_path, load, written):
    alpaca = [{"instruction": "Add.", "input": "2 3", "output": "5"}]
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(json.dumps(alpaca[0]).encode()))
    (tmp_path / "table.csv").write_text('instruction,input\nAdd.,2 3\n"Two\nlines",\n')
    (only,) = load(str(tmp_path / "packed.jsonl.gz"))
    assert (only.id, only.prompt_set, only.text, only.reference) == ("packed/0", "packed", "Add.\n\n2 3", "5")
    assert [p.text for p in load(str(tmp_path / "table.csv"))] == ["Add.\n\n2 3", "Two\nlines"]
    (asked,) = load(written([{"prompt": "Why?"}]))
    assert (asked.text, asked.reference) == ("Why?", None)


def test_a_conversation_is_a_prompt_up_to_its_last_answer(load, written):
    turns = [{"role": r, "content": c} for r, c in [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]]
    answered = [*turns, {"role": "assistant", "content": "Because."}]
    open_end, with_answer = load(written([{"messages": turns}, {"messages": answered}]))
    assert open_end.example == with_answer.example
    assert open_end.example.turns[-1] == Turn("user", "Why?")
    assert (open_end.reference, with_answer.reference) == (None, "Because.")


def test_a_list_of_turns_is_a_conversation(load, written):
    turns, question = [{"role": "user", "content": "Add 2 and 3."}], {"instruction": "Add 2 and 3."}
    assert load(written([{"messages": turns}]))[0].conversation
    assert load(written([{"prompt": turns}], "turns.jsonl"))[0].conversation
    assert not load(written([question], "instructions.jsonl"))[0].conversation


def test_a_prompt_may_be_a_list_of_turns_as_text_and_have_a_label(load, written):
    """The label of a prompt without an answer is not one of KTO."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (prompt,) = load(written([{"prompt": json.dumps(turns), "label": False}]))
    assert prompt.example.turns == (Turn("system", "Be brief."), Turn("user", "Why?"))
    assert prompt.conversation


def test_a_prompt_with_earlier_answers_names_the_speakers_to_judges(load, written):
    turns = [("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "And then?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (prompt,) = load(written([{"messages": messages}]))
    assert prompt.text == "System: Be brief.\n\nUser: Why?\n\nAssistant: Because.\n\nUser: And then?"
    (single,) = load(written([{"messages": messages[:2]}]))
    assert single.text == "Be brief.\n\nWhy?"


def test_duplicate_ids_of_two_sets_are_prefixed_with_the_set(load, written):
    rows = [{"id": 1, "instruction": "A"}, {"id": 2, "instruction": "B"}]
    prompts = load([written(rows, "one.jsonl"), written([*rows[:1], {"id": 3, "instruction": "C"}], "two.jsonl")])
    assert [prompt.id for prompt in prompts] == ["one/1", "2", "two/1", "3"]


def test_nested_columns(shared_data, tmp_path, monkeypatch, load):
    """Self-Instruct's own file has its input and answer in a list of instances."""
    conf = tmp_path / "conf" / "prompt_set"
    conf.mkdir(parents=True)
    row = {"id": "t_0", "app": "Mail", "instruction": "Shorten.", "instances": [{"input": "Long.", "output": "L."}]}
    (tmp_path / "raw.jsonl").write_text(json.dumps(row) + "\n")
    (conf / "mine.yaml").write_text(
        f"_target_: lpsel.generation.prompts.PromptSet\nname: mine\npath: {tmp_path}/raw.jsonl\n"
        "columns: {instruction: instruction, input: instances.0.input}\n"
        "category: app\nreference: instances.0.output\n"
    )
    monkeypatch.setattr("lpsel.generation.prompts.config_dir", lambda: tmp_path / "conf")
    (prompt,) = load("mine")
    assert (prompt.id, prompt.text, prompt.category, prompt.reference) == ("t_0", "Shorten.\n\nLong.", "Mail", "L.")


def test_a_set_on_the_hub_is_read_at_its_revision(tmp_path, monkeypatch, load):
    conf = tmp_path / "conf" / "prompt_set"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(
        "_target_: lpsel.generation.prompts.PromptSet\nname: mine\npath: org/prompts\nsplit: test\nrevision: v1\n"
    )
    monkeypatch.setattr("lpsel.generation.prompts.config_dir", lambda: tmp_path / "conf")

    def dataset_info(self, path, revision, timeout):
        assert (path, revision) == ("org/prompts", "v1")
        return types.SimpleNamespace(sha="c1")

    def load_dataset(path, split, streaming, revision):
        assert (path, split, revision) == ("org/prompts", "test", "c1")
        return [{"instruction": "Why?"}]

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [prompt.text for prompt in load("mine")] == ["Why?"]


def test_a_web_address_is_downloaded_once(tmp_path, written, load):
    written([{"id": "x", "instruction": "From afar."}], "served/far.jsonl")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert [p.text for p in load(f"{address}/far.jsonl")] == ["From afar."]
        with pytest.raises(UserError, match=r"near.jsonl: cannot be downloaded \(HTTP Error 404: .*\). Download it"):
            load(f"{address}/near.jsonl?sig=abc")
        server.shutdown()
    (file,) = tmp_path.rglob("*-far.jsonl")
    os.utime(file, (0, 0))
    (again,) = load(f"{address}/far.jsonl")
    assert file.stat().st_mtime > 0, "last used now"
    assert (again.id, again.prompt_set) == ("x", "far")


@pytest.mark.parametrize("address", ["http://[::1/p.jsonl", "http://host:port/p.jsonl", "http://a..b/p.jsonl"])
def test_an_invalid_web_address_is_a_user_error(load, address):
    with pytest.raises(UserError, match=r"cannot be downloaded \("):
        load(address)


def test_a_download_has_a_limited_size(tmp_path, written, load, monkeypatch):
    monkeypatch.setattr("lpsel.generation.prompts.MAX_DOWNLOAD", 1 << 20)
    written([{"instruction": "x" * 1000}] * 1100, "served/far.jsonl")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"far\.jsonl: has more than 1 MiB"):
            load(f"http://127.0.0.1:{server.server_port}/far.jsonl")
        server.shutdown()


@pytest.mark.parametrize(
    ("rows", "location", "name", "problem"),
    [
        ([], "", "prompts", "{path} has no prompts"),
        ([{"instruction": " "}], "prompts=own, row 0", "prompt", "has no text"),
        ([{"id": 1, "instruction": "A"}] * 2, "", "prompts", "the id own/1 is not unique"),
        ([{"question": "Why?"}], "prompts=own, row 0", "columns", "contain no prompt"),
    ],
)
def test_an_invalid_set_is_rejected(load, written, rows, location, name, problem):
    path = written(rows)
    with pytest.raises(UserError) as caught:
        load(path)
    found = (caught.value.location, caught.value.name, caught.value.problem)
    assert found == (location, name, problem.format(path=path))


def test_unusable_prompts_are_skipped_and_counted_and_keep_their_numbers(load, written, tmp_path):
    """Of every kind: a list as text, an unknown form, no text, a line that is no row."""
    path = written([{"instruction": [5]}, {"instruction": "Why?"}, {"question": "x"}, {"instruction": " "}])
    with open(path, "a") as file:
        file.write('[1]\n{"instruction": "How?"}\n')
    prompts, kinds = load_prompts(path, cache_dir=tmp_path, bad_rows="skip")
    assert [(p.id, p.text) for p in prompts] == [("own/1", "Why?"), ("own/5", "How?")]
    assert kinds == dict.fromkeys(
        ["a list as text", "an unknown form", "a prompt without text", "a row that is not an object"], 1
    )
    with pytest.raises(UnusableRow) as caught:
        load(path)
    assert (caught.value.location, caught.value.kind) == ("prompts=own, row 0", "a list as text")
    assert caught.value.hint.endswith("set dataset.bad_rows=skip to leave such rows out")


def test_a_line_that_holds_no_prompt_is_named_once(load, written):
    path = written([{"instruction": "Why?"}, [1]])
    with pytest.raises(UnusableRow) as caught:
        load(path)
    assert (caught.value.location, caught.value.name) == ("prompts=own", f"{path}, line 2")


def test_a_set_without_a_usable_prompt_is_rejected(load, written):
    with pytest.raises(UserError) as caught:
        load(written([{"instruction": [5]}]), bad_rows="skip")
    assert caught.value.problem == "none of 1 prompts can be used: a list as text (1)"


def test_a_column_that_is_not_text_is_rejected(load, written):
    with pytest.raises(UserError, match=r"prompts=own, row 0: .*instruction.* must be text, found list"):
        load(written([{"instruction": [5]}]))


def test_unknown_sets_and_files_are_rejected(tmp_path, load, written):
    known = "alpaca_eval, koala, lima, self_instruct, vicuna, wizardlm"
    written([{"instruction": "A"}], "mine/house.jsonl")
    mine = tmp_path / "mine"
    assert known_sets(mine) == sorted([*known.split(", "), "house"])
    assert len(load("house", folder=mine)) == 1

    def rejected(*arguments, **options):
        with pytest.raises(UserError) as caught:
            load(*arguments, **options)
        return caught.value.name, caught.value.value, caught.value.problem, caught.value.hint

    assert rejected(5)[:3] == ("prompts", "5", "no such prompt set")  # a name of digits
    assert rejected("coala") == ("prompts", "coala", "no such prompt set", f"set one of {known}, a file or a Hub id")
    none = tmp_path / "none"
    assert rejected(f"{none}.jsonl") == ("prompts", f"{none}.jsonl", "no such file", "check the path")
    assert rejected("house", folder=none)[:3] == ("prompts_dir", none, "no such folder")
    assert rejected(["house", "house"], folder=mine)[2] == "2 sets are named house"
    assert rejected("house", 0, folder=mine)[:3] == ("evaluator.limit", 0, "must be an integer, at least 1")
    assert rejected([])[:3] == ("prompts", "[]", "has no prompt set")
    assert rejected(str(mine))[:3] == ("prompts", str(mine), "unknown file extension")
