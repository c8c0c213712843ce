"""Votes that people downloaded from the page: read, unblinded, one outcome for every pair, and how far people agree."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpsel.errors import UserError
from lpsel.judging.human import Key
from lpsel.judging.judge import LOSS, TIE, WIN, Order
from lpsel.storage import read_json

# A annotators, N pairs

CHOICES = ("a", "b", "tie", "skip")

Floats = NDArray[np.float64]


class Vote(NamedTuple):
    """What a person said of a pair.

    Attributes:
        annotator: as they gave their name.
        pair: number of the pair in the page's data.
        choice: a, b, tie or skip.
        at: when.
    """

    annotator: str
    pair: int
    choice: str
    at: datetime


@dataclass(frozen=True, slots=True)
class VoteFile:
    """A file that the page downloads.

    Attributes:
        page: SHA-256 of what the page shows.
        votes: of one annotator.
    """

    path: Path
    page: str
    votes: tuple[Vote, ...]


def read_file(path: Path) -> VoteFile:
    """A file that the page downloads.

    Raises:
        UserError: no such file, or something else.
    """
    try:
        value = read_json(path)
        page, name, entries = value["page"], value["annotator"].strip(), value["votes"]
        if not (name and isinstance(page, str) and isinstance(entries, list)):
            raise TypeError
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give files that the page downloads.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a file of votes; give files that the page downloads.") from error
    return VoteFile(path, page, tuple(_vote(path, name, number, entry) for number, entry in enumerate(entries, 1)))


def _vote(path: Path, name: str, number: int, entry: object) -> Vote:
    match entry:
        case {"pair": int(pair), "vote": str(choice), "at": str(at)} if choice in CHOICES and pair >= 0:
            try:
                time = datetime.fromisoformat(at)
            except ValueError:
                time = None
            if time is not None and time.tzinfo is not None:
                return Vote(name, pair, choice, time)
    raise UserError(f"{path}: vote {number} is damaged ({json.dumps(entry)[:60]}); download the file again.")


def check(file: VoteFile, key: Key) -> None:
    """Raise UserError where votes are on another page than the key's."""
    if file.page != key.page:
        raise UserError(
            f"{file.path}: has votes on page {file.page[:12]}, the key is of page {key.page[:12]}; give votes on "
            "one page, and its key."
        )
    for vote in file.votes:
        if vote.pair >= len(key.pairs):
            raise UserError(
                f"{file.path}: has a vote on pair {vote.pair}, the page has {len(key.pairs)}; download the file again."
            )


def last_votes(votes: Sequence[Vote]) -> list[Vote]:
    """The votes that count: of several by one person on one pair the latest, of equally late ones the last given.

    The same vote in two files is one vote.
    """
    kept: dict[tuple[str, int], Vote] = {}
    for vote in votes:
        earlier = kept.get((vote.annotator, vote.pair))
        if earlier is None or vote.at >= earlier.at:
            kept[vote.annotator, vote.pair] = vote
    return list(kept.values())


def order(vote: Vote, key: Key) -> Order:
    """Whose answer stood on side A, as a judge's order."""
    return "model_first" if key.pairs[vote.pair].a == "model" else "baseline_first"


def preference(vote: Vote, key: Key) -> float | None:
    """1 the baseline's answer is better, 2 the model's, 1.5 a tie, None skipped."""
    match vote.choice:
        case "skip":
            return None
        case "tie":
            return TIE
        case side:
            return WIN if (side == "a") == (key.pairs[vote.pair].a == "model") else LOSS


def preferences(votes: Sequence[Vote], key: Key) -> tuple[list[str], Floats]:
    """Names of annotators, sorted, and the preference of each on every pair, NaN where skipped or not voted on.

    Args:
        votes: at most one by each annotator on each pair.
    """
    names = sorted({vote.annotator for vote in votes})
    preference_AN = np.full((len(names), len(key.pairs)), np.nan)
    for vote in votes:
        said = preference(vote, key)
        preference_AN[names.index(vote.annotator), vote.pair] = np.nan if said is None else said
    return names, preference_AN


def majority(preference_AN: Floats) -> Floats:
    """The outcome with most votes for every pair, of shape (N,): a tie where two have as many, NaN without votes."""
    votes_3N = np.stack([(preference_AN == outcome).sum(axis=0) for outcome in (LOSS, TIE, WIN)])
    most_N = votes_3N.max(axis=0)
    shared_N = (votes_3N == most_N).sum(axis=0) > 1
    outcome_N = np.where(shared_N, TIE, np.array([LOSS, TIE, WIN])[votes_3N.argmax(axis=0)])
    return np.where(most_N > 0, outcome_N, np.nan)


def mean_preference(preference_AN: Floats) -> Floats:
    """The mean of all votes on every pair, of shape (N,), NaN without votes."""
    votes_N = np.isfinite(preference_AN).sum(axis=0)
    sum_N = np.nansum(preference_AN, axis=0)
    return np.divide(sum_N, votes_N, out=np.full(len(votes_N), np.nan), where=votes_N > 0)


def krippendorff_alpha(preference_AN: Floats) -> float | None:
    """Krippendorff's alpha of nominal values: 1 is full agreement, 0 what chance gives.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011). Only pairs with two votes or more tell something;
    None where there is none, or where all their votes are the same, so that chance cannot be told from agreement.
    """
    several_AN = preference_AN[:, np.isfinite(preference_AN).sum(axis=0) > 1]
    values_V = np.unique(several_AN[np.isfinite(several_AN)])
    if len(values_V) < 2:
        return None
    count_VN = np.array([(several_AN == value).sum(axis=0) for value in values_V], np.float64)
    votes_N, count_V = count_VN.sum(axis=0), count_VN.sum(axis=1)
    observed = ((votes_N**2 - (count_VN**2).sum(axis=0)) / (votes_N - 1)).sum()
    return float(1 - (votes_N.sum() - 1) * observed / (votes_N.sum() ** 2 - (count_V**2).sum()))
