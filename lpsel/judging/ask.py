"""A judge is asked what it has not been asked before, and what all of it cost is added up."""

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from lpsel.console import track
from lpsel.judging.judge import TIE, Judge, Judgement, Order, Pair, preference_of
from lpsel.judging.store import Store, question

log = logging.getLogger(__name__)

NOT_ASKED = "price cap"


def judge_pairs(judge: Judge, pairs: Sequence[Pair], cache_dir: Path) -> tuple[list[Judgement], dict[str, Any]]:
    """What a judge says of every pair in every order it is shown in, asked for where it is not known yet.

    Equal answers are a tie, and nobody is asked.

    Args:
        judge: its verdicts are kept under cache_dir/judgements, by its identity and the texts.
        pairs: their ids are distinct.

    Returns:
        A judgement for every pair and order, pairs in their order; of those that a price cap left out the failure is
        "price cap". And the ledger: `judgements`, `equal` answers, `asked` now, `reused` from earlier runs, `failed`,
        `prompt_tokens`, `completion_tokens` and `cost` in dollars of all of them whenever asked (None where the judge
        reports none), `cost_now` of those asked now, `first_shown_wins` (percentage of the judgements with a winner
        that the answer shown first has won), `stopped_by_cap`, `kept` (the file).

    Raises:
        UserError: what no further question could mend; what the judge has said by then is kept.
    """
    wanted: list[tuple[Pair, Order]] = [(pair, order) for pair in pairs for order in judge.orders]
    assert len({pair.id for pair in pairs}) == len(pairs), "ids are distinct"
    said: dict[str, Judgement] = {}  # by question
    asked_now: list[Judgement] = []
    with Store.of(judge, cache_dir) as store:
        missing: dict[str, tuple[Pair, Order]] = {}
        for pair, order in wanted:
            key = question(pair, order)
            known = store.find(pair, order)
            if known is not None:
                said[key] = known
            elif pair.baseline != pair.model:
                missing.setdefault(key, (pair, order))
        reused = len(said)
        if missing:
            log.info("Asking %s %s questions; %s are answered already", judge.name, f"{len(missing):,}", f"{reused:,}")
            pair_of = {(pair.id, order): pair for pair, order in missing.values()}
            lock = Lock()
            with track(f"Judging, {judge.name}", total=len(missing), unit="judgements") as advance:

                def keep(judgement: Judgement) -> None:
                    pair = pair_of[judgement.id, judgement.order]
                    with lock:
                        store.keep(pair, judgement)
                        said[question(pair, judgement.order)] = judgement
                        asked_now.append(judgement)
                        advance(1, tokens=(judgement.prompt_tokens or 0) + (judgement.completion_tokens or 0))

                judge.judge(list(missing.values()), keep)
        judgements = [_of(pair, order, said.get(question(pair, order))) for pair, order in wanted]
    every = list(said.values())
    ledger = {
        "judge": judge.name,
        "identity": judge.identity(),
        "judgements": len(judgements),
        "equal": sum(pair.baseline == pair.model for pair, _ in wanted),
        "asked": len(asked_now),
        "reused": reused,
        "failed": sum(judgement.preference is None for judgement in judgements),
        "prompt_tokens": _sum([j.prompt_tokens for j in every]),
        "completion_tokens": _sum([j.completion_tokens for j in every]),
        "cost": _sum([judge.cost(j) for j in every]),
        "cost_now": _sum([judge.cost(j) for j in asked_now]),
        "first_shown_wins": _first_shown_wins(judgements),
        "stopped_by_cap": any(judgement.failure == NOT_ASKED for judgement in judgements),
        "kept": str(store.path),
    }
    if ledger["stopped_by_cap"]:
        left = sum(judgement.failure == NOT_ASKED for judgement in judgements)
        log.warning(
            "The price cap is reached: %s of %s judgements were not asked for. Start again with a higher "
            "judge.max_cost for the rest.",
            f"{left:,}",
            f"{len(judgements):,}",
        )
    return judgements, ledger


def _of(pair: Pair, order: Order, said: Judgement | None) -> Judgement:
    if said is not None:
        return said._replace(id=pair.id, order=order, preference=_seen_from(said, order))
    if pair.baseline == pair.model:
        return Judgement(pair.id, order, TIE, attempts=0)
    return Judgement(pair.id, order, None, attempts=0, failure=NOT_ASKED)


def _seen_from(said: Judgement, order: Order) -> float | None:
    """The preference of a judgement of the same texts as shown, where baseline and model may have changed places."""
    if said.preference is None or said.order == order:
        return said.preference
    return 2 * TIE - said.preference


def _first_shown_wins(judgements: Sequence[Judgement]) -> float | None:
    """Percentage of the judgements with a winner that the answer shown first has won; None where there are none.

    In both orders 50 is a judge whom the order does not sway.
    """
    verdicts = [preference_of(j.preference, j.order) for j in judgements if j.preference is not None]
    decided = [verdict < TIE for verdict in verdicts if verdict != TIE]
    return 100 * sum(decided) / len(decided) if decided else None


def _sum(values: Sequence[int | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
