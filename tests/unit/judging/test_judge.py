"""Judging through a real HTTP server that misbehaves: nothing lost, nothing doubled, nothing asked twice."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from lpsel.cache import Journal
from lpsel.judging.judge import NOT_ASKED, UNREADABLE, Judgement, Pair, judge_pairs, question_key
from lpsel.judging.reference import ReferenceJudge

# worth 0, 1, 2, 3 against 2, and one that the judge always prefers when it is shown first
PREFERENCES = [1.0, 1.0, 1.5, 2.0, 1.5]


def in_both_orders(judgements):
    """The preferences of each pair, baseline first and model first."""
    return [(a.preference, b.preference) for a, b in zip(judgements[::2], judgements[1::2], strict=True)]


def test_no_verdict_is_lost_or_duplicated_by_an_unreliable_server(serve, make_pairs, make_judge, tmp_path):
    server, pairs = serve("--misbehave", "--seed", "0", "--slow", "8"), make_pairs(40)
    judge = make_judge(server.url, timeout=5, concurrency=8, attempts=5)
    judgements, ledger = judge_pairs(judge, pairs, tmp_path)

    assert set(server.kinds()) >= {"good", "429", "500", "cut", "not json", "html", "empty", "two verdicts", "odd"}
    assert [(j.id, j.order) for j in judgements] == [(p.id, order) for p in pairs for order in judge.orders]
    read = [j for j in judgements if j.preference is not None]
    assert len(read) + ledger["failed"] == 80
    assert {j.failure for j in judgements if j.preference is None} <= {UNREADABLE}
    assert len(read) > 70
    delivered = server.verdicts_by_question()
    assert set(delivered.values()) == {1}, "no question was answered twice"
    assert len(delivered) == len(read), "every reply has arrived"
    lines = [json.loads(line) for line in Path(ledger["kept"]).read_text().splitlines()[1:]]
    assert len(lines) == len({line["question"] for line in lines}) == 80

    for i, (first, second) in enumerate(in_both_orders(judgements)):
        if first is not None and second is not None:
            assert (first if first == second else 1.5) == PREFERENCES[i % 5]
            assert (first != second) == (i % 5 == 4)

    again, second = judge_pairs(judge, pairs, tmp_path)
    assert (second["asked"], second["reused"]) == (80 - len(read), len(read)), "only those without a verdict"
    assert [a for a, b in zip(again, judgements, strict=True) if b.preference is not None] == read
    before = len(server.requests())
    failed = {j.id for j in judgements if j.preference is None}
    finished = judge_pairs(judge, [pair for pair in pairs if pair.id not in failed], tmp_path)[1]
    assert (finished["asked"], finished["cost_now"], len(server.requests())) == (0, None, before)


def test_the_ledger_adds_up_tokens_and_dollars(serve, make_pairs, make_judge, tmp_path):
    # 10 pairs in both orders, 100 + 10 tokens each: 2,000 + 200 tokens, at $1 and $5 a million $0.003
    judge = make_judge(serve().url, prompt_price=1, completion_price=5)
    _, ledger = judge_pairs(judge, make_pairs(10), tmp_path)
    assert (ledger["prompt_tokens"], ledger["completion_tokens"]) == (2000, 200)
    assert ledger["cost"] == ledger["cost_now"] == pytest.approx(0.003)
    assert (ledger["asked"], ledger["reused"], ledger["failed"], ledger["stopped_by_cap"]) == (20, 0, 0, False)
    judgements, ledger = judge_pairs(judge, make_pairs(15), tmp_path)
    assert (ledger["asked"], ledger["reused"]) == (10, 20)
    assert ledger["cost"] == pytest.approx(0.0045)
    assert ledger["cost_now"] == pytest.approx(0.0015)
    # Of 24 decided verdicts (3 of 15 pairs are ties, 3 flip), the first shown won 9 + 6: half of 18, all of 6.
    assert sum(first != second for first, second in in_both_orders(judgements)) == 3
    assert ledger["first_shown_wins"] == pytest.approx(100 * 15 / 24)


def test_a_price_cap_stops_and_the_next_run_asks_the_rest(serve, make_pairs, make_judge, tmp_path):
    # $0.00015 a verdict: the cap of $0.001 is reached by the 7th, when three more may be in flight
    server, prices = serve(), {"prompt_price": 1, "completion_price": 5}
    capped = make_judge(server.url, max_cost=0.001, concurrency=4, **prices)
    judgements, ledger = judge_pairs(capped, make_pairs(20), tmp_path)
    assert 7 <= ledger["asked"] <= 10
    assert ledger["stopped_by_cap"]
    assert sum(j.failure == NOT_ASKED for j in judgements) == ledger["failed"] == 40 - ledger["asked"]
    assert (judgements[-1].id, judgements[-1].preference, judgements[-1].failure) == ("p19", None, NOT_ASKED)
    _, rest = judge_pairs(make_judge(server.url, **prices), make_pairs(20), tmp_path)
    assert (rest["reused"], rest["asked"], rest["failed"]) == (ledger["asked"], 40 - ledger["asked"], 0)
    assert len(server.requests()) == 40


def test_the_price_cap_applies_to_all_models_of_a_run(serve, make_pairs, make_judge, tmp_path):
    server = serve()
    capped = make_judge(server.url, max_cost=0.001, concurrency=1, prompt_price=1, completion_price=5)
    _, first = judge_pairs(capped, make_pairs(3), tmp_path)
    assert (first["asked"], first["stopped_by_cap"]) == (6, False)
    others = [Pair(p.id, f"{p.prompt}?", p.baseline, p.model) for p in make_pairs(3)]
    _, second = judge_pairs(capped, others, tmp_path)
    assert (second["asked"], second["failed"], second["stopped_by_cap"]) == (1, 5, True)
    assert len(server.requests()) == 7


def test_a_failed_question_does_not_stop_others_and_is_asked_again(serve, make_pairs, make_judge, tmp_path):
    server = serve("--only", "cut", "--some")  # every fifth pair
    judgements, ledger = judge_pairs(make_judge(server.url, max_retries=0, concurrency=1), make_pairs(10), tmp_path)
    assert [j.id for j in judgements if j.preference is None] == ["p4", "p4", "p9", "p9"]
    assert ledger["failed"] == 4
    _, again = judge_pairs(make_judge(server.url, max_retries=0, concurrency=1), make_pairs(10), tmp_path)
    assert (again["asked"], again["reused"]) == (4, 16)


def test_equal_answers_are_a_tie_without_a_question(serve, make_judge, tmp_path):
    server = serve()
    judgements, ledger = judge_pairs(make_judge(server.url), [Pair("a", "Q", "worth 1", "worth 1")], tmp_path)
    assert [j.preference for j in judgements] == [1.5, 1.5]
    assert (ledger["equal"], ledger["asked"], server.requests()) == (2, 0, [])


def test_a_question_is_the_texts_in_the_order_shown():
    pair, swapped = Pair("a", "Q", "x", "y"), Pair("b", "Q", "y", "x")
    assert question_key(pair, "baseline_first") == question_key(swapped, "model_first")
    assert question_key(pair, "baseline_first") != question_key(pair, "model_first")


def test_verdicts_apply_to_other_ids_and_swapped_models(serve, make_judge, tmp_path):
    server = serve()
    judge = make_judge(server.url)
    pairs = [
        Pair("a", "Q", "worth 1", "worth 3"),
        Pair("b", "Q", "worth 1", "worth 3"),
        Pair("c", "Q", "worth 3", "worth 1"),
    ]
    judgements, _ = judge_pairs(judge, pairs, tmp_path)
    assert [j.preference for j in judgements] == [2, 2, 2, 2, 1, 1]
    assert len(server.requests()) == 2
    swapped, ledger = judge_pairs(judge, pairs[2:], tmp_path)
    assert [(j.id, j.order) for j in swapped] == [("c", "baseline_first"), ("c", "model_first")]
    assert ([j.preference for j in swapped], ledger["asked"]) == ([1, 1], 0)


RUN = """
import sys
from pathlib import Path
from lpsel.judging.openai import OpenAIJudge
from lpsel.judging.judge import Pair, judge_pairs
from lpsel.judging.verdicts import pairwise
pairs = [Pair(f"p{i}", f"Request {i}", "Mine: worth 2", f"Theirs: worth {i % 5}") for i in range(30)]
judge = OpenAIJudge(model="judge", parser=pairwise, base_url=sys.argv[1], concurrency=3)
print(judge_pairs(judge, pairs, Path(sys.argv[2]))[1]["asked"])
"""
PAIRS = [Pair(f"p{i}", f"Request {i}", "Mine: worth 2", f"Theirs: worth {i % 5}") for i in range(30)]


def in_a_process(url, cache):
    return subprocess.Popen([sys.executable, "-c", RUN, url, str(cache)], stdout=subprocess.PIPE, text=True)


def kept(cache):
    return [line for file in cache.glob("verdicts/*/journal.jsonl") for line in file.read_bytes().splitlines()[1:]]


def test_a_killed_run_resumes_without_asking_twice(serve, make_judge, tmp_path):
    server = serve("--delay", "0.05")
    run = in_a_process(server.url, tmp_path)
    deadline = time.monotonic() + 60
    while len(kept(tmp_path)) < 15 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    time.sleep(0.3)  # what the server had under way
    on_disk, answered = len(kept(tmp_path)), sum(server.verdicts_by_question().values())
    assert 15 <= on_disk <= answered < 60
    assert answered - on_disk <= 3, "no more than was under way"
    judgements, ledger = judge_pairs(make_judge(server.url, concurrency=3), PAIRS, tmp_path)
    assert (ledger["reused"], ledger["asked"]) == (on_disk, 60 - on_disk)
    times = Counter(request["question"] for request in server.requests())
    assert len(times) == 60
    assert max(times.values()) <= 2
    assert sum(times.values()) <= 63, "asked again: only what was under way when the run was killed"
    assert in_both_orders(judgements)[:5] == [(1.0, 1.0), (1.0, 1.0), (1.5, 1.5), (2.0, 2.0), (2.0, 2.0)]


def test_two_runs_at_once_ask_every_question_once(serve, tmp_path):
    server = serve("--delay", "0.02")
    runs = [in_a_process(server.url, tmp_path) for _ in range(2)]
    assert sorted(int(run.communicate(timeout=90)[0]) for run in runs) == [0, 60]
    assert len(server.requests()) == len(server.verdicts_by_question()) == 60


def test_damaged_lines_are_asked_again(serve, make_pairs, make_judge, tmp_path, caplog):
    judge = make_judge(serve().url)
    judgements, ledger = judge_pairs(judge, make_pairs(3), tmp_path)
    file = Path(ledger["kept"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-25])  # as after a crash
    assert judge_pairs(judge, make_pairs(3), tmp_path) == (judgements, ledger | {"asked": 1, "reused": 5})
    first = next(line for line in whole.splitlines()[1:] if b'"preference": 1.0' in line)
    file.write_bytes(whole.replace(first, first.replace(b'"preference": 1.0', b'"preference": 2.0')))
    assert judge_pairs(judge, make_pairs(3), tmp_path) == (judgements, ledger | {"asked": 1, "reused": 5})
    assert f"{file}: skipped 1 damaged lines" in caplog.text


@pytest.mark.parametrize(
    ("kind", "requests", "failure"),
    [("500", 2, "500: status 500 for Bearer none"), ("two verdicts", 3, UNREADABLE), ("empty", 3, UNREADABLE)],
)
def test_questions_without_a_verdict_are_asked_again(serve, make_pairs, make_judge, tmp_path, kind, requests, failure):
    broken = serve("--only", kind)
    # In a run: max_retries of a failed request, attempts of an unreadable reply. Then the next run.
    for run in (1, 2):
        judgements, ledger = judge_pairs(make_judge(broken.url, max_retries=1, attempts=3), make_pairs(3), tmp_path)
        assert {judgement.failure for judgement in judgements} == {failure}
        assert (ledger["failed"], ledger["unanswered"], ledger["asked"], ledger["reused"]) == (6, 6, 6, 0)
        assert len(broken.requests()) == 6 * requests * run


def test_flips_are_verdicts_and_not_asked_again(serve, make_pairs, make_judge, tmp_path):
    judge, pairs = make_judge(serve().url), make_pairs(5)[4:]
    judgements, ledger = judge_pairs(judge, pairs, tmp_path)
    assert (in_both_orders(judgements), ledger["unanswered"]) == ([(1.0, 2.0)], 0)
    assert judge_pairs(judge, pairs, tmp_path)[1]["asked"] == 0


def test_verdicts_of_other_pairs_take_no_memory(tmp_path):
    judge, pairs = ReferenceJudge(), [Pair("a", "Q", "x", "y", reference="y")]
    first, ledger = judge_pairs(judge, pairs, tmp_path)
    verdict = Judgement("b", "baseline_first", 1.0, "said " * 1000)._asdict()
    journal = Journal.of(tmp_path, "verdicts", judge.identity(), label=judge.name)
    assert str(journal.path) == ledger["kept"]
    with journal.locked():
        journal.append({"question": str(i), **verdict} for i in range(1000))
    tracemalloc.start()
    again, ledger = judge_pairs(judge, pairs, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (again, ledger["reused"]) == (first, 1)
    assert peak < journal.path.stat().st_size / 4
