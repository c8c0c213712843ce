"""Near-duplicates: by hand, by sets, and in the real data."""

import json
import lzma
import re
from collections import Counter

import numpy as np
import pytest

from lpsel.clustering import near_duplicates as module
from lpsel.clustering.near_duplicates import NearDuplicates, near_duplicates, near_duplicates_in, sample
from lpsel.data.example import Example, Turn

CHINESE = "\u6211\u559c\u6b22\u5728\u6625\u5929\u8bfb\u4e66\u548c\u6563\u6b65"  # 11 characters, 9 triples
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def first(n):
    return " ".join(WORDS[:n])


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ([first(12), first(10)], 1),  # 8 of 10 triples in common
        ([first(9), first(12)], 1),  # 7 of 10
        ([first(8), first(12)], 0),  # 6 of 10
        ([first(8), first(12), first(9)], 1),  # 6 of 7, and 7 of 10: the third is counted once
        ([first(12)] * 3, 2),
        ([first(12), first(12).upper().replace(" ", ", ")], 1),
        ([first(2), first(2), ""], 0),  # no triple
        ([CHINESE, CHINESE[:-1]], 1),
        (["Python" + CHINESE, "Python" + CHINESE[:-1]], 1),  # 9 of 10: a character after a letter is also a word
        ([first(12)], 0),
        ([], 0),
    ],
)  # fmt: skip
def test_texts_that_share_seven_tenths_of_their_word_triples_are_near_duplicates(texts, count):
    assert near_duplicates(texts) == NearDuplicates(count, len(texts))


def by_sets(texts):
    """Texts with an earlier one at a Jaccard similarity of at least .7, from Python's sets."""
    count, with_triple, sizes = 0, {}, []
    for number, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        triples = set(zip(words, words[1:], words[2:], strict=False))
        common = Counter(other for triple in triples for other in with_triple.get(triple, ()))
        count += any(10 * n >= 7 * (len(triples) + sizes[other] - n) for other, n in common.items())
        sizes.append(len(triples))
        for triple in triples:
            with_triple.setdefault(triple, []).append(number)
    return count


def test_counts_equal_those_of_sets_over_several_blocks():
    rng = np.random.default_rng(0)
    starts = [rng.integers(0, 50, 30) for _ in range(40)]
    texts = []
    for _ in range(600):  # copies with some words replaced
        words = starts[rng.integers(40)].copy()
        words[rng.integers(0, 30, rng.integers(0, 6))] = rng.integers(0, 50)
        texts.append(" ".join(map(str, words)))
    assert len(texts) > 2 * module.BLOCK
    assert 100 < by_sets(texts) < 590
    assert near_duplicates(texts) == (by_sets(texts), 600)
    groups = rng.random((3, 600)) < [[0.1], [0.5], [0]]
    members = [[text for text, inside in zip(texts, group, strict=True) if inside] for group in groups]
    assert near_duplicates_in(groups, texts) == [(by_sets(of_group), len(of_group)) for of_group in members]


def test_real_rows_have_as_many_as_by_sets(shared_data):
    with lzma.open(shared_data / "dolly.jsonl.xz", "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(3000), strict=False)]
    texts = [
        Example((Turn("user", r["instruction"]), Turn("assistant", r["output"])), r["input"]).embedding_text()
        for r in rows
    ]
    assert near_duplicates(texts).rows == by_sets(texts) == 16


def test_rows_that_share_a_long_passage_are_sampled(monkeypatch):
    passage = " ".join(f"w{i}" for i in range(102))  # 100 triples in all of 200 rows: 4 million products
    texts = [f"{passage} {' '.join(f'r{row}x{i}' for i in range(100))}" for row in range(200)]
    assert near_duplicates(texts) == (0, 200)
    monkeypatch.setattr(module, "MOST_PRODUCTS", 1_000_000)
    assert near_duplicates(texts) == (0, 99)  # a little less than half, for the triples of one row each


def test_of_many_rows_a_sample_is_compared(monkeypatch):
    rows = np.arange(1000)
    assert sample(rows) is rows
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    assert (len(sample(rows)), len(set(sample(rows).tolist()))) == (10, 10)
