"""`lpsel agreement`: compare tables of scores, and report their agreement as numbers, figures and an HTML page."""

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.markup import escape

from lpsel import console
from lpsel.commands.agreement_inputs import Scored, read_all, read_clusters, read_texts, same_scores, with_dataset
from lpsel.commands.arguments import OneLineParser, run_folder
from lpsel.console import decimals
from lpsel.run_config import RESULT
from lpsel.scoring.metrics import METRICS
from lpsel.selection.agreement_study import DEFINED, Study, numbers, study
from lpsel.selection.budget import check_pct
from lpsel.storage import finite, write_csv, write_file, write_json

NUMBERS = "agreement.json"
PAGE = "agreement.html"
# Properties that are counted among the lowest rows, with their titles
COUNTED = {"known": "known", "rising": "rising", "duplicates": "duplicate", "near_duplicates": "near-duplicate"}


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel agreement",
        description="Measure how well scorers agree on which rows are hard.",
        epilog="TABLE is a scores folder, a run folder of select or train, a .parquet or .csv table with nll_0.. or "
        "ppl_0.., or FILE.npz:SCORER (FILE.npz for all of its scorers).",
        allow_abbrev=False,
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="two or more tables of scores of the same rows")
    parser.add_argument(
        "--pct", type=_percentages, default="10", metavar="P[,P...]", help="percentages of lowest rows to compare (10)"
    )
    parser.add_argument(
        "--clusters",
        metavar="FILE",
        help="table or FILE.npz with a cluster for every row (default: the first table's that has them)",
    )
    dataset = "the dataset: leaves out empty answers, and counts near-duplicates among the lowest rows"
    parser.add_argument("--dataset", metavar="FILE", help=dataset)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (runs/agreement/TIME)")
    options = parser.parse_args(arguments)
    result = run(options.tables, options.out, options.pct, options.clusters, options.dataset)
    show(result["numbers"])
    show_diagnosis(result["numbers"])
    console.end(f"open {{}}/{PAGE} in a browser", result["run_dir"])


