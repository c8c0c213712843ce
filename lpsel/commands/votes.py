"""`votes`: what people said of blinded pairs, unblinded: win rate, agreement, a table of all votes."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpsel import console
from lpsel.commands.arguments import OneLineParser, run_folder
from lpsel.errors import UserError
from lpsel.judging import votes as ballots
from lpsel.judging.human import KEY, Key, read_key
from lpsel.judging.judge import TIE
from lpsel.judging.votes import Vote, VoteFile
from lpsel.run_config import RESULT
from lpsel.storage import finite, write_atomically, write_json

# A annotators, N pairs

JUDGEMENTS = "judgements.parquet"
OUTCOMES = "outcomes.parquet"


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel votes ARGUMENTS`.

    Raises:
        UserError: whatever the user can mend.
    """
    parser = OneLineParser(
        prog="lpsel votes",
        description="Read the votes of one or more people on the page of judge=human, unblind them, and count.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what annotators downloaded")
    parser.add_argument(
        "--key",
        type=Path,
        help=f"the page's {KEY}, or the run folder that has it (else looked for beside the first FILE and in runs/*/*)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (runs/votes/TIME)")
    given = parser.parse_args(arguments)
    result = run(given.files, given.key, given.out)
    show(result)
    print(result["run_dir"], flush=True)


def run(given: Sequence[Path], key_path: Path | None = None, run_dir: Path | None = None) -> dict[str, Any]:
    """Read votes, write the run folder, and return what result.json says, with the folder as `run_dir`.

    Raises:
        UserError: a file that is not one of votes, votes on another page, no key, nothing but skipped pairs.
    """

    from lpsel.evaluation.head_to_head import figures

    files = [ballots.read_file(path.expanduser()) for path in given]
    key_path = _find_key(files[0]) if key_path is None else key_path.expanduser()
    key_path = key_path / KEY if key_path.is_dir() else key_path
    key = read_key(key_path)
    for file in files:
        ballots.check(file, key)
    votes = list(dict.fromkeys(vote for file in files for vote in file.votes))
    counted = ballots.last_votes(votes)
    names, preference_AN = ballots.preferences(counted, key)
    if not np.isfinite(preference_AN).any():
        raise UserError(f"{given[0]}: has no vote but skipped pairs; give files with votes.")

    folder = run_folder("votes", run_dir, [*(path.expanduser() for path in given), key_path])
    _write_table(folder / JUDGEMENTS, _judgements(votes, set(counted), key))
    voted = sorted({vote.pair for vote in counted})  # the rest was not looked at
    _write_table(folder / OUTCOMES, _outcomes(voted, preference_AN, key))
    counted_pairs = [*(key.pairs[pair] for pair in voted), *key.equal]

    def with_equal(preference_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([preference_N[voted], np.full(len(key.equal), TIE)])

    result = {
        "command": "votes",
        "judge": {"kind": "people", "annotators": len(names)},
        "baseline": key.baseline,
        "model": key.model,
        **figures(
            with_equal(ballots.majority(preference_AN)),
            model_chars_N=[pair.model_chars for pair in counted_pairs],
            baseline_chars_N=[pair.baseline_chars for pair in counted_pairs],
            category_N=[pair.category for pair in counted_pairs],
            prompt_set_N=[pair.prompt_set for pair in counted_pairs],
        ),
        "pairs": len(key.pairs),
        "pairs_without_votes": len(key.pairs) - len(voted),
        "equal_answers": len(key.equal),
        "mean_of_votes": _figures(with_equal(ballots.mean_preference(preference_AN))),
        "annotators": [
            _annotator(name, preference_N, votes, counted)
            for name, preference_N in zip(names, preference_AN, strict=True)
        ],
        "agreement": {
            "krippendorff_alpha": ballots.krippendorff_alpha(preference_AN),
            "level": "nominal",
            "pairs_with_several_votes": int((np.isfinite(preference_AN).sum(axis=0) > 1).sum()),
        },
        "page": key.page,
        "key": key_path.resolve(),
        "files": [file.path.resolve() for file in files],
        "judgements": folder / JUDGEMENTS,
        "outcomes": folder / OUTCOMES,
    }
    result = finite(result)
    write_json(folder / RESULT, result)
    return result | {"run_dir": folder}


def _find_key(file: VoteFile) -> Path:
    """The key of the page that the votes are on; they carry its SHA-256, so no other is taken for it."""
    for path in [file.path.parent / KEY, *sorted(Path("runs").glob(f"*/*/{KEY}"))]:
        try:
            if path.is_file() and read_key(path).page == file.page:
                return path
        except UserError:
            continue  # a file of the same name that is something else
    raise UserError(f"{file.path}: no {KEY} of its page beside it or in runs/*/*; give --key RUN_FOLDER.")


def _annotator(
    name: str, preference_N: NDArray[np.float64], votes: Iterable[Vote], counted: Iterable[Vote]
) -> dict[str, Any]:
    theirs = [vote for vote in counted if vote.annotator == name]
    return {
        "name": name,
        "votes": len(theirs),
        "skipped": sum(vote.choice == "skip" for vote in theirs),
        "replaced": sum(vote.annotator == name for vote in votes) - len(theirs),
        **_figures(preference_N[[vote.pair for vote in theirs]]),
    }


def _figures(preference_N: NDArray[np.float64]) -> dict[str, Any]:
    from lpsel.evaluation.winrate import win_rate

    return asdict(win_rate(preference_N))


def _judgements(votes: Sequence[Vote], counted: set[Vote], key: Key) -> list[dict[str, Any]]:
    return [
        {
            "id": key.pairs[vote.pair].id,
            "order": ballots.order(vote, key),
            "preference": ballots.preference(vote, key),
            "raw": vote.choice,
            "annotator": vote.annotator,
            "at": vote.at,
            "counted": vote in counted,
            "prompt_set": key.pairs[vote.pair].prompt_set,
            "category": key.pairs[vote.pair].category,
        }
        for vote in votes
    ]


def _outcomes(voted: Sequence[int], preference_AN: NDArray[np.float64], key: Key) -> list[dict[str, Any]]:
    """A row for every pair that was voted on, as tables of judgements have it: `preference` is the majority.

    Pairs with equal answers follow, ties without a vote.
    """
    majority_N = ballots.majority(preference_AN)
    mean_N = ballots.mean_preference(preference_AN)
    votes_N = np.isfinite(preference_AN).sum(axis=0)
    found = [(key.pairs[n], finite(majority_N[n]), finite(mean_N[n]), int(votes_N[n])) for n in voted]
    found += [(pair, TIE, TIE, 0) for pair in key.equal]
    return [
        {
            "id": pair.id,
            "preference": preference,
            "mean_preference": mean,
            "votes": votes,
            "judge": "people",
            "model": key.model,
            "baseline": key.baseline,
            "model_chars": pair.model_chars,
            "baseline_chars": pair.baseline_chars,
            "prompt_set": pair.prompt_set,
            "category": pair.category,
        }
        for pair, preference, mean, votes in found
    ]


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "preference": pa.float64(), "mean_preference": pa.float64(), "votes": pa.int32(), "counted": pa.bool_(),
        "at": pa.timestamp("ms", "UTC"), "model_chars": pa.int64(), "baseline_chars": pa.int64(),
    }  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, types.get(name, pa.string())) for name in rows[0]]))
    write_atomically(path, lambda file: pq.write_table(table, file))


