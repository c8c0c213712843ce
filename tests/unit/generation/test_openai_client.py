import json
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lpsel.data.column_forms import Example, Turn
from lpsel.errors import UserError
from lpsel.generation.answers import answers, check
from lpsel.generation.openai_client import Endpoint, run_concurrently
from lpsel.generation.prompts import Prompt, load_prompts
from lpsel.generation.sampling import Sampling
from lpsel.judging.judge import Pair, question_key

SERVER = Path(__file__).parent / "chat_server.py"
HOW = {"device": torch.device("cpu"), "dtype": torch.float32, "batch_tokens": 400}
FOUR = Sampling(4)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in a process of its own; calling it gives the requests that it got."""
    monkeypatch.setenv("MY_KEY", "sk-right")
    log = tmp_path / "requests.jsonl"

    def requests():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    with subprocess.Popen([sys.executable, str(SERVER), str(log)], stdout=subprocess.PIPE, text=True) as process:
        requests.url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        yield requests
        process.kill()


def prompts_of(*texts):
    return [Prompt(str(i), "own", Example((Turn("user", text),))) for i, text in enumerate(texts)]


def test_an_endpoint_is_named_by_its_model_and_address():
    endpoint = Endpoint.of("/models/gemma3@http://127.0.0.1:8000/v1/")
    assert (endpoint.model, endpoint.base_url, endpoint.name) == (
        "/models/gemma3",
        "http://127.0.0.1:8000/v1",
        "gemma3",
    )
    for other in ("gemma3", "org/model", "./runs/a@b", "http://127.0.0.1:8000/v1"):
        assert Endpoint.of(other) is None


def test_a_key_in_the_address_is_rejected_and_not_repeated():
    for address in ("http://me:sk-secret@host/v1", "https://host/v1?api_key=sk-secret"):
        with pytest.raises(UserError) as caught:
            Endpoint.of(f"m@{address}")
        assert (caught.value.name, caught.value.value) == ("model", f"m@{address.split(':')[0]}://host/v1")
        assert caught.value.hint == "set key_env to the environment variable that holds the key"
        assert "sk-secret" not in str(caught.value)


def test_turns_are_sent_unchanged_and_answers_cached(tmp_path, server):
    endpoint = Endpoint.of(f"m@{server.url}", "MY_KEY")
    turns = (Turn("system", "Be brief."), Turn("user", "one two three four five"))
    prompts = [*prompts_of("a b"), Prompt("x", "own", Example(turns, "six"))]
    found, about = answers(endpoint, prompts, FOUR, cache_dir=tmp_path, **HOW)
    assert [(a.text, a.tokens, a.stopped) for a in found] == [("A B", 2, True), ("ONE TWO THREE FOUR", 4, False)]
    assert (about["generated"], about["reused"], about["answers_cut"], about["generated_tokens"]) == (2, 0, 1, 6)
    sent = sorted(server(), key=lambda request: len(request["messages"]))
    assert sent[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two three four five\n\nsix"},
    ]
    assert {(r["model"], r["temperature"], r["max_tokens"], r["key"]) for r in sent} == {("m", 0, 4, "Bearer sk-right")}
    assert not any("seed" in request for request in sent)
    again, about = answers(endpoint, prompts, FOUR, cache_dir=tmp_path, **HOW)
    assert (again, about["reused"], len(server())) == (found, 2, 2)
    assert "sk-right" not in "".join(f.read_text() for f in tmp_path.glob("answers/*/*"))


def test_tools_and_calls_are_sent_as_the_protocol_has_them_and_answered_with_a_call(tmp_path, server):
    """Of a dataset with flat tools and with arguments as objects, which chat templates take."""
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    turns = [
        {"role": "user", "content": "Is it warm in Bonn?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "name": "weather", "arguments": {"city": "Bonn"}}]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"messages": turns, "tools": [tool]}))
    prompts, _ = load_prompts(str(path), cache_dir=tmp_path)
    (answer,), about = answers(Endpoint.of(f"caller@{server.url}"), prompts, FOUR, cache_dir=tmp_path, **HOW)
    assert (json.loads(answer.text), answer.stopped) == ({"name": "weather", "arguments": '{"city": "Köln"}'}, True)
    assert (about["answers_cut"], about["answers_empty"]) == (0, 0)
    (request,) = server()
    assert request["tools"] == [{"type": "function", "function": tool}]
    function = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    call = {"type": "function", "id": "1", "function": function}
    assert request["messages"] == [turns[0], {"role": "assistant", "content": "", "tool_calls": [call]}, turns[2]]
    _, again = answers(Endpoint.of(f"caller@{server.url}"), prompts, FOUR, cache_dir=tmp_path, **HOW)
    assert (again["reused"], len(server())) == (1, 1)


def test_calls_without_ids_are_sent_with_ids_and_arguments_as_text(tmp_path, server):
    """Of ShareGPT and OpenAI's old format; servers refuse a call without an id, and a result without that of a call."""

    def calls(*cities):
        return [{"function": {"name": "weather", "arguments": json.dumps({"city": city})}} for city in cities]

    turns = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": calls("Bonn", "Rome")},
        *({"role": "tool", "content": degrees} for degrees in ("12", "30")),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": {"city": "Oslo"}}},
        {"role": "function", "name": "weather", "content": "3"},
        {"role": "tool", "content": "?"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    answers(
        Endpoint.of(f"m@{server.url}"), load_prompts(str(path), cache_dir=tmp_path)[0], FOUR, cache_dir=tmp_path, **HOW
    )
    (request,) = server()
    sent = [call for message in request["messages"] for call in message.get("tool_calls", ())]
    assert [(call["id"], call["function"]["arguments"]) for call in sent] == [
        ("call_1", '{"city": "Bonn"}'), ("call_2", '{"city": "Rome"}'), ("call_3", '{"city": "Oslo"}')
    ]  # fmt: skip
    results = [message.get("tool_call_id") for message in request["messages"] if message["role"] == "tool"]
    assert results == ["call_1", "call_2", "call_3", None]


def test_samples_carry_their_settings(tmp_path, server):
    answers(Endpoint.of(f"m@{server.url}"), prompts_of("a"), Sampling(4, 0.7, 0.9, seed=3), cache_dir=tmp_path, **HOW)
    (request,) = server()
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.7, 0.9, 3)


