"""Results of evaluations as tables for the terminal."""

from typing import Any

from rich.markup import escape
from rich.table import Table

COLUMNS = (
    ("NLL", "nll", 1.0, 3),
    ("perplexity", "perplexity", 1.0, 2),
    ("bits/byte", "bits_per_byte", 1.0, 3),
    ("exact match %", "exact_match", 100.0, 1),
    ("ROUGE-L %", "rouge_l", 100.0, 1),
)


def reference_table(result: dict[str, Any]) -> Table:
    """A row for every model, each figure above its 95 % interval; the baseline comes first.

    An interval of the difference to the baseline that leaves out 0 is marked with a star.
    """
    models = result["models"]
    notes = ["95 % bootstrap intervals over rows."]
    if len(models) > 1:
        notes.append(
            f"* differs from {escape(result['baseline'])}: the interval of the paired difference leaves out 0."
        )
    if len({model["tokenizer"] for model in models}) > 1:
        notes.append("Tokenizers differ: compare bits/byte, not NLL or perplexity.")
    table = Table(caption="\n".join(notes), caption_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("rows", justify="right")
    for title, *_ in COLUMNS:
        table.add_column(title, justify="right")
    for model in models:
        cells = [_cell(model, metric, scale, digits) for _, metric, scale, digits in COLUMNS]
        table.add_row(escape(model["name"]), f"{model['rows']:,}", *cells)
    return table


def pairwise_table(result: dict[str, Any]) -> Table:
    """A row for every model: how it fares against the baseline, each figure above its 95 % interval.

    With people as judges, a row for every page to vote on.
    """
    if "win_rate" not in result:
        pages = Table("model", "page to vote on", caption="Then: lpsel votes FILE...", caption_justify="left")
        for model in result["models"]:
            pages.add_row(escape(model["name"]), escape(str(model["page"])))
        return pages
    several = len(result["models"]) > 1
    notes = [
        f"Against {escape(str(result['baseline']))}, judged by {escape(str(result['judge']['name'] or 'others'))}. "
        "95 % bootstrap intervals over prompts; p: exact sign test" + (", Holm's correction." if several else ".")
    ]
    if any(model["failed"] for model in result["models"]):
        notes.append("Failed: no verdict that could be read in every order; not among wins, ties and losses.")
    for of_model, pairs in (result.get("judges") or {}).items():
        notes += [escape(_agreement(of_model, pair)) for pair in pairs if pair["n"]]
    table = Table(caption="\n".join(notes), caption_justify="left")
    table.add_column("model", overflow="fold")
    for title in ("wins", "ties", "losses", "failed", "win rate %", "p", "flips %", "length-controlled %", "chars"):
        table.add_column(title, justify="right")
    for model in result["models"]:
        p = model["p_value_holm"]
        table.add_row(
            escape(model["name"]),
            *(f"{model[name]:,}" for name in ("wins", "ties", "losses", "failed")),
            _interval(model["win_rate"], model["ci_low"], model["ci_high"]),
            "-" if p is None else f"{p:.2g}",
            "-" if model["flip_rate"] is None else f"{model['flip_rate']:.1f}",
            _interval(
                model["length_controlled_win_rate"],
                model["length_controlled_ci_low"],
                model["length_controlled_ci_high"],
            ),
            _lengths(model["model_mean_chars"], model["baseline_mean_chars"]),
        )
    return table


def _agreement(model: str, pair: dict[str, Any]) -> str:
    kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    on = f" on {model}" if model else ""
    both = " and ".join(pair["judges"])
    return f"{both} agree{on} in {pair['agreement']:.1f} % of {pair['n']:,} prompts; Cohen's kappa {kappa}."


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f}\n[{low:.1f}, {high:.1f}]"


def _lengths(model: float | None, baseline: float | None) -> str:
    return "-" if model is None or baseline is None else f"{model:,.0f}\n({baseline:,.0f})"


def _cell(model: dict[str, Any], metric: str, scale: float, digits: int) -> str:
    value, low, high = (model["metrics"][metric][part] for part in ("value", "low", "high"))
    if value is None:
        return "-"
    star = "*" if _differs(model, metric) else ""
    text = f"{value * scale:.{digits}f}{star}"
    return text if low is None or high is None else f"{text}\n[{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def _differs(model: dict[str, Any], metric: str) -> bool:
    difference = (model["difference"] or {}).get("nll" if metric == "perplexity" else metric)
    if difference is None or difference["low"] is None:
        return False
    return difference["low"] > 0 or difference["high"] < 0
