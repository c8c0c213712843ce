import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lpsel.data.column_forms import Example, Turn
from lpsel.errors import UserError
from lpsel.generation.prompts import Prompt
from lpsel.judging import reference
from lpsel.judging.judge import NO_REFERENCE, Pair, judge_pairs
from lpsel.judging.reference import ReferenceJudge, exact_match, rouge_l, words


def test_exact_match_only_ignores_white_space_around_the_text():
    assert exact_match(" 42\n", "42")
    assert not exact_match("4 2", "42")
    assert not exact_match("Paris", "paris")


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # "the cat sat" is common: precision 3/4, recall 3/6, F1 = 2 * .75 * .5 / 1.25 = 0.6
    assert rouge_l("the cat sat down", "The cat sat on the mat.") == pytest.approx(0.6)


def test_rouge_l_reads_every_script():
    # rouge-score itself drops what is not ASCII and gives 0
    assert rouge_l("столица Москва", "Столица: Москва") == 1.0
    assert rouge_l("Köln", "Kiel") == 0.0


def test_rouge_l_compares_characters_where_a_script_has_no_spaces():
    # "The capital of China is Beijing" in two orders: 5 of 8 characters, "China's capital", are a common subsequence.
    capital, is_, beijing = "\u4e2d\u56fd\u7684\u9996\u90fd", "\u662f", "\u5317\u4eac"
    assert rouge_l(capital + is_ + beijing, beijing + is_ + capital) == 5 / 8
    # "GPT" and 2 characters against "GPT" and 3: precision 1, recall 3/4.
    assert rouge_l("GPT\u6a21\u578b", "gpt\u6a21\u578b\u597d") == pytest.approx(6 / 7)


def test_vowel_signs_and_accents_belong_to_their_word():
    assert words("\u0915\u0940 \u0915\u093f\u0924\u093e\u092c") == [
        "\u0915\u0940",
        "\u0915\u093f\u0924\u093e\u092c",
    ]  # Hindi: ki kitab
    assert rouge_l("\u0915\u0940", "\u0915\u093e") == 0.0, "ki and ka differ in the vowel sign"
    assert words("Cafe\u0301s \u0130zmir") == ["cafe\u0301s", "i\u0307zmir"]  # lower() adds the dot as an accent
    assert words("I \u2764\ufe0f it") == ["i", "it"], "a mark of a symbol is no word"


def test_thai_is_compared_by_characters_with_vowel_signs():
    # "fish" and "crow", 3 and 2 characters, share the last vowel: precision 1/3, recall 1/2.
    assert rouge_l("\u0e1b\u0e25\u0e32", "\u0e01\u0e32") == pytest.approx(0.4)
    assert len(words("\u0e17\u0e35\u0e48")) == 3, "a consonant with a vowel sign and a tone mark"


@pytest.mark.parametrize(
    ("output", "reference", "expected"), [("", "", 1), ("", "a", 0), ("a", "", 0), ("+", "+", 1), ("+", "-", 0)]
)
def test_texts_without_words_are_defined(output, reference, expected):
    assert rouge_l(output, reference) == expected


@given(st.text("ab_C 1.,\n", max_size=30), st.text("abC 1-\t", min_size=1, max_size=30))
def test_rouge_l_of_ascii_text_equals_rouge_score(output, reference):
    if any(c.isalnum() for c in output + reference):
        theirs = RougeScorer(["rougeL"]).score(reference, output)["rougeL"].fmeasure
        assert rouge_l(output, reference) == theirs


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
