import pytest

from lpsel.data.column_forms import Example, Turn
from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt
from lpsel.judging import reference
from lpsel.judging.judge import NO_REFERENCE, Pair, judge_pairs
from lpsel.judging.reference import ReferenceJudge


def test_the_answer_closer_to_the_reference_wins(tmp_path):
    pairs = [
        Pair("a", "Q", "the cat sat down", "the dog", reference="The cat sat on the mat."),  # 0.6 against 2 x 1 / 8
        Pair("b", "Q", "4", "5", reference="5"),
        Pair("c", "Q", "five!", "Five", reference="five"),
        Pair("d", "Q", "x", "y"),
    ]
    judgements, ledger = judge_pairs(ReferenceJudge(), pairs, tmp_path)
    assert [(j.id, j.preference, j.failure) for j in judgements] == [
        ("a", 1.0, None),
        ("b", 2.0, None),
        ("c", 1.5, None),
        ("d", None, NO_REFERENCE),
    ]
    assert (ledger["failed"], ledger["cost"], ledger["prompt_tokens"]) == (1, None, None)
    again, ledger = judge_pairs(ReferenceJudge(), pairs, tmp_path)
    assert again == judgements, "only the one without a reference is asked again"
    assert ledger["reused"] == 3
    exact, _ = judge_pairs(ReferenceJudge("exact_match"), pairs[:3], tmp_path)
    assert [j.preference for j in exact] == [1.5, 2.0, 1.5]


def test_verdicts_of_an_earlier_version_of_the_measures_are_not_reused(tmp_path, monkeypatch):
    pairs = [Pair("a", "Q", "the cat", "a dog", reference="The cat sat.")]
    monkeypatch.setattr(reference, "VERSION", reference.VERSION - 1)
    judge_pairs(ReferenceJudge(), pairs, tmp_path)
    monkeypatch.undo()
    assert judge_pairs(ReferenceJudge(), pairs, tmp_path)[1]["reused"] == 0


def test_prompts_without_references_are_rejected():
    with pytest.raises(UserError, match="judge=reference: none of the 1 prompts has a reference answer"):
        ReferenceJudge().check([Prompt("a", "mine", Example((Turn("user", "Q"),)))])
    with pytest.raises(UserError, match=r"judge.measure=bleu: must be one of rouge_l, exact_match."):
        ReferenceJudge("bleu")
