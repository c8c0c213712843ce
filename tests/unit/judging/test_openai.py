"""The judge behind a server: what a user can get wrong, and what must not leak."""

import re

import pytest

from lpsel.errors import UserError
from lpsel.judging import verdicts as parse
from lpsel.judging.ask import judge_pairs
from lpsel.judging.judge import Pair
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
def test_a_server_that_is_not_there(make_judge, free_port, tmp_path, how):
    url = f"http://127.0.0.1:{free_port()}/v1"
    judge = make_judge(url, max_retries=1)
    with pytest.raises(UserError) as error:
        judge.check() if how == "check" else judge_pairs(judge, [Pair("a", "Q", "x", "y")], tmp_path)
    assert re.fullmatch(
        rf"judge.base_url={url}: does not answer \(\[Errno 111\] Connection refused\); check that the server runs "
        "there, has the model judge and takes judge.request, then start again: verdicts so far are kept.",
        one_line(error),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--key", "right"],
            r"does not take the key \(401\); put the right one into the environment variable MY_KEY, or name another "
            r"with judge.key_env=.",
        ),
        (
            ["--model", "other"],
            r"has no model judge, or nothing at that address \(404: status 404 for Bearer \*\*\*\); check judge.model= "
            r"and the address, which mostly ends in /v1.",
        ),
        (["--only", "400"], r"does not answer \(400: status 400 for Bearer \*\*\*\); check that .*"),
        (["--only", "429"], r"does not answer \(429: status 429 for Bearer \*\*\*\); check that .*"),
    ],
    ids=["wrong key", "unknown model", "refused", "quota"],
)
def test_what_a_server_refuses_ends_in_one_line(serve, make_judge, monkeypatch, options, message):
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(*options)
    with pytest.raises(UserError) as error:
        make_judge(server.url, key_env="MY_KEY", max_retries=1).check()
    assert re.fullmatch(f"judge.base_url={server.url}: {message}", one_line(error))


def test_a_server_that_refuses_everything_is_not_asked_for_ever(serve, make_judge, tmp_path):
    server = serve("--only", "503")
    pairs = [Pair(f"p{i}", "Q", f"worth {i}", f"worth {i + 1}") for i in range(50)]
    with pytest.raises(UserError, match=r"does not answer \(503: .*, 10 times in a row\); check that the server runs"):
        judge_pairs(make_judge(server.url, max_retries=0, concurrency=2), pairs, tmp_path)
    assert len(server.requests()) <= 12


@pytest.mark.parametrize("how", ["check", "judge"])
def test_a_web_page_where_a_server_should_be_is_no_judge(serve, make_judge, tmp_path, how):
    judge = make_judge(serve("--only", "html").url, attempts=2, concurrency=1)
    pairs = [Pair(f"p{i}", "Q", "worth 1", f"worth {i + 2}") for i in range(5)]
    with pytest.raises(UserError, match=r"does not answer \(not a chat completion.*\); check that the server runs"):
        judge.check() if how == "check" else judge_pairs(judge, pairs, tmp_path)


def test_the_check_is_patient_with_a_server_that_fails_now_and_then(serve, make_judge):
    # 47 % of the replies cannot be used; with one attempt a check in four or so would end the run
    for seed in range(6):
        make_judge(serve("--misbehave", "--seed", str(seed)).url, attempts=8, timeout=5).check()


def test_a_cap_without_token_counts_is_told_at_once(serve, make_judge, tmp_path):
    server = serve("--no-usage")
    judge = make_judge(server.url, max_cost=1, prompt_price=1, completion_price=1, concurrency=1)
    with pytest.raises(UserError, match=r"judge.max_cost=1: http.* does not report tokens, so that nothing is known"):
        judge_pairs(judge, [Pair(f"p{i}", "Q", "worth 1", f"worth {i + 2}") for i in range(5)], tmp_path)
    assert len(server.requests()) <= 2


def test_the_key_is_nowhere_but_in_the_request(serve, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level("DEBUG")
    judge = OpenAIJudge(model="judge", parser=parse.pairwise, base_url=serve("--key", SECRET).url)
    judgements, ledger = judge_pairs(judge, [Pair("a", "Q", "worth 1", "worth 2")], tmp_path)
    assert [j.preference for j in judgements] == [2.0, 2.0]
    refused = OpenAIJudge(model="judge", parser=parse.pairwise, base_url=serve("--only", "500").url, max_retries=0)
    failed, _ = judge_pairs(refused, [Pair("a", "Q", "worth 1", "worth 2")], tmp_path)
    files = [file.read_text() for file in tmp_path.glob("judgements/**/*") if file.is_file()]
    assert len(files) >= 4
    for text in (*files, repr(judge), str(json_line(ledger)), repr(failed), caplog.text):
        assert SECRET not in text


def test_openais_own_server_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"OPENAI_API_KEY: not set; export OPENAI_API_KEY=KEY for https://api.openai.com"
    ):
        OpenAIJudge(model="m", parser=parse.pairwise).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "judge.base_url=127.0.0.1:8000: must be an address such as http"),
        (
            {"base_url": f"https://me:{SECRET}@host/v1"},
            r"judge.base_url: no user, password or query in it \(https://host\)",
        ),
        ({"attempts": 0}, "judge.attempts=0: must be a whole number, 1 or more."),
        ({"timeout": 0}, "judge.timeout=0: must be above 0 seconds."),
        ({"max_cost": 5}, "judge.max_cost=5: needs judge.prompt_price and judge.completion_price"),
        ({"orders": ["first"]}, r"judge.orders=\['first'\]: must be \[baseline_first\], \[model_first\] or "),
        ({"prompt": "nothing.txt"}, "judge.prompt=nothing.txt: cannot be read"),
    ],
)
def test_mistakes_in_the_configuration_are_told_at_once(settings, message):
    with pytest.raises(UserError, match=message) as error:
        OpenAIJudge(model="m", parser=parse.pairwise, **settings)
    one_line(error)


def test_the_identity_is_what_a_verdict_depends_on():
    given = {"model": "m", "parser": parse.pairwise}
    plain = OpenAIJudge(**given).identity()
    assert OpenAIJudge(**given, concurrency=1, timeout=5, max_retries=0, attempts=1, prompt_price=1).identity() == plain
    for change in ({"request": {"temperature": 1}}, {"prompt": "score"}, {"base_url": "http://localhost/v1"}):
        assert OpenAIJudge(**given | change).identity() != plain
    assert OpenAIJudge(**given | {"parser": parse.score}).identity() != plain
