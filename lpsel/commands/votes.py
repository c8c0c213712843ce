"""`lpsel votes`: unblind votes from human evaluation pages, and compute win rates and annotator agreement."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.markup import escape

from lpsel import console
from lpsel.commands.arguments import OneLineParser, run_folder
from lpsel.errors import UserError
from lpsel.evaluation.comparison import describe_problems
from lpsel.evaluation.judgements import JUDGEMENTS
from lpsel.evaluation.statistics import with_interval
from lpsel.evaluation.win_rate import pairwise_metrics, shown_interval, win_rate
from lpsel.judging import human
from lpsel.judging.human import KEY, Key, Vote, VoteFile, read_key
from lpsel.judging.judge import TIE
from lpsel.run_config import RESULT
from lpsel.storage import finite, write_json, write_table

# A annotators, N pairs

OUTCOMES = "outcomes.parquet"
OF_PROMPT = ("prompt_set", "category", "text")  # columns of both tables that describe the prompt
COLUMN_TYPES = {
    "preference": "float64", "mean_preference": "float64", "votes": "int32", "counted": "bool",
    "at": pa.timestamp("ms", "UTC"), "model_chars": "int64", "baseline_chars": "int64",
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel votes",
        description="Unblind the votes on the page of judge=human, and compute win rates and agreement.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="votes downloaded from the page")
    parser.add_argument(
        "--key", type=Path, help=f"the page's {KEY} or its run folder (next to the first FILE, or in runs/*/*)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (runs/votes/TIME)")
    options = parser.parse_args(arguments)
    result = run(options.files, options.key, options.out)
    show(result)
    console.end("lpsel report {}", result["run_dir"])


def run(paths: Sequence[Path], key_path: Path | None = None, run_dir: Path | None = None) -> dict[str, Any]:
    """Write a run folder with the outcomes; returns result.json with the folder as `run_dir`."""
    files = [human.read_votes(path.expanduser()) for path in paths]
    key_path = _find_key(files[0], key_path and key_path.expanduser())
    key = read_key(key_path)
    for file in files:
        human.check_votes(file, key)
    votes = list(dict.fromkeys(vote for file in files for vote in file.votes))
    counted = human.last_votes(votes)
    if all(vote.choice == "skip" for vote in counted):
        raise UserError(paths[0], None, "has no votes except skipped pairs", "pass files with votes")

    folder = run_folder("votes", run_dir, [*(file.path for file in files), key_path])
    names, preference_AN = human.preferences(counted, key)
    outcomes = _outcomes(sorted({vote.pair for vote in counted}), preference_AN, key)
    write_table(folder / JUDGEMENTS, _judgements(votes, set(counted), key), COLUMN_TYPES)
    write_table(folder / OUTCOMES, outcomes, COLUMN_TYPES)
    result = {
        "command": "votes",
        "judge": {"kind": "people", "annotators": len(names)},
        "baseline": key.baseline,
        "model": key.model,
        **_win_rates(outcomes, key),
        "pairs": len(key.pairs),
        "pairs_without_votes": len(key.pairs) + len(key.equal) - len(outcomes),
        "equal_answers": len(key.equal),
        "annotators": [_annotator(name, votes, counted, key) for name in names],
        "agreement": {
            "krippendorff_alpha": human.krippendorff_alpha(preference_AN),
            "krippendorff_alpha_ordinal": human.krippendorff_alpha(preference_AN, ordinal=True),
            "pairs_with_several_votes": int((np.isfinite(preference_AN).sum(axis=0) > 1).sum()),
        },
        "page": key.page,
        "key": key_path.resolve(),
        "files": [file.path.resolve() for file in files],
        "judgements": folder / JUDGEMENTS,
        "outcomes": folder / OUTCOMES,
    }
    write_json(folder / RESULT, result)
    return finite(result) | {"run_dir": folder}


def _find_key(file: VoteFile, key_path: Path | None) -> Path:
    """Find the key of the page that the votes are from by its SHA-256, in `key_path` or the default folders."""
    if key_path is not None and not key_path.is_dir():
        return key_path
    folders = [file.path.parent, *sorted(Path("runs").glob("*/*"))] if key_path is None else [key_path]
    for folder in folders:
        for path in (folder / KEY, *sorted(folder.glob(f"votes/*/{KEY}"))):  # one model, several models
            with suppress(UserError):  # no such file, or a different kind of file
                if read_key(path).page == file.page:
                    return path
    if key_path is not None and (key_path / KEY).exists():
        return key_path / KEY
    where = "next to it or in runs/*/*" if key_path is None else f"in {key_path}"
    raise UserError(file.path, None, f"no {KEY} of its page {where}", "pass --key RUN_FOLDER")


def _outcomes(voted: Sequence[int], preference_AN: NDArray[np.float64], key: Key) -> list[dict[str, Any]]:
    """Rows of outcomes.parquet: pairs with votes, and pairs with equal answers as ties."""
    majority_N, mean_N = human.majority(preference_AN), human.mean_preference(preference_AN)
    votes_N = np.isfinite(preference_AN).sum(axis=0)
    outcomes = [(key.pairs[n], majority_N[n], mean_N[n], votes_N[n]) for n in voted]
    outcomes += [(pair, TIE, TIE, 0) for pair in key.equal]
    return [
        {
            "id": pair.id,
            "preference": preference,
            "mean_preference": mean,
            "votes": votes,
            "judge": "people",
            "model": key.model,
            "baseline": key.baseline,
            **{name: getattr(pair, name) for name in ("model_chars", "baseline_chars", *OF_PROMPT)},
        }
        for pair, preference, mean, votes in outcomes
    ]


def _judgements(votes: Sequence[Vote], counted: set[Vote], key: Key) -> list[dict[str, Any]]:
    return [
        {
            "id": key.pairs[vote.pair].id,
            "model": key.model,
            "baseline": key.baseline,
            "order": human.order(vote, key),
            "preference": human.preference(vote, key),
            "raw": vote.choice,
            "annotator": vote.annotator,
            "at": vote.at,
            "counted": vote in counted,
            **{name: getattr(key.pairs[vote.pair], name) for name in OF_PROMPT},
        }
        for vote in votes
    ]


def _win_rates(outcomes: Sequence[dict[str, Any]], key: Key) -> dict[str, Any]:
    """Win rates by majority and by mean vote; pairs with votes represent those without.

    Pairs without votes do not count as failed. A prompt in several sets counts once overall, and once in each set.
    """
    voted = {outcome["id"] for outcome in outcomes}
    unvoted = [
        dict.fromkeys(outcomes[0]) | {name: getattr(pair, name) for name in ("id", *OF_PROMPT)}
        for pair in key.pairs
        if pair.id not in voted
    ]
    rows = [*outcomes, *unvoted]
    column_N = {name: [row[name] for row in rows] for name in outcomes[0]}
    equal_N = np.isin(column_N["id"], [pair.id for pair in key.equal])
    by_majority = pairwise_metrics(
        column_N["preference"],
        model_chars_N=column_N["model_chars"],
        baseline_chars_N=column_N["baseline_chars"],
        equal_N=equal_N,
        unfinished=True,
        text_N=column_N["text"],
        category_N=column_N["category"],
        prompt_set_N=column_N["prompt_set"],
    )
    distinct = _distinct(column_N["text"])
    texts_of_sets = zip(column_N["prompt_set"], column_N["text"], strict=True)
    distinct_in_sets = _distinct([text and (name, text) for name, text in texts_of_sets])
    mean_N = np.array(column_N["mean_preference"], np.float64)
    by_mean = asdict(win_rate(mean_N[distinct], equal_N=equal_N[distinct]))
    for counted in (by_majority, by_mean):
        counted["failed"] -= sum(n >= len(outcomes) for n in distinct)
    for column, positions in (("category", distinct), ("prompt_set", distinct_in_sets)):
        for n in positions:
            if n >= len(outcomes) and rows[n][column]:
                by_majority[f"by_{column}"][rows[n][column]]["failed"] -= 1
    return {**by_majority, **describe_problems(by_majority), "mean_of_votes": by_mean}


def _distinct(text_N: Sequence[Any]) -> list[int]:
    """Positions of the first row of every text, latest texts first; every unknown text counts as distinct."""
    first: dict[Any, int] = {}
    for n, text in reversed([*enumerate(text_N)]):
        first[n if text is None else text] = n
    return list(first.values())


def _annotator(name: str, votes: Iterable[Vote], counted: Iterable[Vote], key: Key) -> dict[str, Any]:
    last = [vote for vote in counted if vote.annotator == name]
    return {
        "name": name,
        "votes": len(last),
        "skipped": sum(vote.choice == "skip" for vote in last),
        "replaced": sum(vote.annotator == name for vote in votes) - len(last),
        **asdict(win_rate(np.array([human.preference(vote, key) for vote in last], np.float64))),
    }


def show(result: dict[str, Any]) -> None:
    """Print the win rate of every annotator, of the majority and of the mean vote."""
    agreement = result["agreement"]
    alphas = agreement["krippendorff_alpha"], agreement["krippendorff_alpha_ordinal"]
    nominal, ordinal = ("undefined" if alpha is None else f"{alpha:.3f}" for alpha in alphas)
    notes = [
        f"{result['pairs']:,} pairs, {result['pairs_without_votes']:,} without votes, "
        f"{agreement['pairs_with_several_votes']:,} with several.",
        f"Krippendorff's alpha: {nominal} (nominal), {ordinal} (ordinal: a tie between win and loss).",
        *result["warnings"],
    ]
    notes += [
        f"{person['name']} changed {person['replaced']:,} votes; the latest vote on a pair counts."
        for person in result["annotators"]
        if person["replaced"]
    ]
    title = f"{result['model']} against {result['baseline']}"
    numbers = ("wins", "ties", "losses", "skipped", "win rate, %")
    table = console.table(("", *numbers), numbers, title=title, notes=notes)
    for person in result["annotators"]:
        table.add_row(escape(person["name"]), *_cells(person))
    table.add_section()
    table.add_row("majority", *_cells(result))
    table.add_row("mean of votes", *_cells(result["mean_of_votes"]))
    console.show(table)


def _cells(figures: dict[str, Any]) -> list[str]:
    counts = [f"{figures[name]:,}" for name in ("wins", "ties", "losses", "failed")]
    return [*counts, with_interval(figures["win_rate"], *shown_interval(figures))]