def show(result: dict[str, Any]) -> None:
    """Print what every annotator said and what all said together."""
    from rich.markup import escape
    from rich.table import Table

    agreement = result["agreement"]
    alpha = agreement["krippendorff_alpha"]
    caption = [
        f"{result['pairs']:,} pairs, {result['pairs_without_votes']:,} without a vote, "
        f"{agreement['pairs_with_several_votes']:,} with several.",
        f"Krippendorff's alpha (nominal) {'is not defined here' if alpha is None else f'{alpha:.3f}'}.",
    ]
    caption += [
        escape(
            f"{person['name']} changed {person['replaced']:,} votes in a later file; the last vote on a pair counts."
        )
        for person in result["annotators"]
        if person["replaced"]
    ]
    title = escape(f"{result['model']} against {result['baseline']}")
    table = Table(title=title, title_justify="left", caption="\n".join(caption), caption_justify="left")
    table.add_column("", overflow="fold")
    for column in ("wins", "ties", "losses", "skipped", "win rate, %"):
        table.add_column(column, justify="right")
    for person in result["annotators"]:
        table.add_row(escape(person["name"]), *_cells(person))
    table.add_section()
    table.add_row("majority", *_cells(result))
    table.add_row("mean of votes", *_cells(result["mean_of_votes"]))
    console.show(table)


def _cells(figures: dict[str, Any]) -> list[str]:
    counts = [f"{figures[name]:,}" for name in ("wins", "ties", "losses", "failed")]
    if figures["win_rate"] is None:
        return [*counts, "-"]
    ends = "" if figures["ci_low"] is None else f" [{figures['ci_low']:.1f}, {figures['ci_high']:.1f}]"
    return [*counts, f"{figures['win_rate']:.1f}{ends}"]
