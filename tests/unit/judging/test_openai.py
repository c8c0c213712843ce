"""The judge on a server: errors of the user, and secrets that must not leak."""

from dataclasses import replace

import pytest

from lpsel.errors import UserError
from lpsel.judging import verdicts as parse
from lpsel.judging.judge import CUT_OFF, Pair, judge_pairs
from lpsel.judging.openai import OpenAIJudge
from lpsel.storage import json_line

SECRET = "sk-0123456789-very-secret"


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def test_a_server_that_works_passes_the_check(serve, make_judge):
    server = serve()
    make_judge(server.url).check()
    assert server.kinds() == {"good": 1}


@pytest.mark.parametrize("how", ["check", "judge"])
def test_a_server_that_cannot_be_reached(make_judge, free_port, tmp_path, how):
    url = f"http://127.0.0.1:{free_port()}/v1"
    judge = make_judge(url, max_retries=1)
    with pytest.raises(UserError) as caught:
        judge.check() if how == "check" else judge_pairs(judge, [Pair("a", "Q", "x", "y")], tmp_path)
    assert (caught.value.name, caught.value.value) == ("judge.base_url", url)
    assert caught.value.problem == "cannot be reached ([Errno 111] Connection refused)"
    one_line(caught)


@pytest.mark.parametrize(
    ("options", "problem", "hint"),
    [
        (
            ["--key", "right"],
            "the server rejects the API key (401)",
            "set the environment variable MY_KEY to a valid key",
        ),
        (
            ["--model", "other"],
            "no model judge, or nothing at this address (404: status 404 for Bearer ***)",
            "check the model's name and the address, which usually ends in /v1",
        ),
        (["--only", "400"], "no usable reply (400: status 400 for Bearer ***)", None),
        (["--only", "429"], "no usable reply (429: status 429 for Bearer ***)", None),
    ],
    ids=["wrong key", "unknown model", "bad request", "quota"],
)
def test_a_server_that_rejects_requests(serve, make_judge, monkeypatch, options, problem, hint):
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(*options)
    with pytest.raises(UserError) as caught:
        make_judge(server.url, key_env="MY_KEY", max_retries=1).check()
    assert (caught.value.name, caught.value.value, caught.value.problem) == ("judge.base_url", server.url, problem)
    assert hint in (None, caught.value.hint)
    one_line(caught)


def test_the_judge_gives_up_after_ten_failures_in_a_row(serve, make_judge, tmp_path):
    server = serve("--only", "503")
    pairs = [Pair(f"p{i}", "Q", f"worth {i}", f"worth {i + 1}") for i in range(50)]
    with pytest.raises(UserError, match=r"no usable reply \(503: .*, 10 times in a row\). Check that the server is"):
        judge_pairs(make_judge(server.url, max_retries=0, concurrency=2), pairs, tmp_path)
    assert len(server.requests()) <= 12


@pytest.mark.parametrize("how", ["check", "judge"])
def test_a_web_page_is_not_a_judge(serve, make_judge, tmp_path, how):
    judge = make_judge(serve("--only", "html").url, attempts=2, concurrency=1)
    pairs = [Pair(f"p{i}", "Q", "worth 1", f"worth {i + 2}") for i in range(5)]
    with pytest.raises(UserError, match=r"no usable reply \(not a chat completion.*\). Check that the server is"):
        judge.check() if how == "check" else judge_pairs(judge, pairs, tmp_path)


def test_the_check_tolerates_occasional_failures(serve, make_judge):
    # 47% of the replies cannot be used; with one attempt a check in four or so would end the run
    for seed in range(6):
        make_judge(serve("--misbehave", "--seed", str(seed)).url, attempts=8, timeout=5).check()


def test_a_reply_that_is_cut_off_is_requested_again_with_a_higher_limit(serve, make_judge, tmp_path):
    server, pairs = serve("--only", "long"), [Pair("a", "Q", "worth 1", "worth 2")]
    settings = {"orders": ["baseline_first"], "request": {"max_tokens": 10}}
    [found], _ = judge_pairs(make_judge(server.url, **settings), pairs, tmp_path)
    assert (found.preference, found.attempts, found.failure) == (2.0, 2, None)
    assert [request["limit"] for request in server.requests()] == [10, 40]
    settings["request"] = {"max_tokens": 2}
    [found], _ = judge_pairs(make_judge(server.url, **settings), pairs, tmp_path)
    assert (found.preference, found.attempts, found.failure) == (None, 3, CUT_OFF)
    assert [request["limit"] for request in server.requests()[2:]] == [2, 8, 32]


