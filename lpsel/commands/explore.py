"""`lpsel explore`: show the rows of a run as points and texts on an HTML page.

N rows of the dataset, S of them on the page, D dimensions of an embedding
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lpsel.cache import used_by
from lpsel.clustering.embeddings import cached_embeddings
from lpsel.commands.arguments import OneLineParser, checked_rows, dataset_error, dataset_of_run, selection_table
from lpsel.commands.result_summary import statistics
from lpsel.commands.show import find_run
from lpsel.config import default_cache
from lpsel.console import OPEN, end
from lpsel.data.dataset import Source
from lpsel.errors import UserError
from lpsel.redact import printable, redact
from lpsel.report.runs import EXPLORER, Run
from lpsel.run_config import RESULT
from lpsel.scoring.table import to_arrow
from lpsel.storage import check_writable, utf8, write_file

if TYPE_CHECKING:
    from lpsel.report.explorer import Explorer

COLUMNS = ["index", "id", "selected", "score", "rank", "nll_0", "nll_1", "response_tokens", "cluster", "reason"]
MOST_TEXT = 2_000  # characters read from each text; the page shows fewer
TITLE = b"<title>Rows of "  # identifies a page that this command may overwrite


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(prog="lpsel explore", description="Write an HTML page with the rows of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of select or train")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (RUN/{EXPLORER})")
    parser.add_argument("--dataset", metavar="FILE", help="the dataset, if it was moved since the run")
    parser.add_argument("--cache", type=Path, default=Path(default_cache()), metavar="DIR", help="cache_dir of the run")
    options = parser.parse_args(arguments)
    page, notes = explore(options.run, options.out, options.dataset, options.cache)
    for note in notes:
        print(printable(redact(note)))
    end(OPEN, page)


def explore(folder: Path, out: Path | None, dataset: str | None, cache_dir: Path) -> tuple[Path, list[str]]:
    """Write or overwrite the page of a run; returns its path, and notes on missing parts."""
    run = find_run(folder.expanduser())
    if run.command not in ("select", "train"):
        raise UserError(folder, None, f"is a run of {run.command}", "give a run of select or train")
    page = run.folder / EXPLORER if out is None else out.expanduser().resolve()
    _check_page(page)
    try:
        explorer, notes = read_rows(run, dataset, cache_dir.expanduser().resolve())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(run.folder / RESULT, None, f"is not complete ({error})", "select again") from None
    from lpsel.report.explorer import explorer_page

    write_file(page, explorer_page(explorer))
    return page, notes


def read_rows(run: Run, dataset: str | None, cache_dir: Path) -> tuple["Explorer", list[str]]:
    """Read the rows of a run to show; returns them with notes on missing parts."""
    from lpsel.report.explorer import MOST_ROWS, SAMPLE, Explorer, fair_sample, map_of

    notes: list[str] = []
    table = selection_table(run.folder, COLUMNS)
    if not run.result["diagnosis"]["spearman"]:  # arbitrary scores
        table = table.drop_columns(["score"])
    n_total = len(table)
    if table["id"].null_count:
        table = table.drop_columns(["id"])
    table = fair_sample(table, n_total if n_total <= MOST_ROWS else SAMPLE)
    columns = {name: table[name] for name in table.column_names}
    ids = columns["id"].combine_chunks().cast(pa.large_string()) if "id" in columns else None
    columns["length"], unit = columns.pop("response_tokens"), "tokens"
    try:
        texts = read_texts(Source(dataset_of_run(run.folder, run.result, dataset)), table["index"].to_pylist(), ids)
    except UserError as error:
        if dataset is not None:
            raise dataset_error(error) from None
        notes.append(f"No texts: {error}")
    else:
        characters = texts.pop("characters")
        columns |= texts
        if columns["length"].null_count:
            columns["length"], unit = characters, "characters"
    explained: list[float] = []
    vectors_SD = None if ids is None else cached_embeddings(used_by(cache_dir, run.folder), cache_dir, ids)
    if vectors_SD is not None:
        map_S2, explained = map_of(vectors_SD)
    if explained:
        columns |= {"x": to_arrow(map_S2[:, 0]), "y": to_arrow(map_S2[:, 1])}
    else:
        notes.append(f"No map: {cache_dir} has no embeddings that this run used")
    for name, values in columns.items():
        if pa.types.is_floating(values.type):  # infinity has no place in a plot and no form in JSON
            columns[name] = pc.if_else(pc.is_inf(values), None, values)
    known = {name: values for name, values in columns.items() if values.null_count < len(values)}
    explorer = Explorer(
        name=run.name,
        rows=pa.table(known),
        n_total=n_total,
        rule=run.rule,
        unit=unit,
        explained=explained,
        facts=statistics(run.result),
        warnings=run.get("diagnosis", "warnings"),
    )
    return explorer, notes


def read_texts(source: Source, rows: Sequence[int], ids: pa.Array | None) -> dict[str, pa.Array]:
    """Read the prompt, response and response length in characters of rows, in ascending order; empty if unusable."""
    texts: dict[str, list[Any]] = {"prompt": [], "response": [], "characters": []}
    expected = dict.fromkeys(rows) if ids is None else dict(zip(rows, ids.to_pylist(), strict=True))
    for row in checked_rows(source, expected):
        example = row.example
        prompt = example.prompt()
        response = example.turns[len(prompt.turns) :]
        texts["prompt"].append(_joined([turn.content for turn in prompt.turns], example.input))
        texts["response"].append(_joined([turn.content for turn in response]))
        texts["characters"].append(example.characters()[1])
    return {name: pa.array(values) for name, values in texts.items()}


def _joined(parts: Sequence[str], *more: str) -> str:
    """Join texts and truncate the result, without lone surrogates."""
    return utf8("\n".join(part.strip()[:MOST_TEXT] for part in [*parts, *more] if part)[:MOST_TEXT])


def _check_page(page: Path) -> None:
    """Raise a UserError if the page cannot be written, or would overwrite a file of a different kind."""
    check_writable("--out", page.parent)
    if page.is_dir():
        raise UserError("--out", page, "is a folder", "name a file")
    if page.exists():
        with page.open("rb") as file:
            if TITLE not in file.read(2000):
                raise UserError("--out", page, "was not written by lpsel explore", "name another file")