def _percentages(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be percentages, separated by commas") from None


def run(
    arguments: Sequence[str],
    run_dir: Path | None = None,
    pcts: Sequence[float] = (10.0,),
    clusters: str | None = None,
    dataset: str | None = None,
) -> dict[str, Any]:
    """Compare tables of scores and write the run folder; returns its result.json and the contents of agreement.json."""
    from lpsel.report.page import agreement_page

    pcts = sorted({check_pct(pct, "--pct", "set the percentage of lowest rows to compare") for pct in pcts})
    tables = read_all(arguments)
    source = None
    if dataset is not None:
        tables, source = with_dataset(tables, dataset)
    cluster_N, cluster_source = _clusters(tables, clusters)
    compared = study([scored.name for scored in tables], [scored.table for scored in tables], pcts, cluster_N)

    folder = run_folder("agreement", run_dir, [*arguments, *filter(None, [clusters, dataset])])
    texts = () if source is None else read_texts(source, compared.lowest.reshape(-1, len(compared.defined)))
    values = finite({"command": "agreement"} | numbers(compared, *texts))
    values["notes"] += same_scores(tables)
    for table, scored in zip(values["tables"], tables, strict=True):
        table["source"] = scored.source
    if values["clusters"]:
        values["clusters"]["source"] = cluster_source
    write_json(folder / NUMBERS, values)
    write_file(folder / PAGE, agreement_page(compared, values))
    result = {
        "command": "agreement",
        "scorers": compared.names,
        "sources": [scored.source for scored in tables],
        "clusters": cluster_source,
        "dataset": dataset,
        "pct": pcts,
        "metrics": compared.metrics,
        "n_total": values["n"],
        "n_defined": values["n_defined"],
        "agreement": folder / NUMBERS,
        "page": folder / PAGE,
        "tables": _write_tables(folder, values),
        "figures": _write_figures(folder, compared),
    }
    write_json(folder / RESULT, result)
    return result | {"numbers": values, "run_dir": folder}


def _clusters(tables: Sequence[Scored], argument: str | None) -> tuple[Any, str | None]:
    """Clusters from a file, or from the first table that has them, and the path of the file."""
    if argument is not None:
        return read_clusters(argument, tables[0].table.index), argument
    for scored in tables:
        if scored.table.cluster is not None:
            return scored.table.cluster, scored.source
    return None, None


def _write_tables(folder: Path, values: dict[str, Any]) -> list[Path]:
    written = []
    for name in ("tables", "pairs", "within", "diagnosis"):
        if values[name]:
            path = folder / f"{name}.csv"
            write_csv(path, _flat_entries(values[name]))
            written.append(path)
    return written


def _flat_entries(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flatten entries to one level of keys, the same in all entries, without keys that are always None."""
    flat = [_flat(entry) for entry in entries]
    columns = dict.fromkeys(name for entry in flat for name, value in entry.items() if value is not None)
    return [{name: entry.get(name) for name in columns} for entry in flat]


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path, such as lowest_10_share for `share` in the list `lowest`, where `pct` is 10."""
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        name = prefix + key
        if isinstance(value, list):
            for part in value:
                numbers = {column: number for column, number in part.items() if column != "pct"}
                flat |= _flat(numbers, f"{name}_{part['pct']:g}_")
        elif isinstance(value, dict):
            flat |= _flat(value, f"{name}_")
        else:
            flat[name] = value
    return flat


def _write_figures(folder: Path, compared: Study) -> list[Path]:
    from lpsel.report.agreement_figures import agreement_figures
    from lpsel.report.drawing import save_png

    return [
        save_png(figure, folder / f"{name}.png")
        for metric in compared.metrics
        for name, _, figure in agreement_figures(compared, metric)
    ]


def show(values: dict[str, Any]) -> None:
    """Print a table of all pairs of scorers, over the rows that are defined in all tables."""
    undefined = values["n"] - values["n_defined"]
    left_out = f"; {undefined:,} rows without a score or with an empty answer are left out" if undefined else ""
    notes = [f"{values['n_defined']:,} rows{left_out}", *values["notes"]]
    numbers = ["Spearman", "tau-b", *(f"lowest {pct:g}% in common (chance)" for pct in values["pct"])]
    table = console.table(["metric", "scorer", "and", *numbers], numbers, notes=notes)
    for metric, pairs in groupby((p for p in values["pairs"] if p["rows"] == DEFINED), key=itemgetter("metric")):
        title = METRICS[metric].title
        for pair in pairs:
            shares = (f"{decimals(low['share'])} ({decimals(low['chance'])})" for low in pair["lowest"])
            correlations = decimals(pair["spearman"]), decimals(pair["kendall_tau_b"])
            table.add_row(title, escape(pair["a"]), escape(pair["b"]), *correlations, *shares)
            title = ""
        table.add_section()
    console.show(table)


def show_diagnosis(values: dict[str, Any]) -> None:
    """Print a table of what each score correlates with, and of properties of its lowest rows."""
    entries = sorted(values["diagnosis"], key=lambda entry: values["metrics"].index(entry["metric"]))
    columns = list(dict.fromkeys(name for entry in values["diagnosis"] for name in entry["spearman"]))
    lowest = [low for entry in entries for low in entry["lowest"]]
    counted = [name for name in COUNTED if any(low.get(name) is not None for low in lowest)]
    titles = [f"Spearman with {name}" for name in columns]
    if values["clusters"]:
        titles.append("between clusters")
    titles += [f"{', '.join(COUNTED[name] for name in counted)} in lowest {pct:g}%" for pct in values["pct"]]
    notes = ["What the scores correlate with, and rows among the lowest"]
    table = console.table(["metric", "scorer", *titles], titles, notes=notes)
    for entry in entries:
        numbers = [entry["spearman"].get(name) for name in columns]
        if values["clusters"]:
            numbers.append(entry["clusters"])
        counts = [_counts(low, counted) for low in entry["lowest"]]
        table.add_row(METRICS[entry["metric"]].title, escape(entry["table"]), *map(decimals, numbers), *counts)
    console.show(table)


def _counts(low: dict[str, Any], names: Sequence[str]) -> str:
    """Format the counts of some properties among the lowest rows."""
    counts = (low.get(name) for name in names)
    return f"{', '.join('-' if count is None else f'{count:,}' for count in counts)} of {low['rows']:,}"
