"""Instruction data made from a seed: no download, every answer checkable, difficulty and wrong answers known.

A row is a task, a level from 1 to 5 and a problem of that level. The level is the row's `difficulty`: the size of
the problem, which grows by one with each level (`TASKS`). It orders rows inside a task; between tasks it says nothing.

Problems are split once and for all by a hash of their text: a problem that may be held out is never used for
training, whatever the seed, the number of rows or the wording of the instruction.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from lpsel.errors import UserError, is_int, is_number

T = TypeVar("T")

LEVELS = (1, 2, 3, 4, 5)
SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 8  # one problem in this many is kept for held_out

CATEGORIES = {
    "animals": ("bear", "cat", "dog", "fox", "goat", "hen", "lion", "pig", "wolf", "yak"),
    "colours": ("blue", "green", "gold", "grey", "pink", "red", "teal", "white"),
    "foods": ("bread", "corn", "egg", "jam", "meat", "rice", "soup", "tart"),
    "tools": ("axe", "drill", "file", "nail", "hammer", "rope", "saw", "vice"),
}
WORDS = tuple(word for words in CATEGORIES.values() for word in words)
THINGS = tuple(word for word in WORDS if word not in CATEGORIES["colours"])
NAMES = ("Ann", "Ben", "Eve", "Ida", "Kim", "Leo", "Max", "Ned", "Oda", "Sam", "Tom", "Una")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Draw:
    """Random choices from a seed, by `random.Random.random` alone: the one sequence Python promises to keep."""

    def __init__(self, seed: int | str) -> None:
        self._uniform = random.Random(seed).random

    def below(self, n: int) -> int:
        return int(self._uniform() * n)

    def one(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def many(self, items: Sequence[T], n: int) -> list[T]:
        """`n` items, any of them more than once."""
        return [self.one(items) for _ in range(n)]

    def distinct(self, items: Sequence[T], n: int) -> list[T]:
        """`n` different positions of `items`, in random order (the first steps of Fisher and Yates' shuffle)."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]


class Problem(NamedTuple):
    given: str  # what is worked on
    answer: str
    about: str = ""  # what is asked of it, where the task alone does not say


def _repeat(draw: Draw, size: int) -> Problem:
    text = " ".join(draw.many(WORDS, size))
    return Problem(text, text)


def _reverse(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), " ".join(reversed(words)))


def _last(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), words[-1])


def _initials(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), " ".join(word[0] for word in words))


def _count(draw: Draw, size: int) -> Problem:
    pair = draw.distinct(WORDS, 2)
    words = draw.many(pair, size)
    return Problem(" ".join(words), str(words.count(pair[0])), pair[0])


def _filter(draw: Draw, size: int) -> Problem:
    category, other = draw.distinct(tuple(CATEGORIES), 2)
    kept = draw.one(CATEGORIES[category])
    words = [kept, *draw.many(CATEGORIES[category] + CATEGORIES[other], size - 1)]
    words = draw.distinct(words, size)
    return Problem(" ".join(words), " ".join(word for word in words if word in CATEGORIES[category]), category)


def _lookup(draw: Draw, size: int) -> Problem:
    names, things = draw.distinct(NAMES, size), draw.distinct(THINGS, size)
    facts = " ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))
    asked = draw.below(size)
    return Problem(facts, things[asked], names[asked])


def _pattern(draw: Draw, size: int) -> Problem:
    period = draw.distinct(WORDS, size)
    shown = size + 1 + draw.below(size)
    return Problem(" ".join(period[i % size] for i in range(shown)), period[shown % size])


def _words(draw: Draw, size: int) -> Problem:
    digits = draw.many(range(10), size)
    return Problem(" ".join(map(str, digits)), " ".join(DIGITS[digit] for digit in digits))


def _largest(draw: Draw, size: int) -> Problem:
    numbers = draw.distinct(range(10, 100), size)
    return Problem(" ".join(map(str, numbers)), str(max(numbers)))


def _sort(draw: Draw, size: int) -> Problem:
    digits = draw.many(range(10), size)
    return Problem(" ".join(map(str, digits)), " ".join(map(str, sorted(digits))))


