"""Judge pairs of answers: cached verdicts, new ones for the rest, and a ledger of what they cost."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpsel.cache import Journal
from lpsel.console import track
from lpsel.judging.judge import NOT_ASKED, TIE, Judge, Judgement, Order, Pair, preference_of
from lpsel.judging.verdicts import judgement_of, question, read_judgements

log = logging.getLogger(__name__)

Question = tuple[Pair, Order]


def judge_pairs(judge: Judge, pairs: Sequence[Pair], cache_dir: Path) -> tuple[list[Judgement], dict[str, Any]]:
    """Judge every pair in every order of the judge. Equal answers are a tie without a question.

    Args:
        judge: its verdicts are cached by its identity and the texts.
        pairs: with distinct ids.
        cache_dir: for verdicts.

    Returns:
        A judgement for every pair and order, in the order of the pairs; its failure is "price cap" where the cap left
        it out. And the ledger: `judgements`, `equal` answers, `asked` now, `reused` from the cache, `failed`;
        `prompt_tokens`, `completion_tokens` and `cost` in dollars, including cached verdicts (None where unknown),
        `cost_now` without them; `first_shown_wins`, `stopped_by_cap`, `kept` (the journal).

    Raises:
        UserError: no further question can succeed. Verdicts up to then are cached.
    """
    questions = [(pair, order) for pair in pairs for order in judge.orders]
    assert len({pair.id for pair in pairs}) == len(pairs), "ids are distinct"
    journal = Journal.of(cache_dir, "verdicts", judge.identity(), label=judge.name)
    with journal.locked():
        keys = {question(pair, order) for pair, order in questions}
        known = {key: judgement for key, judgement in read_judgements(journal).items() if key in keys}
        cached = list(known.values())
        asked = _ask_missing(judge, questions, known, journal)
    judgements = [_judgement(pair, order, known.get(question(pair, order))) for pair, order in questions]
    ledger = {
        "judge": judge.name,
        "identity": judge.identity(),
        "judgements": len(judgements),
        "equal": sum(pair.baseline == pair.model for pair, _ in questions),
        "asked": len(asked),
        "reused": len(cached),
        "failed": sum(judgement.preference is None for judgement in judgements),
        **_costs(judge, cached, asked),
        "first_shown_wins": _first_shown_wins(judgements),
        "stopped_by_cap": any(judgement.failure == NOT_ASKED for judgement in judgements),
        "kept": str(journal.path),
    }
    if ledger["stopped_by_cap"]:
        skipped = sum(judgement.failure == NOT_ASKED for judgement in judgements)
        message = "Reached judge.max_cost: %s of %s judgements are missing. Run again with a higher limit to add them."
        log.warning(message, f"{skipped:,}", f"{len(judgements):,}")
    return judgements, ledger


def _ask_missing(
    judge: Judge, questions: Sequence[Question], known: dict[str, Judgement], journal: Journal
) -> list[Judgement]:
    """Ask the judge each unknown question once, and add its judgements to `known` and the journal."""
    missing: dict[str, Question] = {}
    for pair, order in questions:
        key = question(pair, order)
        if key not in known and pair.baseline != pair.model:
            missing.setdefault(key, (pair, order))
    if not missing:
        return []
    log.info("Asking %s %s questions; %s verdicts are cached", judge.name, f"{len(missing):,}", f"{len(known):,}")
    key_of = {(pair.id, order): key for key, (pair, order) in missing.items()}
    asked: list[Judgement] = []
    with track(f"Judging, {judge.name}", total=len(missing), unit="judgements") as advance:

        def save(judgement: Judgement) -> None:
            key = key_of[judgement.id, judgement.order]
            journal.append([{"question": key, **judgement._asdict()}])
            known[key] = judgement
            asked.append(judgement)
            advance(1, tokens=(judgement.prompt_tokens or 0) + (judgement.completion_tokens or 0))

        judge.judge(list(missing.values()), save)
    return asked


def _judgement(pair: Pair, order: Order, known: Judgement | None) -> Judgement:
    if known is not None:
        return judgement_of(pair, order, known)
    if pair.baseline == pair.model:
        return Judgement(pair.id, order, TIE, attempts=0)
    return Judgement(pair.id, order, None, attempts=0, failure=NOT_ASKED)


def _costs(judge: Judge, cached: Sequence[Judgement], asked: Sequence[Judgement]) -> dict[str, Any]:
    return {
        "prompt_tokens": _sum([j.prompt_tokens for j in (*cached, *asked)]),
        "completion_tokens": _sum([j.completion_tokens for j in (*cached, *asked)]),
        "cost": _sum([judge.cost(j.prompt_tokens, j.completion_tokens) for j in (*cached, *asked)]),
        "cost_now": _sum([judge.cost(j.prompt_tokens, j.completion_tokens) for j in asked]),
    }


def _sum(values: Sequence[int | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _first_shown_wins(judgements: Sequence[Judgement]) -> float | None:
    """Percentage of decided judgements that the answer shown first wins: 50 for a judge without position bias."""
    verdicts = [preference_of(j.preference, j.order) for j in judgements if j.preference is not None]
    decided = [verdict < TIE for verdict in verdicts if verdict != TIE]
    return 100 * sum(decided) / len(decided) if decided else None
