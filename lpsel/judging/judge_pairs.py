"""Judge pairs of answers: cached verdicts, new ones for the rest, and a ledger of what they cost."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpsel.cache import Journal
from lpsel.console import track
from lpsel.judging.judge import LOSS, NOT_ASKED, TIE, WIN, Judge, Judgement, Order, Pair, preference_of
from lpsel.storage import digest

log = logging.getLogger(__name__)

Question = tuple[Pair, Order]


def judge_pairs(judge: Judge, pairs: Sequence[Pair], cache_dir: Path) -> tuple[list[Judgement], dict[str, Any]]:
    """Judge every pair in every order of the judge; equal answers are a tie without a question.

    Args:
        judge: its verdicts are cached by its identity and the texts; a question without a verdict is asked again.
        pairs: with distinct ids.
        cache_dir: for verdicts.

    Returns:
        A judgement for every pair and order, in the order of the pairs; its failure is "price cap" where the cap left
        it out. And the ledger: counts, and the tokens and dollars of all verdicts (None where unknown); `cost_now` is
        without those of cached ones, `kept` is the journal.

    Raises:
        UserError: no further question can succeed. Verdicts up to then are cached.
    """
    questions = [(pair, order) for pair in pairs for order in judge.orders]
    assert len({pair.id for pair in pairs}) == len(pairs), "ids are distinct"
    journal = Journal.of(cache_dir, "verdicts", judge.identity(), label=judge.name)
    with journal.locked():
        keys = {question_key(pair, order) for pair, order in questions}
        lines = [line for line in journal.read() if line["question"] in keys]
        known = {line.pop("question"): Judgement(**line) for line in lines}
        known = {key: judgement for key, judgement in known.items() if judgement.preference is not None}
        reused = len(known)
        _ask_missing(judge, questions, known, journal)
    judgements = [_judgement(pair, order, known.get(question_key(pair, order))) for pair, order in questions]
    left_out = sum(judgement.failure == NOT_ASKED for judgement in judgements)
    if left_out:
        message = "Reached judge.max_cost: %s of %s judgements are missing. Run again with a higher limit to add them."
        log.warning(message, f"{left_out:,}", f"{len(judgements):,}")
    costs = [judge.cost(judgement.prompt_tokens, judgement.completion_tokens) for judgement in known.values()]
    return judgements, {
        "judge": judge.name,
        "identity": judge.identity(),
        "judgements": len(judgements),
        "equal": sum(pair.baseline == pair.model for pair, _ in questions),
        "asked": len(known) - reused,
        "reused": reused,
        "failed": sum(judgement.preference is None for judgement in judgements),
        "prompt_tokens": _sum([judgement.prompt_tokens for judgement in known.values()]),
        "completion_tokens": _sum([judgement.completion_tokens for judgement in known.values()]),
        "cost": _sum(costs),
        "cost_now": _sum(costs[reused:]),
        "first_shown_wins": _first_shown_wins(judgements),
        "stopped_by_cap": left_out > 0,
        "kept": str(journal.path),
    }


def question_key(pair: Pair, order: Order) -> str:
    """The cache key of a question: equal for equal texts shown in the same order, also with the models swapped."""
    return digest([pair.prompt, *pair.shown(order), pair.reference])


def _ask_missing(judge: Judge, questions: Sequence[Question], known: dict[str, Judgement], journal: Journal) -> None:
    """Ask the judge each unknown question once, and add its judgements to `known` and the journal."""
    missing: dict[str, Question] = {}
    for pair, order in questions:
        if (key := question_key(pair, order)) not in known and pair.baseline != pair.model:
            missing.setdefault(key, (pair, order))
    if not missing:
        return
    log.info("Asking %s %s questions; %s verdicts are cached", judge.name, f"{len(missing):,}", f"{len(known):,}")
    key_of = {(pair.id, order): key for key, (pair, order) in missing.items()}
    with track(f"Judging, {judge.name}", total=len(missing), unit="judgements") as advance:

        def save(judgement: Judgement) -> None:
            key = key_of[judgement.id, judgement.order]
            journal.append([{"question": key, **judgement._asdict()}])
            known[key] = judgement
            advance(1, tokens=(judgement.prompt_tokens or 0) + (judgement.completion_tokens or 0))

        judge.judge(list(missing.values()), save)


def _judgement(pair: Pair, order: Order, known: Judgement | None) -> Judgement:
    """The judgement of a pair from a known one of the same texts, where baseline and model may be swapped."""
    if known is not None:
        preference = known.preference
        if preference is not None and known.order != order:
            preference = WIN + LOSS - preference
        return known._replace(id=pair.id, order=order, preference=preference)
    if pair.baseline == pair.model:
        return Judgement(pair.id, order, TIE, attempts=0)
    return Judgement(pair.id, order, None, attempts=0, failure=NOT_ASKED)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _first_shown_wins(judgements: Sequence[Judgement]) -> float | None:
    """Percentage of decided judgements that the answer shown first wins: 50 for a judge without position bias."""
    verdicts = [preference_of(j.preference, j.order) for j in judgements if j.preference is not None]
    decided = [verdict < TIE for verdict in verdicts if verdict != TIE]
    return 100 * sum(decided) / len(decided) if decided else None
