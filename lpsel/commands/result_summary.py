"""Summarize result.json as (name, text) pairs, for the end of a command, `lpsel show` and dataset cards."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from lpsel.console import shortened
from lpsel.report.runs import rule_name

Pairs = list[tuple[str, str]]
TEXT = 40  # characters of an example, which then fits on a line of 80
EXAMPLES = 3  # rows from each end of the ranking
ODD = {
    "undefined": "undefined",
    "not_finite": "of these with a record that is not finite",
    "above_1": "above 1",
    "below_0": "below 0",
}


def statistics(result: Mapping[str, Any]) -> Pairs:
    """Number of selected rows, their scores and lengths, and the excluded rows."""
    pairs = [(f"Selection {rule_name(result)}", _selected_rows(result))]
    ranges = [
        f"{name} {scores['lowest']:.4g} to {scores['highest']:.4g}, mean {scores['mean']:.4g}"
        for name, scores in result["score"].items()
        if scores is not None
    ]
    if ranges:
        pairs.append(("Scores", "; ".join(ranges)))
    unit = "characters" if result["mean_tokens"]["response"]["all"] is None else "tokens"
    lengths = (f"{side} {m['selected']:.1f} (all: {m['all']:.1f})" for side, m in result[f"mean_{unit}"].items())
    pairs.append((f"Mean {unit}", ", ".join(lengths)))
    if result["reasons"]:
        pairs.append(("Excluded", ", ".join(f"{reason} ({count:,})" for reason, count in result["reasons"].items())))
    if query := result.get("query"):
        rows = f"{query['rows']:,} rows of {query['path']}, {query['rows_in_data']:,} also in the data"
        pairs.append(("Query", rows))
    if odd := [f"{count:,} {ODD[name]}" for name, count in result["odd_scores"].items() if count]:
        count_as_0 = result["budget"] == "paper" and result["odd_scores"]["undefined"]
        pairs.append(("Odd scores", ", ".join(odd) + ("; undefined scores count as 0" if count_as_0 else "")))
    return [*pairs, *diagnosis(result["diagnosis"])] if result.get("diagnosis") else pairs


def _selected_rows(result: Mapping[str, Any]) -> str:
    """Number and percentage of the selected rows, clusters they are from, and ties at the cutoff."""
    percentage, requested = f"{_percentage(result):.3g}%", f"{result['pct']:g}%"
    share = percentage + (" of the tokens" if _in_tokens(result) else "")
    if percentage != requested:
        share += f", {requested} requested"
    text = f"{result['n_selected']:,} of {result['n_total']:,} rows ({share}, budget {result['budget']})"
    if result["clusters"] is not None:
        text += f", from {result['clusters_selected']:,} of {result['clusters']:,} clusters"
        unclustered = result["rows_in_no_cluster"]
        if unclustered["all"]:
            text += f" and {unclustered['selected']:,} of {unclustered['all']:,} rows without a cluster"
    if result.get("n_tied"):
        text += f"; {result['n_tied']:,} rows are tied at the cutoff"
    return text


def _in_tokens(result: Mapping[str, Any]) -> bool:
    return result["settings"].get("pct_of") == "tokens"


def _percentage(result: Mapping[str, Any]) -> float:
    """Selected percentage of all rows, or of all tokens with `selection.pct_of=tokens`."""
    selected, total = result["n_selected"], result["n_total"]
    if _in_tokens(result):
        sides = result["mean_tokens"].values()
        selected *= sum(mean["selected"] for mean in sides)
        total = (total - sum(result["rows_unusable"].values())) * sum(mean["all"] for mean in sides)
    return 100 * selected / total


def diagnosis(diagnosed: Mapping[str, Any]) -> Pairs:
    """What the score correlates with, what was selected, and warnings with the options that address them."""
    pairs = []
    numbers = {**(diagnosed["spearman"] or {}), "clusters": diagnosed["clusters"]}
    known = [f"{name} {value:.2f}" for name, value in numbers.items() if value is not None and isfinite(value)]
    if known:
        pairs.append(("Score correlates", ", ".join(known) + " (Spearman; clusters: fraction of rank variance)"))
    median = diagnosed["median_response"]
    lengths = f"{median['selected']:,.0f} {median['unit']} (all: {median['all']:,.0f})"
    counts = {
        "known before training": diagnosed["known"],
        "learned by the scorer": diagnosed["learned"],
        "with rising loss": diagnosed["rising"],
        "duplicates": diagnosed["duplicates"],
        f"near-duplicates among {diagnosed['near_duplicates_among']:,}": diagnosed["near_duplicates"],
    }
    counted = [f"{count:,} {what}" for what, count in counts.items() if count is not None]
    pairs.append(("Selected rows", ", ".join([f"median response {lengths}", *counted])))
    return [*pairs, *(("Warning", warning) for warning in diagnosed["warnings"])]


def selection(result: Mapping[str, Any]) -> Pairs:
    """`statistics`, and the rows at both ends of the ranking, if the scores rank rows."""
    pairs = statistics(result)
    if result["score"]["all"] is None:
        return pairs
    first, last = result["examples"]["first"][:EXAMPLES], result["examples"]["last"][-EXAMPLES:]
    listed = {row["index"] for row in first}  # in a small dataset, the first rows are also the last
    last = [row for row in last if row["index"] not in listed]
    for name, rows in (("First in ranking", first), ("Last in ranking", last)):
        for number, row in enumerate(rows):
            text = f"{row['score']:.4g}  row {row['index']}: {shortened(row['text'], TEXT)}"
            pairs.append((name if number == 0 else "", text))
    return pairs


def run(result: Mapping[str, Any]) -> Pairs:
    """`selection`, the scores and, for a run of `train`, the trained model."""
    pairs = [*selection(result), *_scores(result)]
    return [*pairs, *_training(result)] if result["command"] == "train" else pairs


def _scores(result: Mapping[str, Any]) -> Pairs:
    """Origin of the scores, and the cost of computing them, in this run or an earlier one."""
    if not result["scores"]:
        return []
    if result["scoring"] is None:
        return [("Scores from", f"file: {result['scores']}")]
    cost, source = result["scoring"], "reused" if result["scores_reused"] else "new"
    return [
        ("Scores from", f"{source}: {result['scores']}"),
        ("Scorer", f"{result['scorer']['name']}: {cost['tokens']:,} tokens, {cost['seconds']:,.1f} s"),
    ]


def _training(result: Mapping[str, Any]) -> Pairs:
    """The trained model, and the cost of training."""
    from lpsel.training.costs import describe_ledger  # imports Lightning

    cost, adapter = result["training"], result["adapter"]
    target = (
        f"{result['base_model']['name']}: {cost['rows']:,} rows, {cost['epochs']} epochs, {cost['steps']:,} steps, "
        f"{cost['tokens']:,} tokens, {cost['seconds']:,.1f} s, NLL of the last step {cost['last_step_nll']:.4f}"
    )
    pairs = [("Target", target)]
    if adapter:
        weights = f"{adapter['trainable_parameters']:,} trainable parameters"
        pairs.append(("Adapter", f"{adapter['method']}, {weights}: {adapter['folder']}"))
    return [*pairs, ("Cost", describe_ledger(result["ledger"]))]
