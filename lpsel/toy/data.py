"""Generate instruction data from a seed, with verifiable answers, known difficulty and known wrong answers.

A row consists of a task, a level from 1 to 5 and a problem of that level. The level is the row's `difficulty`: the size
of the problem grows by one per level (`TASKS`). It orders rows within a task, not across tasks. Each task has a topic.

Rows are either spread evenly over tasks and levels, or redundant: most are level 1 problems of the tasks in `EASY`.

Problems are split by a hash of their text: a problem in the held_out split is never in the train split, whatever the
seed, the number of rows or the wording of the instruction.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from lpsel.errors import UserError, check_choice, check_int, is_number

T = TypeVar("T")

LEVELS = (1, 2, 3, 4, 5)
SPLITS = ("train", "held_out")
HELD_OUT_ONE_IN = 8  # problems

# The words are part of the data: changing one changes every result of the embedded run.
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
    """Makes random choices with `random.Random.random`, whose sequence is the same in all Python versions."""

    def __init__(self, seed: int | str) -> None:
        self._uniform = random.Random(seed).random

    def below(self, n: int) -> int:
        return int(self._uniform() * n)

    def number(self, digits: int) -> int:
        smallest = 10 ** (digits - 1)
        return smallest + self.below(9 * smallest)

    def one(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def many(self, items: Sequence[T], n: int) -> list[T]:
        """Draw `n` items with replacement."""
        return [self.one(items) for _ in range(n)]

    def distinct(self, items: Sequence[T], n: int) -> list[T]:
        """Draw `n` items without replacement in random order (the first steps of a Fisher-Yates shuffle)."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]


class Problem(NamedTuple):
    given: str
    answer: str
    about: str = ""  # completes the phrasing, such as the word to count


MakeProblem = Callable[[Draw, int], Problem]  # takes a size: words, numbers, digits, facts or words per period
Phrased = tuple[str, int, Problem, str, str]  # task, level, problem, instruction and input


class Task(NamedTuple):
    problem: MakeProblem
    smallest: int  # size of a problem at level 1
    phrasings: tuple[str, ...]


TASKS: dict[str, Task] = {}


def _task(name: str, smallest: int, *phrasings: str) -> Callable[[MakeProblem], MakeProblem]:
    def register(problem: MakeProblem) -> MakeProblem:
        TASKS[name] = Task(problem, smallest, phrasings)
        return problem

    return register


@_task(
    "repeat",
    2,
    "Repeat the words.",
    "Copy the text exactly.",
    "Write the same words again.",
    "Say these words once more.",
)
def _repeat(draw: Draw, size: int) -> Problem:
    text = " ".join(draw.many(WORDS, size))
    return Problem(text, text)


@_task(
    "reverse", 2, "Reverse the order of the words.", "Write the words backwards.", "List the words from last to first."
)
def _reverse(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), " ".join(reversed(words)))


@_task("last", 3, "Give the last word.", "Which word comes last?", "Write only the final word of the list.")
def _last(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), words[-1])


@_task(
    "initials",
    2,
    "Write the first letter of each word.",
    "Give the initials of the words.",
    "With what letters do they start?",
)
def _initials(draw: Draw, size: int) -> Problem:
    words = draw.many(WORDS, size)
    return Problem(" ".join(words), " ".join(word[0] for word in words))


@_task(
    "count", 4, "How many times does {about} occur?", "Count the word {about}.", "Say how often {about} is in the list."
)
def _count(draw: Draw, size: int) -> Problem:
    pair = draw.distinct(WORDS, 2)
    words = draw.many(pair, size)
    return Problem(" ".join(words), str(words.count(pair[0])), pair[0])


@_task("filter", 3, "Keep only the {about}.", "Which words are {about}?", "List the {about} and nothing else.")
def _filter(draw: Draw, size: int) -> Problem:
    category, other = draw.distinct(tuple(CATEGORIES), 2)
    kept = draw.one(CATEGORIES[category])
    words = [kept, *draw.many(CATEGORIES[category] + CATEGORIES[other], size - 1)]
    words = draw.distinct(words, size)
    return Problem(" ".join(words), " ".join(word for word in words if word in CATEGORIES[category]), category)


@_task("lookup", 2, "What does {about} have?", "Name the thing that {about} has.", "Say what belongs to {about}.")
def _lookup(draw: Draw, size: int) -> Problem:
    names, things = draw.distinct(NAMES, size), draw.distinct(THINGS, size)
    facts = " ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))
    chosen = draw.below(size)
    return Problem(facts, things[chosen], names[chosen])


@_task(
    "pattern", 2, "Which word comes next?", "Continue the pattern by one word.", "Give the next word of the pattern."
)
def _pattern(draw: Draw, size: int) -> Problem:
    period = draw.distinct(WORDS, size)
    shown = size + 1 + draw.below(size)
    return Problem(" ".join(period[i % size] for i in range(shown)), period[shown % size])


@_task("words", 3, "Write the digits as words.", "Spell out each digit.", "Put the digits into words.")
def _words(draw: Draw, size: int) -> Problem:
    digits = draw.many(range(10), size)
    return Problem(" ".join(map(str, digits)), " ".join(DIGITS[digit] for digit in digits))


@_task("largest", 2, "Give the largest number.", "Which number is the greatest?", "Find the maximum.")
def _largest(draw: Draw, size: int) -> Problem:
    numbers = draw.distinct(range(10, 100), size)
    return Problem(" ".join(map(str, numbers)), str(max(numbers)))