def test_questions_whose_replies_stay_cut_off_do_not_end_the_run(serve, make_judge, tmp_path):
    server, pairs = serve("--only", "long", "--context", "30"), [Pair(f"p{i}", "Q", "x", f"{i}") for i in range(12)]
    judge = make_judge(server.url, orders=["baseline_first"], request={"max_tokens": 10})
    judgements, ledger = judge_pairs(judge, pairs, tmp_path)  # 40 tokens are refused
    assert {(j.failure, j.attempts, j.completion_tokens) for j in judgements} == {(CUT_OFF, 2, 10)}
    assert ledger["unanswered"] == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top_k", "the openai client has no such parameter. Set '.judge.request.extra_body={top_k:VALUE}' if "),
        ("model", "is set by the judge itself. Remove it."),
        ("messages", "is set by the judge itself. Remove it."),
        ("stream", "is set by the judge itself. Remove it."),
    ],
)
@pytest.mark.parametrize("how", ["check", "judge"])
def test_a_request_with_a_parameter_that_cannot_be_sent(make_judge, tmp_path, name, message, how):
    judge = make_judge("http://127.0.0.1:9/v1", request={"temperature": 0, "seed": 1, name: 5})
    with pytest.raises(UserError, match=f"judge.request.{name}: {message}") as caught:
        judge.check() if how == "check" else judge_pairs(judge, [Pair("a", "Q", "x", "y")], tmp_path)
    one_line(caught)


def test_a_model_whose_name_is_a_number(make_judge, tmp_path, serve):
    [found], _ = judge_pairs(
        make_judge(serve("--model", "5").url, model=5, orders=["baseline_first"]),
        [Pair("a", "Q", "worth 1", "worth 2")],
        tmp_path,
    )
    assert found.preference == 2.0


def test_a_cap_without_token_counts_is_rejected(serve, make_judge, tmp_path):
    server = serve("--no-usage")
    judge = make_judge(server.url, max_cost=1, prompt_price=1, completion_price=1, concurrency=1)
    with pytest.raises(UserError, match=r"judge.max_cost=1: cannot be checked because http.* does not report tokens"):
        judge_pairs(judge, [Pair(f"p{i}", "Q", "worth 1", f"worth {i + 2}") for i in range(5)], tmp_path)
    assert len(server.requests()) <= 2


def test_the_key_is_only_in_the_request(serve, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MY_KEY", SECRET)
    caplog.set_level("DEBUG")
    judge = OpenAIJudge(model="judge", parser=parse.pairwise, base_url=serve("--key", SECRET).url, key_env="MY_KEY")
    judgements, ledger = judge_pairs(judge, [Pair("a", "Q", "worth 1", "worth 2")], tmp_path)
    assert [j.preference for j in judgements] == [2.0, 2.0]
    refused = replace(judge, base_url=serve("--only", "500").url, max_retries=0)
    failed, _ = judge_pairs(refused, [Pair("a", "Q", "worth 1", "worth 2")], tmp_path)
    files = [file.read_text() for file in tmp_path.glob("verdicts/**/*") if file.is_file()]
    assert len(files) >= 2
    for text in (*files, repr(judge), str(json_line(ledger)), repr(failed), caplog.text):
        assert SECRET not in text


def test_openais_own_server_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="needs an API key, and OPENAI_API_KEY is not set"):
        OpenAIJudge(model="m", parser=parse.pairwise).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"base_url": "127.0.0.1:8000"},
            "judge.base_url=127.0.0.1:8000: is not a web address",
        ),
        (
            {"base_url": f"https://me:{SECRET}@host/v1"},
            "judge.base_url=https://host/v1: contains a password or key",
        ),
        ({"attempts": 0}, "judge.attempts=0: must be an integer, at least 1"),
        ({"timeout": 0}, "judge.timeout=0: must be a number greater than 0"),
        ({"max_cost": 5}, "judge.max_cost=5: needs token prices. Set judge.prompt_price"),
        ({"orders": ["first"]}, r"judge.orders=\['first'\]: must name one or both orders, once each. Set "),
        ({"prompt": "nothing.txt"}, "judge.prompt=nothing.txt: cannot be read"),
        ({"model": None}, "judge.model: is not set. Set it to the name of the model on the server"),
        ({"model": ""}, "judge.model: is not set"),
    ],
)
def test_an_invalid_configuration_is_rejected(settings, message):
    with pytest.raises(UserError, match=message) as error:
        OpenAIJudge(**{"model": "m", "parser": parse.pairwise} | settings)
    one_line(error)


def test_the_identity_has_no_key_of_a_custom_header(monkeypatch):
    monkeypatch.setenv("GATEWAY_KEY", SECRET)
    judge = OpenAIJudge(model="m", parser=parse.pairwise, request={"extra_headers": {"x-api-key": SECRET}})
    assert judge.identity()["request"] == {"extra_headers": {"x-api-key": "***"}}


def test_the_identity_holds_what_a_verdict_depends_on():
    given = {"model": "m", "parser": parse.pairwise}
    plain = OpenAIJudge(**given).identity()
    assert OpenAIJudge(**given, concurrency=1, timeout=5, max_retries=0, attempts=1, prompt_price=1).identity() == plain
    for change in ({"request": {"temperature": 1}}, {"prompt": "score"}, {"base_url": "http://localhost/v1"}):
        assert OpenAIJudge(**given | change).identity() != plain
    assert OpenAIJudge(**given | {"parser": parse.score}).identity() != plain
