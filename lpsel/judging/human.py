"""Human evaluation: write a voting page with blinded pairs and its key, then evaluate votes and their agreement."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from lpsel.errors import UserError, check_int
from lpsel.html_pages import render
from lpsel.judging.judge import LOSS, TIE, WIN, Order, Pair, preference_of
from lpsel.storage import read_json, write_atomically, write_json

# A annotators, N pairs, V distinct votes

PAGE = "annotate.html"
KEY = "key.json"
CHOICES = ("a", "b", "tie", "skip")

_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
_MARKDOWN.disable(["html_block", "html_inline", "link", "image", "autolink", "reference", "entity", "escape"])

Writer = Literal["baseline", "model"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The information about a pair that the page hides."""

    id: str
    a: Writer  # author of answer A
    prompt_set: str
    category: str | None
    baseline_chars: int
    model_chars: int
    text: str | None = None  # `Pair.prompt_digest`


@dataclass(frozen=True, slots=True)
class Key:
    """Unblinds the votes on a page."""

    page: str  # SHA-256 of the page's content, which vote files contain as well
    baseline: str
    model: str
    pairs: tuple[KeyPair, ...]  # in the order of the page's data
    equal: tuple[KeyPair, ...] = ()  # pairs of identical answers, which count as ties and are not on the page


@dataclass(frozen=True, slots=True)
class HumanJudge:
    """Writes a voting page instead of judging. conf/judge/human.yaml documents the options."""

    question: str = "Which answer is better?"
    seed: int = 0

    def __post_init__(self) -> None:
        if not str(self.question or "").strip():
            raise UserError("judge.question", None, "is empty", "set a question such as 'Which answer is better?'")
        check_int("judge.seed", self.seed, 0)

    def write(self, pairs: Sequence[Pair], folder: Path, *, baseline: str, model: str) -> tuple[Path, Path]:
        """Write the page and its key to an existing folder and return their paths; only the key has the models' names.

        Raises:
            UserError: all answers are identical, or the folder has the key of another page, whose votes would be lost.
        """
        if all(pair.equal for pair in pairs):
            problem = f"all answers of {model} and {baseline} are equal"
            raise UserError("judge", "human", problem, "compare other models")
        html, key = blinded(pairs, question=self.question, seed=self.seed, baseline=baseline, model=model)
        page_path, key_path = folder / PAGE, folder / KEY
        if key_path.is_file() and read_key(key_path).page != key.page:
            hint = f"use another folder, or move {KEY} and {PAGE}"
            raise UserError(key_path, None, "is the key of another page", hint)
        write_json(key_path, asdict(key))
        write_atomically(page_path, lambda file: file.write(html.encode()))
        return page_path, key_path


def blinded(pairs: Sequence[Pair], *, question: str, seed: int, baseline: str, model: str) -> tuple[str, Key]:
    """Return the page as HTML, and its key.

    The page contains prompts, answers, the question and their SHA-256, but neither ids nor the seed, which would reveal
    the models. All texts are in a JSON block, with prompts and answers as HTML (`rendered`), and the content security
    policy only allows the page's own script.
    """
    equal = [pair for pair in pairs if pair.equal]
    different = [pair for pair in pairs if not pair.equal]
    model_is_a = np.random.default_rng(seed).integers(0, 2, len(different)).astype(bool)
    shown, key_pairs = [], []
    for pair, swapped in zip(different, model_is_a, strict=True):
        a, b = pair.shown("model_first" if swapped else "baseline_first")
        stopped_a, stopped_b = pair.stopped if swapped else pair.stopped[::-1]
        shown.append({"prompt": rendered(pair.prompt), "a": rendered(a, stopped_a), "b": rendered(b, stopped_b)})
        key_pairs.append(_key_pair(pair, "model" if swapped else "baseline"))
    content = {"question": question, "pairs": shown}
    # Escaped to ASCII, because half a surrogate pair cannot be encoded as UTF-8.
    page = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    key = Key(page, baseline, model, tuple(key_pairs), tuple(_key_pair(pair, "baseline") for pair in equal))
    return render("lpsel.judging", "annotate.html.j2", data={"page": page, **content}), key


def rendered(text: str, stopped: bool = True) -> str:
    """Convert Markdown to HTML, with a note unless the model stopped by itself.

    HTML, links, images, entities and backslashes in the text stay text, so that the page requests nothing and shows
    formulas as they are written.
    """
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        token.attrs.pop("style", None)  # table alignment as inline style violates the content security policy
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return html if stopped else html + '<p class="cut">The answer was cut off here.</p>\n'


def _key_pair(pair: Pair, a: Writer) -> KeyPair:
    return KeyPair(
        pair.id,
        a,
        pair.prompt_set,
        pair.category,
        baseline_chars=len(pair.baseline),
        model_chars=len(pair.model),
        text=pair.prompt_digest,
    )


