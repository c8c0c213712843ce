"""The embedded data: verifiable answers, known difficulty, known fraction of wrong answers."""

import hashlib
import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpsel.errors import UserError
from lpsel.toy.data import CATEGORIES, DIGITS, EASY, LEVELS, TASKS, generate

ROWS = 1500
FIRST_200_ROWS = "7aff0096e40a63d62efe9e1753f9fb1cc58b84fda82adac9cb8aee45a308808d"  # SHA-256 of their JSON

Row = dict[str, Any]


def rows_of(
    split: str = "train", rows: int = ROWS, held_out: int = 300, seed: int = 1, wrong: float = 0.1
) -> list[Row]:
    return list(generate(split, rows, held_out, seed, wrong))


def question(row: Row) -> tuple[str, str]:
    """The instruction without its input, and the input, which may be part of the instruction."""
    if row["input"]:
        return row["instruction"], row["input"]
    end = ": " if ": " in row["instruction"] else "? "
    instruction, given = row["instruction"].split(end, 1)
    return instruction + end.strip(), given


def about(row: Row) -> str:
    """The word that fills the placeholder of the phrasing."""
    words = question(row)[0].strip(".?:").split()
    for phrasing in TASKS[row["task"]].phrasings:
        template = phrasing.strip(".?").split()
        position = template.index("{about}")
        if len(words) == len(template) and template == [*words[:position], "{about}", *words[position + 1 :]]:
            return words[position]
    raise AssertionError(f"no phrasing of {row['task']} gives {row['instruction']}")


def solve(row: Row) -> str:
    given = question(row)[1]
    words = given.split()
    facts = dict(fact.split(" has the ") for fact in given.rstrip(".").split(". ")) if row["task"] == "lookup" else {}
    numbers = [int(word) for word in words if word.isdigit()]
    match row["task"]:
        case "repeat":
            return given
        case "reverse":
            return " ".join(words[::-1])
        case "last":
            return words[-1]
        case "initials":
            return " ".join(word[:1] for word in words)
        case "count":
            return str(sum(word == about(row) for word in words))
        case "filter":
            return " ".join(word for word in words if word in CATEGORIES[about(row)])
        case "lookup":
            return facts[about(row)]
        case "pattern":
            period = words.index(words[0], 1)
            return words[len(words) - period]
        case "words":
            return " ".join(DIGITS[number] for number in numbers)
        case "largest":
            return str(sorted(numbers)[-1])
        case "sort":
            return " ".join(str(number) for number in sorted(numbers))
        case "add":
            return str(numbers[0] + numbers[1])
    raise AssertionError(f"unknown task: {row['task']}")


def test_every_answer_is_right_unless_the_row_is_marked_wrong() -> None:
    rows = rows_of() + rows_of("held_out")
    assert {row["task"] for row in rows} == set(TASKS)
    for row in rows:
        assert (row["output"] == solve(row)) is not row["wrong"], row


