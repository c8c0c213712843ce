"""What a result.json says, as names and a line each: for the end of a command, and for `lpsel show`."""

from collections.abc import Mapping
from typing import Any

from lpsel.commands.ledger import describe_ledger
from lpsel.selection.summary import describe

Pairs = list[tuple[str, str]]
TEXT = 60  # characters of an example


def selection(result: Mapping[str, Any]) -> Pairs:
    """What was chosen, and the rows at both ends of the ranking, if it is one."""
    pairs = [_split(line) for line in describe(dict(result))]
    if result["score"]["all"] is None:
        return pairs
    told: set[int] = set()
    for end in ("first", "last"):
        # Of few rows, the first are the last as well.
        new = [row for row in result["examples"][end] if row["index"] not in told]
        told |= {row["index"] for row in new}
        for row in new:
            name = f"{end.capitalize()} in ranking" if row is new[0] else ""
            pairs.append((name, f"{row['score']:.4g}  row {row['index']}: {row['text'][:TEXT]}"))
    return pairs


def scores(result: Mapping[str, Any]) -> Pairs:
    """Where scores come from and what making them took, whoever made them."""
    if not result["scores"]:
        return []
    if result["scoring"] is None:
        return [("Scores from", f"given: {result['scores']}")]
    cost, made = result["scoring"], "reused" if result["scores_reused"] else "made"
    return [
        ("Scores from", f"{made}: {result['scores']}"),
        ("Scorer", f"{result['scorer']['name']}: {cost['tokens']:,} tokens, {cost['seconds']:,.1f} s"),
    ]


def training(result: Mapping[str, Any]) -> Pairs:
    """What was trained and what it cost."""
    made, adapter = result["training"], result["adapter"]
    pairs = [
        (
            "Target",
            f"{result['base_model']['name']}: {made['rows']:,} rows, {made['epochs']} epochs, {made['steps']:,} steps, "
            f"{made['tokens']:,} tokens, {made['seconds']:,.1f} s, NLL of the last step {made['last_step_nll']:.4f}",
        )
    ]
    if adapter:
        pairs.append(
            ("Adapter", f"{adapter['method']}, {adapter['trainable_parameters']:,} weights: {adapter['folder']}")
        )
    return [*pairs, _split(describe_ledger(result["ledger"]))]


def _split(line: str) -> tuple[str, str]:
    name, _, what = line.strip().partition(": ")
    return name[:1].upper() + name[1:], what
