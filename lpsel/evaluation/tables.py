"""Format evaluation results as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lpsel import console
from lpsel.data.content_ids import listed
from lpsel.evaluation.statistics import with_interval
from lpsel.evaluation.win_rate import shown_interval

NO_INFORMATION = "no information"
MOST_COMPARISONS = 10  # lines below the table

# column title, metric, scale factor, decimal places
REFERENCE_COLUMNS = (
    ("NLL (nats/token)", "nll", 1.0, 3),
    ("perplexity", "perplexity", 1.0, 2),
    ("bits/byte", "bits_per_byte", 1.0, 3),
    ("exact match (%)", "exact_match", 100.0, 1),
    ("ROUGE-L (%)", "rouge_l", 100.0, 1),
)


def reference_table(result: dict[str, Any]) -> Table:
    """Return a table with one row per model, baseline first, and each value above its 95% interval.

    A star marks values whose paired difference to the baseline is significant. Bits per byte are only shown if
    tokenizers differ, and the number of rows only if it differs.
    """
    models = result["models"]
    tokenizers_differ = len({model["tokenizer"] for model in models}) > 1
    rows_differ = len({model["rows"] for model in models}) > 1
    counted = "" if rows_differ else f"{models[0]['rows']:,} "
    notes = [f"95% intervals over {counted}rows: bootstrap, Wilson's for exact matches."]
    if len(models) > 1:
        notes.append(
            f"* The paired difference to {result['baseline']} is significant: p < 0.05 with Holm's correction "
            "for models and metrics (sign-flip test)."
        )
        compared = min(model["difference"]["nll"]["rows"] for model in models[1:])
        if compared != models[0]["rows"]:
            notes.append(f"Differences in NLL use only the {compared:,} rows with the same supervised tokens.")
    if tokenizers_differ:
        notes.append("Tokenizers differ: compare bits/byte, not NLL or perplexity.")
    notes += _unusable(result)
    rows = []
    for model in models:
        cells = {"model": model["name"]} | ({"rows": f"{model['rows']:,}"} if rows_differ else {})
        for title, metric, factor, digits in REFERENCE_COLUMNS:
            if metric not in model["metrics"] or (metric == "bits_per_byte" and not tokenizers_differ):
                continue  # no answers were generated, or NLL is comparable
            estimate = model["metrics"][metric]
            scaled = {part: None if value is None else value * factor for part, value in estimate.items()}
            star = "*" if _differs(model, metric) else ""
            cells[title] = with_interval(**scaled, form=f".{digits}f", separator=f"{star}\n")
        rows.append(cells)
    return _table(rows, notes)


def pairwise_table(result: dict[str, Any]) -> Table:
    """Return a table with one row per model: its results against the baseline, each value above its 95% interval.

    For human judges, the table lists the voting pages instead.
    """
    if "win_rate" not in result:
        pages = console.table(("model", "voting page"))
        for model in result["models"]:
            pages.add_row(escape(model["name"]), escape(str(model["page"])))
        return pages
    judge = result["judge"]["name"] or "imported verdicts"
    corrected = ", with Holm's correction" if len(result["models"]) > 1 else ""
    notes = [
        f"Against {result['baseline']}, judged by {judge}. 95% intervals over prompts: Wilson's for win rates, "
        f"Agresti and Min's for differences; p-values from the sign-flip test{corrected}."
    ]
    if any(model["failed"] for model in result["models"]):
        notes.append("Failed prompts lack a valid verdict in at least one order; they are not wins, ties or losses.")
    notes += [_difference(pair) for pair in result["comparisons"][:MOST_COMPARISONS] if pair["n"]]
    if (more := len(result["comparisons"]) - MOST_COMPARISONS) > 0:
        notes.append(f"result.json has {more} more comparisons of two models.")
    notes += result["warnings"] + _unusable(result)
    for name, pairs in (result.get("judges") or {}).items():
        notes += [_agreement(name, pair) for pair in pairs if pair["n"]]
    return _table([_pairwise_row(model) for model in result["models"]], notes)


def _pairwise_row(model: dict[str, Any]) -> dict[str, str]:
    """Format the results of one model against the baseline as cells by column title."""
    p_value, chars, baseline_chars = model["p_value_holm"], model["model_mean_chars"], model["baseline_mean_chars"]
    unknown = chars is None or baseline_chars is None
    rate = with_interval(model["win_rate"], *shown_interval(model), separator="\n")
    controlled = with_interval(
        model["length_controlled_win_rate"],
        model["length_controlled_ci_low"],
        model["length_controlled_ci_high"],
        separator="\n",
    )
    return {
        "model": model["name"],
        **{count: f"{model[count]:,}" for count in ("wins", "ties", "losses", "failed")},
        "win rate (%)": rate if model["informative"] else NO_INFORMATION,
        "p-value": "-" if p_value is None else f"{p_value:.2g}",
        "flip rate (%)": with_interval(model["flip_rate"], None, None),
        "length-controlled win rate (%)": controlled if model["informative"] else NO_INFORMATION,
        "mean length (characters)": "-" if unknown else f"{chars:,.0f}\n(baseline {baseline_chars:,.0f})",
    }


def _unusable(result: dict[str, Any]) -> list[str]:
    kinds = result.get("rows_unusable")  # imported verdicts have none
    return [f"Unusable rows are left out: {listed(kinds)}."] if kinds else []


def _difference(pair: dict[str, Any]) -> str:
    """Format the paired difference between two models as one line."""
    first, second = pair["models"]
    interval = "" if pair["ci_low"] is None else f" [{pair['ci_low']:+.1f}, {pair['ci_high']:+.1f}]"
    p_value = f"p = {pair['p_value_holm']:.2g} with Holm's correction"
    return f"{first} minus {second}: {pair['difference']:+.1f} points{interval}, {p_value}, {pair['n']:,} prompts."


def lm_eval_table(result: dict[str, Any]) -> Table:
    """Return a table with one row per metric of the harness and one column per model."""
    rows = []
    for metric in dict.fromkeys(metric for model in result["models"] for metric in model["metrics"]):
        cells = {"task/metric": metric}
        for model in result["models"]:
            estimate = model["metrics"].get(metric, {"value": None})
            error = "" if estimate.get("standard_error") is None else f" ± {estimate['standard_error']:.4f}"
            cells[model["name"]] = "-" if estimate["value"] is None else f"{estimate['value']:.4f}{error}"
        rows.append(cells)
    return _table(rows or [{"task/metric": "no metrics"}], ["lm-evaluation-harness, value ± standard error"])


def _table(rows: Sequence[dict[str, str]], notes: Sequence[str]) -> Table:
    """Build a table from rows that map columns to cells; the first column holds names, the others numbers."""
    columns = list(rows[0])
    table = console.table(columns, columns[1:], notes=notes)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table


def _agreement(model: str, pair: dict[str, Any]) -> str:
    kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.2f}, weighted {pair['weighted_kappa']:.2f}"
    on = f" on {model}" if model else ""
    both = " and ".join(pair["judges"])
    return f"{both} agree{on} in {pair['agreement']:.1f}% of {pair['n']:,} prompts; Cohen's kappa {kappa}."


def _differs(model: dict[str, Any], metric: str) -> bool:
    difference = (model["difference"] or {}).get("nll" if metric == "perplexity" else metric)
    return difference is not None and difference["p_value_holm"] is not None and difference["p_value_holm"] < 0.05
