"""A verdict is at the end of a reply, on its own line where others come before it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpsel.judging.verdicts import letter, pairwise, score


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is better.\n[[A]]", 1.0),
        ("[[B]].\n", 2.0),
        ("**[[C]]**", 1.5),
        ("As I said, [[A]]\n[[A]]", 1.0),
        ("<think>[[A]] or [[B]]?</think>[[B]]", 2.0),
        ("[[A]] because it is short", None),
        ("It says [[A]], but\n[[B]]", 2.0),
        ("It says [[A]], but [[B]]", None),
        ("Answer A claims [[A]].\n**Final verdict:** [[B]]", 2.0),
        ("```\n[[A]]\n```", 1.0),
        ('So:\n```json\n{"verdict": "B", "reason": "a {brace}"}\n```', 2.0),
        ('{"reason": "short", "Winner": "tie"}', 1.5),
        ('{"verdict": "A"} or {"verdict": "B"} or neither', None),
        ('{"verdict": "both"}', None),
        ('{"other": "A"}', None),
        ("{" * 5000, None),
        ("[[A]][[B]]", None),
        ("[[a]]", None),
        ("[A]", None),
        ("A", None),
        ("[[D]]", None),
        ("", None),
        ("<think>[[A]]</think>", None),
    ],
)
def test_pairwise(reply, verdict):
    assert pairwise(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A: 3]] [[B: 6]]", 2.0),
        ("So:\n[[A: 10]], [[B: 9.5]]\n", 1.0),
        ("[[A:7]] [[B:7]]", 1.5),
        ("[[A: 11]] [[B: 6]]", None),
        ("[[A: 0]] [[B: 6]]", None),
        ("[[A: 3]]", None),
        ("[[B: 6]] [[A: 3]]", None),
        ("[[A: 9]]! No:\n[[A: 3]] [[B: 6]]", 2.0),
        ("[[A: 9]] [[B: 1]]\n[[A: 3]] [[B: 6]]", 2.0),
        ("[[A: 9]] [[B: 1]], or [[A: 3]] [[B: 6]]", None),
        ("[[A: 9]], or [[A: 3]] [[B: 6]]", None),
        ('```json\n{"A": 7, "B": 4.5}\n```', 1.0),
        ('{"A": 7, "B": 11}', None),
        ('{"A": 7}', None),
        ("[[A: 3]] [[B: 6]] I think", None),
        ("3 and 6", None),
    ],
)
def test_score(reply, verdict):
    assert score(reply) == verdict


MARKS = ["[[A]]", "[[B]]", "[[C]]", "[[A: 3]]", "[[B: 6]]", "[[", "]]", " ", "\n", ".", "</think>", "x"]
PIECES = st.lists(st.sampled_from(MARKS) | st.text())


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", 1.0),
        (" B.\n", 2.0),
        ("**B**\nSince A is wrong.", 2.0),
        ("A)", 1.0),
        ("```\nA\n```", 1.0),
        ('{"answer": "B"}', 2.0),
        ("A good answer", None),
        ("A B", None),
        ("Answer A", None),
        ("a", None),
        ("C", None),
        ("", None),
    ],
)
def test_letter(reply, verdict):
    assert letter(reply) == verdict


@given(PIECES.map("".join))
def test_a_verdict_is_never_guessed(reply):
    text = reply.rpartition("</think>")[2]
    letters = re.findall(r"\[\[([ABC])\]\]", text)
    verdict = pairwise(reply)
    assert verdict is None or letters[-1] == {1.0: "A", 2.0: "B", 1.5: "C"}[verdict]
    assert score(reply) is None or {"[[A: 3]]", "[[B: 6]]"} <= set(re.findall(r"\[\[.: .\]\]", text))


@given(PIECES.map("".join), st.sampled_from("ABC"))
def test_text_before_a_verdict_never_changes_it(before, letter):
    assert pairwise(f"{before}\n[[{letter}]]") == {"A": 1.0, "B": 2.0, "C": 1.5}[letter]