@_task("sort", 3, "Sort the digits.", "Put the digits in order.", "Write the digits from smallest to largest.")
def _sort(draw: Draw, size: int) -> Problem:
    digits = draw.many(range(10), size)
    return Problem(" ".join(map(str, digits)), " ".join(map(str, sorted(digits))))


@_task("add", 3, "Add the numbers.", "Work out the sum.", "What is the total?")
def _add(draw: Draw, size: int) -> Problem:
    """Create a sum; `size` is the total number of digits in both numbers."""
    a = draw.number((size + 1) // 2)
    b = draw.number(size // 2)
    return Problem(f"{a} + {b}", str(a + b))


TOPICS = {
    "text": ("repeat", "reverse", "last", "initials"),
    "facts": ("count", "filter", "lookup", "pattern"),
    "numbers": ("words", "largest", "sort", "add"),
}
EASY = ("last", "pattern", "words")  # one per topic


def generate(
    split: str, rows: int, held_out: int, seed: int, wrong: float, redundancy: float = 0.0, levels: int = 5
) -> Iterator[dict[str, Any]]:
    """Generate the rows of one split, identical on every machine.

    Args:
        split: train or held_out.
        rows, held_out: number of rows in the train and held_out split.
        seed: seed for all random choices; the two splits are independent.
        wrong: fraction of the train rows, from 0 to 1, that get the answer to another problem of the same task and
            level: exactly round(wrong * rows) rows. The held_out split has no wrong answers.
        redundancy: fraction of the train rows, from 0 to 1, that are level 1 problems of the tasks in EASY: exactly
            round(redundancy * rows) rows; if above 0, no other rows are. The held_out split is not redundant.
        levels: highest level, from 1 to 5.

    Yields:
        `instruction`, `input` ("" in about a third of the rows, where it is part of the instruction), `output`, `task`,
        `topic`, `difficulty` (1 to 5) and `wrong`. Rows are unique, and so are problems except easy ones.

    Raises:
        UserError: the split is unknown, a number of rows is negative, or a fraction or level is out of range.
    """
    check_choice("split", split, SPLITS)
    check_int("rows", rows, 0)
    check_int("held_out", held_out, 0)
    for name, fraction in (("wrong", wrong), ("redundancy", redundancy)):
        if not is_number(fraction) or not 0 <= fraction <= 1:
            raise UserError(name, fraction, "must be a number in [0, 1]", "set it to a fraction of the rows")
    check_choice("levels", levels, LEVELS)
    if split == "held_out":
        return _rows(split, held_out, seed, wrong=0.0, redundancy=0.0, levels=levels)
    return _rows(split, rows, seed, wrong, redundancy, levels)


def problems(
    draw: Draw, split: str, tasks: Sequence[str] = tuple(TASKS), levels: Sequence[int] = LEVELS
) -> Iterator[tuple[str, int, Problem]]:
    """Yield (task, level, problem) of one split forever, with uniform tasks and levels; problems may repeat."""
    while True:
        task, level = draw.one(tasks), draw.one(levels)
        problem = _problem(draw, task, level)
        key = f"{task}|{problem.about}|{problem.given}"
        if (split == "held_out") == (zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0):
            yield task, level, problem


def _problem(draw: Draw, task: str, level: int) -> Problem:
    return TASKS[task].problem(draw, TASKS[task].smallest + level - 1)


def _rows(split: str, count: int, seed: int, wrong: float, redundancy: float, levels: int) -> Iterator[dict[str, Any]]:
    draw = Draw(f"{seed} {split}")
    draw_wrong, draw_easy = Draw(f"{seed} {split} wrong"), Draw(f"{seed} {split} easy")
    wrong_rows = set(draw_wrong.distinct(range(count), round(wrong * count)))
    easy_rows = set(draw_easy.distinct(range(count), round(redundancy * count)))
    varied = _varied_problems(draw, split, LEVELS[:levels], easy_too=not redundancy)
    easy = _easy_problems(draw_easy, split)
    for index in range(count):
        task, level, problem, instruction, given = next(easy if index in easy_rows else varied)
        answer = problem.answer
        while index in wrong_rows and answer == problem.answer:
            answer = _problem(draw_wrong, task, level).answer
        yield {
            "instruction": instruction,
            "input": given,
            "output": answer,
            "task": task,
            "topic": next(topic for topic, tasks in TOPICS.items() if task in tasks),
            "difficulty": level,
            "wrong": index in wrong_rows,
        }


def _varied_problems(draw: Draw, split: str, levels: Sequence[int], easy_too: bool) -> Iterator[Phrased]:
    """Yield problems of all tasks without repetition."""
    seen = set[tuple[str, Problem]]()
    for task, level, problem in problems(draw, split, levels=levels):
        if (task, problem) not in seen and (easy_too or task not in EASY or level > 1):
            seen.add((task, problem))
            yield task, level, problem, *_phrase(draw, task, problem)


def _easy_problems(draw: Draw, split: str) -> Iterator[Phrased]:
    """Yield easy problems; one may repeat with a different wording."""
    seen = set[tuple[str, str]]()
    for task, level, problem in problems(draw, split, EASY, LEVELS[:1]):
        instruction, given = _phrase(draw, task, problem)
        if (instruction, given) not in seen:
            seen.add((instruction, given))
            yield task, level, problem, instruction, given


def _phrase(draw: Draw, task: str, problem: Problem) -> tuple[str, str]:
    """Return the instruction and the input; in a third of the rows, the input is part of the instruction."""
    instruction = draw.one(TASKS[task].phrasings).format(about=problem.about)
    if draw.below(3):
        return instruction, problem.given
    opening = f"{instruction[:-1]}:" if instruction.endswith(".") else instruction
    return f"{opening} {problem.given}", ""
