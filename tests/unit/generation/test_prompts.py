import functools
import gzip
import http.server
import json
import threading

import pytest

from lpsel.data.dataset import Turn
from lpsel.errors import UserError
from lpsel.generation.prompts import known_sets, load_prompts

FIVE = {"vicuna": 80, "koala": 180, "wizardlm": 218, "self_instruct": 252, "alpaca_eval": 805}


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_prompts, cache_dir=tmp_path / "cache")


@pytest.fixture
def written(tmp_path):
    def write(rows, name="own.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(("name", "size"), FIVE.items())
def test_the_five_sets_are_whole(shared_data, load, name, size):
    prompts = load(name, folder=shared_data / "eval")
    assert len(prompts) == len({prompt.id for prompt in prompts}) == size
    assert {prompt.prompt_set for prompt in prompts} == {name}
    rows = [json.loads(line) for line in (shared_data / "eval" / f"{name}.jsonl").read_text().splitlines()]
    assert [prompt.id for prompt in prompts] == [row["id"] for row in rows]
    assert [prompt.example.turns[0].content for prompt in prompts] == [row["instruction"] for row in rows]
    assert [prompt.example.input for prompt in prompts] == [row.get("input", "") for row in rows]
    assert [prompt.category for prompt in prompts] == [row.get("category") for row in rows]
    assert [prompt.reference for prompt in prompts] == [row.get("reference_output") or None for row in rows]


def test_several_sets_come_one_behind_the_other_and_the_limit_is_each_sets(shared_data, load):
    prompts = load(["koala", "vicuna"], 3, folder=shared_data / "eval")
    assert [prompt.id for prompt in prompts] == ["koala_0", "koala_1", "koala_2", "vicuna_1", "vicuna_2", "vicuna_3"]


def test_a_file_of_any_known_kind_and_form_holds_prompts(tmp_path, load, written):
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


def test_equal_ids_of_two_sets_are_told_apart_by_the_sets_names(load, written):
    rows = [{"id": 1, "instruction": "A"}, {"id": 2, "instruction": "B"}]
    prompts = load([written(rows, "one.jsonl"), written([*rows[:1], {"id": 3, "instruction": "C"}], "two.jsonl")])
    assert [prompt.id for prompt in prompts] == ["one/1", "2", "two/1", "3"]


def test_columns_inside_others_are_found(shared_data, tmp_path, monkeypatch, load):
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


def test_a_file_on_the_web_is_fetched_once(tmp_path, written, load):
    written([{"id": "x", "instruction": "From afar."}], "served/far.jsonl")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert [p.text for p in load(f"{address}/far.jsonl")] == ["From afar."]
        with pytest.raises(UserError, match=r"near.jsonl: cannot be fetched \(HTTP Error 404: .*\); fetch it by other"):
            load(f"{address}/near.jsonl")
        server.shutdown()
    (again,) = load(f"{address}/far.jsonl")
    assert (again.id, again.prompt_set) == ("x", "far")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "prompts=own: {path} has no prompts; give a set that has some."),
        ([{"instruction": " "}], "prompts=own, row 0: a prompt without text; mend it or leave it out."),
        ([{"id": 1, "instruction": "A"}] * 2, "prompts: the id own/1 comes twice; give every prompt of a set an id of "
         "its own, or none."),
        ([{"question": "Why?"}], "prompts=own, row 0: columns question: a prompt needs instruction (and input), prompt "
         "or messages; rename its column."),
        ([{"instruction": 5}], "prompts=own, row 0: column instruction: must be text, found int '5'; convert it to a "
         "string."),
    ],
)  # fmt: skip
def test_a_set_that_is_none_is_refused(load, written, rows, complaint):
    path = written(rows)
    with pytest.raises(UserError) as refused:
        load(path)
    assert str(refused.value) == complaint.format(path=path)


def test_what_is_not_there_is_said_with_what_is(tmp_path, load, written):
    known = "alpaca_eval, koala, lima, self_instruct, vicuna, wizardlm"
    with pytest.raises(UserError, match=f"prompts=coala: no such prompt set; give one of {known}, a file or a Hub id"):
        load("coala")
    written([{"instruction": "A"}], "mine/house.jsonl")
    assert known_sets(tmp_path / "mine") == sorted([*known.split(", "), "house"])
    assert len(load("house", folder=tmp_path / "mine")) == 1
    with pytest.raises(UserError, match=r"prompts=.*/none.jsonl: no such file. Check the name"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"prompts_dir=.*/none: no such folder; give a folder of prompt files, or null"):
        load("house", folder=tmp_path / "none")
    with pytest.raises(UserError, match=r"prompts: 2 sets are called house; name each once"):
        load(["house", "house"], folder=tmp_path / "mine")
    with pytest.raises(UserError, match=r"limit=0: must be at least 1 prompt of every set, or null for all"):
        load("house", 0, folder=tmp_path / "mine")
    with pytest.raises(UserError, match=r"prompts=\[\]: no prompts"):
        load([])