def read_key(path: Path) -> Key:
    """Read a key written by `HumanJudge.write`; raise a UserError if the file cannot be read or is not a key."""
    hint = f"pass the {KEY} next to the page"
    try:
        value = read_json(path)
        pairs = tuple(KeyPair(**pair) for pair in value["pairs"])
        equal = tuple(KeyPair(**pair) for pair in value["equal"])
        return Key(value["page"], value["baseline"], value["model"], pairs, equal)
    except OSError as error:
        raise UserError("--key", path, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("--key", path, "is not the key of a page", hint) from error


class Vote(NamedTuple):
    """An annotator's vote on a pair."""

    annotator: str
    pair: int  # index in the page's data
    choice: str  # one of CHOICES
    at: datetime


class VoteFile(NamedTuple):
    """The votes of one annotator, downloaded from the page with SHA-256 `page`."""

    path: Path
    page: str
    votes: tuple[Vote, ...]


def read_votes(path: Path) -> VoteFile:
    """Read a vote file downloaded from the page; raise a UserError if it cannot be read or is not a vote file."""
    hint = "pass files downloaded from the page"
    try:
        value = read_json(path)
        page, name, entries = value["page"], value["annotator"].strip(), value["votes"]
        if not (name and isinstance(page, str) and isinstance(entries, list)):
            raise TypeError
    except OSError as error:
        raise UserError(path, None, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, None, "is not a file of votes", hint) from error
    return VoteFile(path, page, tuple(_vote(path, name, number, entry) for number, entry in enumerate(entries, 1)))


def _vote(path: Path, name: str, number: int, entry: object) -> Vote:
    match entry:
        case {"pair": int(pair), "vote": str(choice), "at": str(at)} if choice in CHOICES and pair >= 0:
            with suppress(ValueError):
                if (time := datetime.fromisoformat(at)).tzinfo is not None:
                    return Vote(name, pair, choice, time)
    raise UserError(path, None, f"vote {number} is damaged ({json.dumps(entry)[:60]})", "download the file again")


def check_votes(file: VoteFile, key: Key) -> None:
    """Raise a UserError unless the votes belong to the page of the key."""
    if file.page != key.page:
        problem = f"has votes on page {file.page[:12]}, but the key is for page {key.page[:12]}"
        raise UserError(file.path, None, problem, "pass votes on one page and its key")
    for vote in file.votes:
        if vote.pair >= len(key.pairs):
            problem = f"has a vote on pair {vote.pair}, but the page has {len(key.pairs)} pairs"
            raise UserError(file.path, None, problem, "download the file again")


def last_votes(votes: Sequence[Vote]) -> list[Vote]:
    """Return the latest vote of each annotator on each pair; with equal times, the last in the list."""
    latest: dict[tuple[str, int], Vote] = {}
    for vote in votes:
        earlier = latest.get((vote.annotator, vote.pair))
        if earlier is None or vote.at >= earlier.at:
            latest[vote.annotator, vote.pair] = vote
    return list(latest.values())


def order(vote: Vote, key: Key) -> Order:
    """Return the order of the answers on the page, as for a judgement."""
    return "model_first" if key.pairs[vote.pair].a == "model" else "baseline_first"


def preference(vote: Vote, key: Key) -> float | None:
    """Return 1 if the baseline's answer is better, 2 if the model's is, 1.5 for a tie, None if skipped."""
    verdict = {"a": LOSS, "tie": TIE, "b": WIN}.get(vote.choice)
    return None if verdict is None else preference_of(verdict, order(vote, key))


def preferences(votes: Sequence[Vote], key: Key) -> tuple[list[str], Floats]:
    """Return the names of annotators and the preferences of their `last_votes`, (A, N); NaN if skipped or missing."""
    names = sorted({vote.annotator for vote in votes})
    preference_AN = np.full((len(names), len(key.pairs)), np.nan)
    for vote in votes:
        preference_AN[names.index(vote.annotator), vote.pair] = preference(vote, key)
    return names, preference_AN


def majority(preference_AN: Floats) -> Floats:
    """Return the most frequent outcome of every pair, shape (N,); a tie if there are several, NaN without votes."""
    outcomes = np.array([LOSS, TIE, WIN])
    votes_3N = np.stack([(preference_AN == outcome).sum(axis=0) for outcome in outcomes])
    most_N = votes_3N.max(axis=0)
    several_N = (votes_3N == most_N).sum(axis=0) > 1
    outcome_N = np.where(several_N, TIE, outcomes[votes_3N.argmax(axis=0)])
    return np.where(most_N > 0, outcome_N, np.nan)


def mean_preference(preference_AN: Floats) -> Floats:
    """Return the mean of all votes on every pair, shape (N,); NaN without votes."""
    votes_N = np.isfinite(preference_AN).sum(axis=0)
    return np.divide(np.nansum(preference_AN, axis=0), votes_N, out=np.full(len(votes_N), np.nan), where=votes_N > 0)


def krippendorff_alpha(preference_AN: Floats, *, ordinal: bool = False) -> float | None:
    """Compute Krippendorff's alpha for nominal or ordinal values: 1 is full agreement, 0 is agreement by chance.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011). Only pairs with at least two votes count. None
    without such pairs, or if all of their votes are equal, since agreement cannot be distinguished from chance then.
    """
    several_AN = preference_AN[:, np.isfinite(preference_AN).sum(axis=0) > 1]
    values_V = np.unique(several_AN[np.isfinite(several_AN)])
    if len(values_V) < 2:
        return None
    count_VN = np.array([(several_AN == value).sum(axis=0) for value in values_V], np.float64)
    count_V = count_VN.sum(axis=1)
    share_VN = count_VN / (count_VN.sum(axis=0) - 1)
    coincidence_VV = share_VN @ count_VN.T - np.diag(share_VN.sum(axis=1))
    if ordinal:
        rank_V = np.cumsum(count_V) - count_V / 2
        distance_VV = (rank_V[:, None] - rank_V) ** 2
    else:
        distance_VV = 1 - np.eye(len(values_V))
    expected = (np.outer(count_V, count_V) * distance_VV).sum()
    return float(1 - (count_V.sum() - 1) * (coincidence_VV * distance_VV).sum() / expected)