def _add(draw: Draw, size: int) -> Problem:
    """`size`: digits of both numbers together."""
    digits = ((size + 1) // 2, size // 2)
    a, b = (10 ** (n - 1) + draw.below(9 * 10 ** (n - 1)) for n in digits)
    return Problem(f"{a} + {b}", str(a + b))


class Task(NamedTuple):
    problem: Callable[[Draw, int], Problem]
    sizes: tuple[int, ...]  # of the problems of levels 1 to 5
    phrasings: tuple[str, ...]


# Sizes count words, numbers, digits, facts, the words of a period or (add) digits.
TASKS = {
    "repeat": Task(
        _repeat,
        (2, 3, 4, 5, 6),
        ("Repeat the words.", "Copy the text exactly.", "Write the same words again.", "Say these words once more."),
    ),
    "reverse": Task(
        _reverse,
        (2, 3, 4, 5, 6),
        ("Reverse the order of the words.", "Write the words backwards.", "List the words from last to first."),
    ),
    "last": Task(
        _last,
        (3, 4, 5, 6, 7),
        ("Give the last word.", "Which word comes last?", "Write only the final word of the list."),
    ),
    "initials": Task(
        _initials,
        (2, 3, 4, 5, 6),
        ("Write the first letter of each word.", "Give the initials of the words.", "With what letters do they start?"),
    ),
    "count": Task(
        _count,
        (4, 5, 6, 7, 8),
        ("How many times does {about} occur?", "Count the word {about}.", "Say how often {about} is in the list."),
    ),
    "filter": Task(
        _filter,
        (3, 4, 5, 6, 7),
        ("Keep only the {about}.", "Which words are {about}?", "List the {about} and nothing else."),
    ),
    "lookup": Task(
        _lookup,
        (2, 3, 4, 5, 6),
        ("What does {about} have?", "Name the thing that {about} has.", "Say what belongs to {about}."),
    ),
    "pattern": Task(
        _pattern,
        (2, 3, 4, 5, 6),
        ("Which word comes next?", "Continue the pattern by one word.", "Give the next word of the pattern."),
    ),
    "words": Task(
        _words,
        (3, 4, 5, 6, 7),
        ("Write the digits as words.", "Spell out each digit.", "Put the digits into words."),
    ),
    "largest": Task(
        _largest,
        (2, 3, 4, 5, 6),
        ("Give the largest number.", "Which number is the greatest?", "Find the maximum."),
    ),
    "sort": Task(
        _sort,
        (3, 4, 5, 6, 7),
        ("Sort the digits.", "Put the digits in order.", "Write the digits from smallest to largest."),
    ),
    "add": Task(
        _add,
        (3, 4, 5, 6, 7),
        ("Add the numbers.", "Work out the sum.", "What is the total?"),
    ),
}


def generate(split: str, rows: int, held_out: int, seed: int, wrong: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split, the same ones on every machine.

    Args:
        split: train or held_out.
        rows, held_out: rows of the train and of the held_out split; no problem occurs twice in a split or in both.
        seed: of everything drawn; the two splits draw independently.
        wrong: share of the train rows, from 0 to 1, that have the answer to another problem of the same task and level:
            exactly round(wrong * rows) of them. The held_out split has none.

    Yields:
        `instruction`, `input` ("" in about one row of three, which has it in the instruction), `output`, `task`,
        `difficulty` (1 to 5, the level) and `wrong`.

    Raises:
        UserError: an unknown split, a negative number of rows, or `wrong` outside [0, 1].
    """
    if split not in SPLITS:
        raise UserError(f"split={split}: the synthetic data has {' and '.join(SPLITS)}.")
    for name, count in (("rows", rows), ("held_out", held_out)):
        if not is_int(count) or count < 0:
            raise UserError(f"{name}={count}: must be a whole number of rows, 0 or more.")
    if not is_number(wrong) or not 0 <= wrong <= 1:
        raise UserError(f"wrong={wrong}: must be a share from 0 to 1.")
    return _rows(split, rows if split == "train" else held_out, seed, wrong if split == "train" else 0.0)


def problems(draw: Draw, split: str) -> Iterator[tuple[str, int, Problem]]:
    """Yield (task, level, problem) of one split without end, tasks and levels uniformly; problems may recur."""
    names = tuple(TASKS)
    while True:
        task, level = draw.one(names), draw.one(LEVELS)
        problem = TASKS[task].problem(draw, TASKS[task].sizes[level - 1])
        if _split_of(task, problem) == split:
            yield task, level, problem


def _split_of(task: str, problem: Problem) -> str:
    text = f"{task}|{problem.about}|{problem.given}"
    return "held_out" if zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0 else "train"


def _rows(split: str, count: int, seed: int, wrong: float) -> Iterator[dict[str, Any]]:
    draw = Draw(f"{seed} {split}")
    mistakes = Draw(f"{seed} {split} wrong")
    wrong_rows = set(mistakes.distinct(range(count), round(wrong * count)))
    stream, seen = problems(draw, split), set[tuple[str, Problem]]()
    for index in range(count):
        task, level, problem = next(item for item in stream if (item[0], item[2]) not in seen)
        seen.add((task, problem))
        instruction, given = _phrase(draw, task, problem)
        yield {
            "instruction": instruction,
            "input": given,
            "output": _wrong_answer(mistakes, task, level, problem) if index in wrong_rows else problem.answer,
            "task": task,
            "difficulty": level,
            "wrong": index in wrong_rows,
        }


def _phrase(draw: Draw, task: str, problem: Problem) -> tuple[str, str]:
    """Give the instruction and the input, the latter empty in one row of three."""
    instruction = draw.one(TASKS[task].phrasings).format(about=problem.about)
    if draw.below(3):
        return instruction, problem.given
    opening = f"{instruction[:-1]}:" if instruction.endswith(".") else instruction
    return f"{opening} {problem.given}", ""


def _wrong_answer(draw: Draw, task: str, level: int, problem: Problem) -> str:
    answer = problem.answer
    while answer == problem.answer:
        answer = TASKS[task].problem(draw, TASKS[task].sizes[level - 1]).answer
    return answer
