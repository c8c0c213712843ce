"""`agreement`: how far several tables of scores agree; writes the numbers, figures and a page."""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from lpsel import console
from lpsel.commands.agreement_inputs import read_all, read_clusters
from lpsel.commands.arguments import OneLineParser, run_folder
from lpsel.errors import UserError
from lpsel.run_config import RESULT
from lpsel.scoring.metrics import METRICS
from lpsel.scoring.npz import split_npz
from lpsel.selection.agreement_study import DEFINED, Study, numbers, study
from lpsel.selection.budget import check_pct
from lpsel.storage import finite, write_atomically, write_json

NUMBERS = "agreement.json"
PAGE = "agreement.html"


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel agreement ARGUMENTS`.

    Raises:
        UserError: whatever the user can mend.
    """
    given = _parser().parse_args(arguments)
    result = run(given.tables, given.out, _shares(given.pct), given.clusters)
    show(result["numbers"])
    print(result["run_dir"], flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lpsel agreement",
        description="How far scorers agree on which rows are hard.",
        epilog="TABLE is a scores folder, a run folder of select or train, a .parquet or .csv table with nll_0.. or "
        "ppl_0.., or FILE.npz:SCORER (FILE.npz for all in it).",
        allow_abbrev=False,
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="two or more tables of scores of the same rows")
    parser.add_argument("--pct", default="10", metavar="P[,P...]", help="lowest shares to compare, in percent (10)")
    parser.add_argument(
        "--clusters", metavar="FILE", help="table or FILE.npz with a cluster for every row (else those of a table)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (runs/agreement/TIME)")
    return parser


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--pct {text}: give numbers above 0 and at most 100, with commas between.") from None


def run(
    given: Sequence[str], run_dir: Path | None = None, pcts: Sequence[float] = (10.0,), clusters: str | None = None
) -> dict[str, Any]:
    """Compare the tables that `given` names, write the run folder, and return what result.json says with the numbers.

    Raises:
        UserError: a table that cannot be read or is of other rows, a share out of range, a folder that cannot be made.
    """
    pcts = sorted({check_pct(pct) for pct in pcts})
    try:
        found = read_all(given)
    except UserError as error:
        raise UserError(str(error).removeprefix("scores=")) from error
    cluster, cluster_source = None, None
    if clusters is not None:
        cluster, cluster_source = read_clusters(clusters, found[0].table.index), clusters
    else:
        for scored in found:
            if cluster is None and scored.table.cluster is not None:
                cluster, cluster_source = scored.table.cluster, scored.source
    made = study([scored.name for scored in found], [scored.table for scored in found], pcts, cluster)

    archives = [split[0] for name in given if (split := split_npz(name))]
    folder = run_folder("agreement", run_dir, [*given, *archives, *([clusters] if clusters else [])])
    said = numbers(made)
    for table, scored in zip(said["tables"], found, strict=True):
        table["source"] = scored.source
    if said["clusters"]:
        said["clusters"]["source"] = cluster_source
    said = finite({"command": "agreement"} | said)
    write_json(folder / NUMBERS, said)
    tables = _write_tables(folder, said)
    drawn = _write_figures(folder, made)

    from lpsel.report.agreement_page import page

    html = page(made, said).encode()
    write_atomically(folder / PAGE, lambda file: file.write(html))
    result = {
        "command": "agreement",
        "scorers": made.names,
        "sources": [scored.source for scored in found],
        "clusters": cluster_source,
        "pct": pcts,
        "metrics": made.metrics,
        "n_total": said["n"],
        "n_defined": said["n_defined"],
        "agreement": folder / NUMBERS,
        "page": folder / PAGE,
        "tables": tables,
        "figures": drawn,
    }
    write_json(folder / RESULT, result)
    return result | {"numbers": said, "run_dir": folder}


def _write_tables(folder: Path, said: dict[str, Any]) -> list[Path]:
    """The numbers as CSV, an entry a line, what is inside an entry with its path as the column's name."""
    from pyarrow import csv

    written = []
    for name in ("tables", "pairs", "within", "length"):
        if said[name]:
            table = pa.Table.from_pylist(_flat(said[name]))
            path = folder / f"{name}.csv"
            write_atomically(path, partial(csv.write_csv, table))
            written.append(path)
    return written


def _flat(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    def flat(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, list):  # one entry a share: lowest_10_share
            parts = {f"{name}_{part['pct']:g}": {k: v for k, v in part.items() if k != "pct"} for part in value}
        elif isinstance(value, dict):
            parts = {f"{name}_{key}" if name else key: part for key, part in value.items()}
        else:
            return {name: value}
        return {key: cell for part, inner in parts.items() for key, cell in flat(inner, part).items()}

    lines = [flat(entry, "") for entry in entries]
    columns = dict.fromkeys(column for line in lines for column in line)
    empty = {c for c in columns if all(line.get(c) is None for line in lines)}
    return [{column: line.get(column) for column in columns if column not in empty} for line in lines]


def _write_figures(folder: Path, made: Study) -> list[Path]:
    from lpsel.report import figures
    from lpsel.report.agreement_page import heatmap_values

    written = []
    for m, metric in enumerate(made.metrics):
        for name, title, values in heatmap_values(made, metric):
            figure = figures.heatmap(made.names, values, title)
            written.append(figures.save_png(figure, folder / f"heatmap-{metric}-{name}.png"))
        title = f"{METRICS[metric].title}: percent rank by two scorers, 0 the hardest"
        figure = figures.rank_rank(made.names, made.filled(DEFINED)[m], made.pcts, title)
        written.append(figures.save_png(figure, folder / f"rank-rank-{metric}.png"))
    return written


def show(said: dict[str, Any]) -> None:
    """Print every two scorers as a table, of the rows that are defined in all."""
    left_out = said["n"] - said["n_defined"]
    caption = [f"{said['n_defined']:,} rows" + (f"; {left_out:,} without a score are left out." if left_out else ".")]
    caption += [escape(note) for note in said["notes"]]
    table = Table(caption="\n".join(caption), caption_justify="left")
    for title in ("metric", "scorer", "and"):
        table.add_column(title, overflow="fold")
    for title in ("Spearman", "tau-b", *(f"lowest {pct:g} % in common (chance)" for pct in said["pct"])):
        table.add_column(title, justify="right")
    previous = None
    for pair in said["pairs"]:
        if pair["rows"] == DEFINED:
            if previous not in (None, pair["metric"]):
                table.add_section()
            metric = METRICS[pair["metric"]].title if pair["metric"] != previous else ""
            previous = pair["metric"]
            numbers = [_figure(pair["spearman"]), _figure(pair["kendall_tau_b"]), *map(_share, pair["lowest"])]
            table.add_row(metric, escape(pair["a"]), escape(pair["b"]), *numbers)
    console.show(table)


def _share(at: dict[str, Any]) -> str:
    return f"{_figure(at['share'])} ({_figure(at['chance'])})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