def test_concurrency_limits_the_requests_in_flight(tmp_path, server):
    texts = [f"text {i}" for i in range(24)]
    found, _ = answers(
        replace(Endpoint.of(f"m@{server.url}"), concurrency=3), prompts_of(*texts), FOUR, cache_dir=tmp_path, **HOW
    )
    assert [answer.text for answer in found] == [text.upper() for text in texts]
    assert 1 < max(request["together"] for request in server()) <= 3


def test_requests_to_a_busy_server_are_retried(tmp_path, server):
    found, _ = answers(Endpoint.of(f"m@{server.url}"), prompts_of("busy", "free"), FOUR, cache_dir=tmp_path, **HOW)
    assert [answer.text for answer in found] == ["BUSY", "FREE"]
    assert len(server()) == 4


def test_a_reply_without_choices_is_reported_with_its_prompt(tmp_path, server):
    with pytest.raises(UserError, match=r"no usable reply \(not a chat completion, for prompt 1\)"):
        answers(Endpoint.of(f"m@{server.url}"), prompts_of("one", "nothing"), FOUR, cache_dir=tmp_path, **HOW)


def test_answers_before_a_failed_request_are_cached(tmp_path, server):
    endpoint = replace(Endpoint.of(f"m@{server.url}"), concurrency=1)
    prompts = prompts_of("one", "two", "too long", "three")
    with pytest.raises(UserError) as caught:
        answers(endpoint, prompts, FOUR, cache_dir=tmp_path, **HOW)
    assert (caught.value.name, caught.value.value) == ("prompts", "2")
    assert caught.value.problem == "m refuses it (400: The context has 10 tokens)"
    _, about = answers(endpoint, prompts[:2], FOUR, cache_dir=tmp_path, **HOW)
    assert about["reused"] == 2


