"""From what a judge said in both orders to one outcome a pair, and how far the order swayed it. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lpsel.judging.judgement import LOSS, TIE, WIN, Judgement, preference_of

VERDICTS = (LOSS, TIE, WIN)


class Outcome(NamedTuple):
    """What came out for a pair.

    Attributes:
        id: of the pair.
        preference: 1 the baseline's answer is better, 2 the model's, 1.5 a tie, numbers between are shares; None where
            it was not judged in every order.
        flipped: whether the judge preferred another answer when it saw them in the other order; None where it was not
            read in both.
        failure: why preference is None.
    """

    id: str
    preference: float | None
    flipped: bool | None
    failure: str | None = None


def combine(judgements: Iterable[Judgement]) -> list[Outcome]:
    """One outcome for every id, in the order in which the ids come.

    Verdicts (1, 1.5, 2) that differ between the orders are a tie. Shares, of which one is none of the three at least,
    are averaged; they flip where they lie on different sides of 1.5. One that failed in any order has failed.
    """
    of_pair: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        of_pair.setdefault(judgement.id, []).append(judgement)
    return [_outcome(id, said) for id, said in of_pair.items()]


def _outcome(id: str, said: Sequence[Judgement]) -> Outcome:
    preferences = [judgement.preference for judgement in said if judgement.preference is not None]
    if len(preferences) < len(said):
        failure = next(judgement.failure for judgement in said if judgement.preference is None)
        return Outcome(id, None, None, failure)
    if all(preference in VERDICTS for preference in preferences):
        agreed = len(set(preferences)) == 1
        return Outcome(id, preferences[0] if agreed else TIE, None if len(said) == 1 else not agreed)
    sides = {(preference > TIE) - (preference < TIE) for preference in preferences}
    return Outcome(id, sum(preferences) / len(preferences), None if len(said) == 1 else len(sides) > 1)


def flip_rate(outcomes: Iterable[Outcome]) -> float | None:
    """Share of the pairs read in both orders whose verdicts differ; None where there are none."""
    read = [outcome.flipped for outcome in outcomes if outcome.flipped is not None]
    return sum(read) / len(read) if read else None


def first_shown_rate(judgements: Iterable[Judgement]) -> float | None:
    """Share of the decided judgements, ties aside, that the answer shown first has won; None where there are none.

    0.5 is a judge whom the order does not sway, if both orders were asked.
    """
    verdicts = [preference_of(j.preference, j.order) for j in judgements if j.preference is not None]
    decided = [verdict < TIE for verdict in verdicts if verdict != TIE]
    return sum(decided) / len(decided) if decided else None
