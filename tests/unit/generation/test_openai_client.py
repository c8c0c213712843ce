import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from lpsel.data.dataset import Example, Turn
from lpsel.errors import UserError
from lpsel.generation.answers import answers, check
from lpsel.generation.openai_client import Endpoint, conversation
from lpsel.generation.prompt import Prompt
from lpsel.generation.sampling import Sampling

SERVER = Path(__file__).parent / "chat_server.py"
HOW = {"device": torch.device("cpu"), "dtype": torch.float32, "batch_tokens": 400}
FOUR = Sampling(4)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in a process of its own; calling it gives the requests that it got."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    log = tmp_path / "requests.jsonl"

    def requests():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    with subprocess.Popen([sys.executable, str(SERVER), str(log)], stdout=subprocess.PIPE, text=True) as process:
        requests.url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        yield requests
        process.kill()


def said(*texts):
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


def test_a_key_in_the_address_is_refused_and_not_repeated():
    for address in ("http://me:sk-secret@host/v1", "https://host/v1?api_key=sk-secret"):
        with pytest.raises(UserError, match=r"put the key into OPENAI_API_KEY") as refused:
            Endpoint.of(f"m@{address}")
        assert "sk-secret" not in str(refused.value)


def test_the_turns_are_sent_as_they_are_and_answers_kept(tmp_path, server):
    endpoint = Endpoint("m", server.url)
    turns = (Turn("system", "Be brief."), Turn("user", "one two three four five"))
    prompts = [*said("a b"), Prompt("x", "own", Example(turns, "six"))]
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
    assert "sk-right" not in "".join(f.read_text() for f in (tmp_path / "generations").iterdir())


def test_samples_carry_their_settings(tmp_path, server):
    answers(Endpoint("m", server.url), said("a"), Sampling(4, 0.7, 0.9, seed=3), cache_dir=tmp_path, **HOW)
    (request,) = server()
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.7, 0.9, 3)


def test_no_more_than_so_many_requests_are_under_way(tmp_path, server):
    texts = [f"text {i}" for i in range(24)]
    found, _ = answers(Endpoint("m", server.url, concurrency=3), said(*texts), FOUR, cache_dir=tmp_path, **HOW)
    assert [answer.text for answer in found] == [text.upper() for text in texts]
    assert 1 < max(request["together"] for request in server()) <= 3


def test_a_server_that_is_busy_is_asked_again(tmp_path, server):
    found, _ = answers(Endpoint("m", server.url), said("busy", "free"), FOUR, cache_dir=tmp_path, **HOW)
    assert [answer.text for answer in found] == ["BUSY", "FREE"]
    assert len(server()) == 4


def test_what_is_answered_before_a_refusal_is_kept(tmp_path, server):
    endpoint = Endpoint("m", server.url, concurrency=1)
    prompts = said("one", "two", "too long", "three")
    with pytest.raises(UserError, match=r"model=m@http://.*: the server refuses \(.*The context has 10 tokens"):
        answers(endpoint, prompts, FOUR, cache_dir=tmp_path, **HOW)
    _, about = answers(endpoint, prompts[:2], FOUR, cache_dir=tmp_path, **HOW)
    assert about["reused"] == 2


def test_models_with_the_new_name_of_the_limit_and_servers_without_counts(tmp_path, server):
    (answer,), _ = answers(Endpoint("new", server.url), said("a b c d e"), FOUR, cache_dir=tmp_path, **HOW)
    assert (answer.text, answer.stopped) == ("A B C D", False)
    (answer,), about = answers(Endpoint("no-usage", server.url), said("a"), FOUR, cache_dir=tmp_path, **HOW)
    assert (answer.text, answer.tokens, answer.prompt_tokens, about["generated_tokens"]) == ("A", None, None, None)


def test_a_wrong_key_or_address_is_said_before_anything_is_asked(tmp_path, server, monkeypatch, free_port):
    check(Endpoint("m", server.url), said("a"), FOUR, cache_dir=tmp_path, dtype=torch.float32)
    gone = Endpoint("m", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(UserError, match=r"model=m@http://127.*: cannot be reached \(.*refused\); check the address"):
        check(gone, said("a"), FOUR, cache_dir=tmp_path, dtype=torch.float32)
    answers(Endpoint("m", server.url), said("a"), FOUR, cache_dir=tmp_path, **HOW)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-wrong")
    check(
        Endpoint("m", server.url), said("a"), FOUR, cache_dir=tmp_path, dtype=torch.float32
    )  # nothing is missing: nobody is asked
    with pytest.raises(
        UserError, match=r"the server does not take the key; put the right one into OPENAI_API_KEY"
    ) as no:
        check(Endpoint("m", server.url), said("a", "b"), FOUR, cache_dir=tmp_path, dtype=torch.float32)
    assert "sk-sec" not in str(no.value)
    assert len(server()) == 1


@pytest.mark.real
def test_a_server_with_a_real_model_gives_that_models_greedy_answers(tmp_path, real_models, free_port):
    from lpsel.model.spec import ModelSpec

    model, port = str(real_models / "smollm2-135m"), free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model]
    command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    log = (tmp_path / "server.txt").open("wb")
    with subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        try:
            until_up(f"http://127.0.0.1:{port}/health", process)
            endpoint = Endpoint(model, f"http://127.0.0.1:{port}/v1", concurrency=1)
            prompts = said("What is the capital of France?", "Name three colours.")
            check(endpoint, prompts, Sampling(12), cache_dir=tmp_path, dtype=torch.float32)
            served, about = answers(endpoint, prompts, Sampling(12), cache_dir=tmp_path, **HOW)
        finally:
            process.kill()
    assert about["generated_tokens"] == sum(answer.tokens for answer in served) > 0
    here, _ = answers(ModelSpec("m", model, template="chat"), prompts, Sampling(12), cache_dir=tmp_path, **HOW)
    assert [answer.text for answer in served] == [answer.text for answer in here]
    assert conversation(prompts[0])[0]["role"] == "user"


def until_up(url, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not start")