@given(rows=st.integers(0, 60), wrong=st.floats(0, 1), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_fraction_of_wrong_answers_is_exact(rows: int, wrong: float, seed: int) -> None:
    generated = rows_of(rows=rows, wrong=wrong, seed=seed)
    assert len(generated) == rows
    assert sum(row["wrong"] for row in generated) == round(wrong * rows)


def test_held_out_has_no_wrong_answer_and_shares_no_problem_with_train() -> None:
    def problems(rows: list[Row]) -> set[tuple[str, str, str]]:
        return {(row["task"], question(row)[1], about(row) if needs_about(row) else "") for row in rows}

    def needs_about(row: Row) -> bool:
        return "{about}" in TASKS[row["task"]].phrasings[0]

    held_out = rows_of("held_out", seed=7)
    assert len(held_out) == 300
    assert not any(row["wrong"] for row in held_out)
    for seed in (1, 7):
        train = rows_of(seed=seed)
        assert len(problems(train)) == ROWS, "a problem occurs twice"
        assert not problems(train) & problems(held_out)


def test_difficulty_is_the_size_of_the_problem() -> None:
    sizes: dict[tuple[str, int], set[int]] = defaultdict(set)
    for row in rows_of(wrong=0.0):
        given = question(row)[1]
        match row["task"]:
            case "lookup":
                size = given.count(" has the ")
            case "add":
                size = sum(character.isdigit() for character in given)
            case "pattern":
                size = len(set(given.split()))
            case _:
                size = len(given.split())
        sizes[row["task"], row["difficulty"]].add(size)
    for task, declared in TASKS.items():
        assert [sizes[task, level] for level in LEVELS] == [{declared.smallest + i} for i in range(5)]


def test_tasks_levels_and_forms_are_mixed() -> None:
    rows = rows_of(rows=6000)
    assert all(400 < count < 600 for count in Counter(row["task"] for row in rows).values())
    assert all(1000 < count < 1400 for count in Counter(row["difficulty"] for row in rows).values())
    assert 0.28 < sum(not row["input"] for row in rows) / 6000 < 0.39


def test_the_same_seed_gives_the_same_rows_on_every_machine() -> None:
    text = json.dumps(rows_of(rows=200, held_out=50, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_200_ROWS
    assert rows_of(seed=0) != rows_of(seed=1)
    assert rows_of("held_out", seed=0) != rows_of("held_out", seed=1)


def test_fewer_rows_are_the_first_rows_and_wrong_changes_nothing_but_answers() -> None:
    right, some_wrong = rows_of(rows=80, wrong=0.0), rows_of(rows=50, wrong=0.3)
    for one, other in zip(right, some_wrong, strict=False):
        assert one == other or other == {**one, "output": other["output"], "wrong": True}


@given(rows=st.integers(0, 60), redundancy=st.floats(0.01, 1), levels=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_fraction_of_easy_rows_is_exact(rows: int, redundancy: float, levels: int) -> None:
    generated = list(generate("train", rows, 0, 0, 0.0, redundancy, levels))
    easy = [row for row in generated if row["task"] in EASY and row["difficulty"] == 1]
    assert (len(generated), len(easy)) == (rows, round(redundancy * rows))
    assert max((row["difficulty"] for row in generated), default=0) <= levels


def test_redundant_rows_repeat_problems_but_no_row_and_none_that_is_held_out() -> None:
    rows = list(generate("train", 4000, 0, 0, 0.0, 0.9, 3))
    held_out = list(generate("held_out", 0, 500, 0, 0.0, 0.9, 3))
    assert len({(row["instruction"], row["input"]) for row in rows}) == 4000
    assert len({(row["task"], question(row)[1]) for row in rows}) < 3600
    assert not {(row["task"], question(row)) for row in rows} & {(row["task"], question(row)) for row in held_out}
    assert all(row["output"] == solve(row) for row in rows + held_out)


def test_redundant_rows_spread_over_topics_and_held_out_rows_over_tasks() -> None:
    topics = Counter(row["topic"] for row in generate("train", 6000, 0, 0, 0.0, 0.9, 3))
    assert set(topics) == {"text", "facts", "numbers"}
    assert min(topics.values()) > 1500
    tasks = Counter(row["task"] for row in generate("held_out", 0, 1200, 0, 0.0, 0.9, 3))
    assert set(tasks) == set(TASKS)
    assert min(tasks.values()) > 60


@pytest.mark.parametrize(
    ("name", "value"),
    [("split", "test"), ("rows", -1), ("held_out", -2), ("wrong", 1.5), ("wrong", float("nan")), ("redundancy", -0.1),
     ("levels", 6)],
)  # fmt: skip
def test_an_invalid_argument_is_rejected_before_the_first_row(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        generate(**{"split": "train", "rows": 5, "held_out": 5, "seed": 0, "wrong": 0.1, name: value})
    assert (caught.value.name, caught.value.value) == (name, value)