def test_max_completion_tokens_and_servers_that_report_no_tokens(tmp_path, server):
    (answer,), _ = answers(Endpoint.of(f"new@{server.url}"), prompts_of("a b c d e"), FOUR, cache_dir=tmp_path, **HOW)
    assert (answer.text, answer.stopped) == ("A B C D", False)
    (answer,), about = answers(Endpoint.of(f"no-usage@{server.url}"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert (answer.text, answer.tokens, answer.prompt_tokens, about["generated_tokens"]) == ("A", None, None, None)


def test_a_wrong_key_or_address_is_reported_before_any_request(tmp_path, server, monkeypatch, free_port):
    endpoint, how = Endpoint.of(f"m@{server.url}", "MY_KEY"), {"cache_dir": tmp_path, "dtype": torch.float32}
    check(endpoint, prompts_of("a"), FOUR, **how)
    with pytest.raises(UserError) as caught:
        check(Endpoint.of(f"m@http://127.0.0.1:{free_port()}/v1"), prompts_of("a"), FOUR, **how)
    assert caught.value.problem == "cannot be reached ([Errno 111] Connection refused)"
    answers(endpoint, prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    monkeypatch.setenv("MY_KEY", "sk-secret-wrong")
    check(endpoint, prompts_of("a"), FOUR, **how)  # nothing is missing, so the server is not contacted
    with pytest.raises(UserError) as caught:
        check(endpoint, prompts_of("a", "b"), FOUR, **how)
    assert caught.value.problem == "the server rejects the API key (401)"
    assert caught.value.hint == "set the environment variable MY_KEY to a valid key"
    assert "sk-sec" not in str(caught.value)
    assert len(server()) == 1


def test_only_openais_own_server_gets_the_default_key(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    for endpoint in (Endpoint.of(f"a@{server.url}"), Endpoint.of(f"b@{server.url}", "MY_KEY")):
        answers(endpoint, prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert [request["key"] for request in server()] == ["Bearer none", "Bearer sk-right"]
    with Endpoint.of("m@https://api.openai.com/v1", "MY_KEY").connect() as client:
        assert client.api_key == "sk-openai"


@pytest.mark.parametrize("key", ["sk-right\n", " sk-right \r\n"])
def test_a_key_is_stripped(tmp_path, server, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    answers(Endpoint.of(f"m@{server.url}", "MY_KEY"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert [request["key"] for request in server()] == ["Bearer sk-right"]


@pytest.mark.parametrize("key", ["sk-wr\nong", "sk-wröng", "sk wrong", "sk-wrong\x07x"])
def test_a_key_with_other_characters_is_an_error_without_the_key(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UserError) as caught:
        Endpoint.of("m@http://127.0.0.1:9/v1", "MY_KEY").connect()
    assert (caught.value.name, caught.value.problem) == ("MY_KEY", "contains an invalid character")
    assert "wr" not in str(caught.value)


def test_a_key_that_is_not_set_is_an_error(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="needs an API key, and MY_KEY is not set"):
        Endpoint.of("m@http://127.0.0.1:9/v1", "MY_KEY").connect()


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("http://10.0.0.5:8000/v1", True),
        ("http://judge.example/v1", True),
        ("https://judge.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.2/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_over_plain_http_to_another_machine_is_a_warning(monkeypatch, caplog, address, warned):
    monkeypatch.setenv("MY_KEY", "sk-right")
    Endpoint.of(f"m@{address}", "MY_KEY").connect().close()
    assert ("The key in MY_KEY is sent to" in caplog.text) is warned
    caplog.clear()
    Endpoint.of(f"m@{address}").connect().close()  # without a key
    assert caplog.text == ""


@pytest.mark.parametrize("address", ["http://[::1", "http://host:port/v1", "https://ü..b/v1", "http://\x07/v1"])
def test_an_invalid_address_is_a_user_error(address):
    with pytest.raises(UserError) as caught:
        Endpoint.of(f"m@{address}").connect()
    assert (caught.value.name, caught.value.value) == ("model", f"m@{address}")
    assert "is not a web address" in caught.value.problem


def test_token_counts_that_no_reply_has_are_unknown(tmp_path, server):
    for _ in range(2):  # from the server, then from the cache
        (answer,), about = answers(
            Endpoint.of(f"odd-usage@{server.url}"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW
        )
        assert (answer.text, answer.tokens, answer.prompt_tokens) == ("A", None, None)
        assert about["generated_tokens"] is None


def test_a_reply_has_a_limited_size(tmp_path, server):
    (answer,), _ = answers(Endpoint.of(f"MiB-15@{server.url}"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert len(answer.text) == 15 << 20
    with pytest.raises(UserError) as caught:
        answers(Endpoint.of(f"MiB-17@{server.url}"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert caught.value.problem == "no usable reply (a reply of more than 16 MiB)"


@pytest.mark.parametrize(
    ("reason", "stopped"),
    [(None, True), ("eos", True), ("end_turn", True), ("length", False), ("content_filter", False)],
)
def test_an_answer_is_cut_off_only_where_the_server_says_so(tmp_path, server, reason, stopped):
    endpoint = Endpoint.of(f"ends-{json.dumps(reason)}@{server.url}")
    (answer,), about = answers(endpoint, prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert (answer.stopped, about["answers_cut"]) == (stopped, not stopped)


def test_half_a_surrogate_pair_in_an_answer_can_be_judged_and_written(tmp_path, server):
    (answer,), _ = answers(Endpoint.of(f"half-a-pair@{server.url}"), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert answer.text == "\\ud83d"
    assert question_key(Pair("0", "a", answer.text, "b"), "baseline_first")


def test_a_signal_while_requests_are_queued_starts_no_further_one():
    asked = []

    def ask(item):
        asked.append(item)
        time.sleep(0.05)

    def items():
        yield from range(100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_concurrently(ask, items(), lambda *_: None, 2)
    assert len(asked) < 10


def test_a_redirect_does_not_send_prompts_to_another_server(tmp_path, server):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        other.handle_error = lambda *_: None
        received = []
        other.process_request = lambda request, address: received.append(address)
        threading.Thread(target=other.serve_forever, daemon=True).start()
        endpoint = Endpoint.of(f"redirect-{other.server_port}@{server.url}", "MY_KEY")
        with pytest.raises(UserError, match=r"no usable reply \(307"):
            answers(replace(endpoint, timeout=5), prompts_of("a"), FOUR, cache_dir=tmp_path, **HOW)
        other.shutdown()
    assert received == []


@pytest.mark.slow
@pytest.mark.real
def test_a_server_with_a_real_model_gives_that_models_greedy_answers(tmp_path, real_models, free_port):
    from lpsel.model.spec import ModelSpec

    model, port = str(real_models / "smollm2-135m"), free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model]
    command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    log = (tmp_path / "server.txt").open("wb")
    with subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until_up(f"http://127.0.0.1:{port}/health", process)
            endpoint = replace(Endpoint.of(f"{model}@http://127.0.0.1:{port}/v1"), concurrency=1)
            prompts = prompts_of("What is the capital of France?", "Name three colors.")
            check(endpoint, prompts, Sampling(12), cache_dir=tmp_path, dtype=torch.float32)
            served, about = answers(endpoint, prompts, Sampling(12), cache_dir=tmp_path, **HOW)
        finally:
            process.kill()
    assert about["generated_tokens"] == sum(answer.tokens for answer in served) > 0
    here, _ = answers(ModelSpec("m", model, template="chat"), prompts, Sampling(12), cache_dir=tmp_path, **HOW)
    assert [answer.text for answer in served] == [answer.text for answer in here]


def until_up(url, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not start")
