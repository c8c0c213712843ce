"""Create the tables of docs/results/real-small.md: from finished runs to JSON, and from JSON to Markdown.

    python benchmarks/real_small.py collect PART FOLDER...   # docs/results/data/PART.json from the folders of sweeps
    python benchmarks/real_small.py tables                   # the tables of the page from these files

PART is an experiment, such as real-small-alpaca. Training runs that are not evaluated on everything are left out.
Earlier records in the file stay unless the folders have the same rule, budget and seed.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.evaluation.statistics import bootstrap_ratios, t_interval, with_interval
from lpsel.report.runs import Run, find_runs
from lpsel.storage import digest, finite

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGE = RESULTS / "real-small.md"
UNTRAINED, ALL = "untrained", "all rows"
MEASURED = {"alpaca": ("nll", "bits_per_byte"), "dolly": ("nll", "bits_per_byte"), "answers": ("rouge_l",)}
SUMS = {"nll": "tokens", "rouge_l": None}  # metrics that are compared with random, and what weighs a row
FEWEST_SEEDS = 3  # for an interval over seeds

Rows = dict[str, np.ndarray[Any, Any]]


def collect(folders: Sequence[str]) -> dict[str, Any]:
    """Collect a record for every evaluated training run in the folders, and one for the untrained model."""
    runs = find_runs(folders)
    trained = {Path(run.get("model")).resolve(): run for run in runs.by_command("train")}
    measured: dict[Path, dict[str, Any]] = defaultdict(dict)
    rows: dict[tuple[Path, str], Rows] = {}
    for evaluation in runs.by_command("evaluate"):
        kind = "answers" if evaluation.get("max_new_tokens") else evaluation.get("dataset")
        for entry in evaluation.models:
            model = Path(entry["model"]).resolve()
            known = {name: entry["metrics"][name] for name in MEASURED[kind]}
            measured[model][kind] = {"rows": entry["rows"], **known}
            rows[model, kind] = _rows(evaluation.folder / entry["generations"])
    complete = {model for model, kinds in measured.items() if kinds.keys() == MEASURED.keys()}
    random = {_setting(run): model for model, run in trained.items() if run.rule == "random" and model in complete}
    records = [{"name": UNTRAINED, "held_out": measured[m]} for m in sorted(complete - trained.keys())]
    for model, run in trained.items():
        if model in complete:
            baseline = random.get(_setting(run))
            pairs = {} if baseline in (None, model) else {k: (rows[model, k], rows[baseline, k]) for k in MEASURED}
            minus_random = {kind: _difference(*pair) for kind, pair in pairs.items()}
            records.append(_described(run) | {"held_out": measured[model], "minus_random": minus_random or None})
    chosen = {digest(each): each for each in map(_selected, runs.by_command("train", "select"))}
    once = {_order(record): record for record in records}  # the pieces of a part may each have the random rows
    selections, records = sorted(chosen.values(), key=_order), [once[key] for key in sorted(once)]
    unfinished = len(trained.keys() - complete)
    return finite({"unfinished": unfinished, "selections": selections, "records": records})


def joined(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Add the earlier selections and records that the new ones do not replace."""
    lists = {}
    for name in ("selections", "records"):
        by_setting = {_order(each): each for each in [*earlier.get(name, []), *new[name]]}
        lists[name] = [by_setting[setting] for setting in sorted(by_setting)]
    return new | lists


def _setting(run: Run) -> tuple[Any, ...]:
    """Return the settings that must match between a run and its random baseline."""
    return run.target, run.get("seed"), run.pct, run.get("settings", "pct_of")


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(str(record.get(key, "")) for key in ("target", "pct_of", "pct", "name", "seed"))


def _rows(file: Path) -> Rows:
    """Read the results of every held-out row by column; 0 where a row has no value."""
    written = [json.loads(line) for line in file.read_text().splitlines()]
    return {name: np.array([row.get(name) or 0 for row in written], float) for name in ("nll", "tokens", "rouge_l")}


def _difference(ours: Rows, theirs: Rows) -> dict[str, Any]:
    """Compute differences to random rows, paired by held-out row, with bootstrap intervals."""
    result = {}
    for metric, weight in SUMS.items():
        weights = np.column_stack([rows[weight] if weight else np.ones_like(rows[metric]) for rows in (ours, theirs)])
        sums = np.column_stack([ours[metric], theirs[metric]]) * weights
        result[metric] = bootstrap_ratios(sums, weights).difference(0, 1)._asdict()
    return result


def _named(run: Run) -> dict[str, Any]:
    known, length = run.get("settings", "known"), run.get("settings", "length")
    variant = [*["length matched"] * (length == "matched"), *["known dropped"] * (known == "drop")]
    name = ALL if run.rule == "full" else ", ".join([run.rule, *variant])
    return {"name": name, "pct": run.pct, "pct_of": run.get("settings", "pct_of"), "seed": run.get("seed")}


def _selected(run: Run) -> dict[str, Any]:
    """Describe a selection; tokens are per epoch with the scorer's tokenizer, or the target's if there is no scorer."""
    rows, mean = {"selected": run.get("n_selected"), "all": run.get("n_total")}, run.get("mean_tokens")
    tokens = {of: round(n * sum(mean[side][of] for side in ("prompt", "response"))) for of, n in rows.items()}
    return _named(run) | {
        "rows": rows["selected"],
        "tokens": tokens["selected"],
        "tokens_pct": 100 * tokens["selected"] / tokens["all"],
        "median_response": run.get("diagnosis", "median_response", "selected"),
        "known": run.get("diagnosis", "known"),
        "spearman": run.get("diagnosis", "spearman"),
    }


def _described(run: Run) -> dict[str, Any]:
    ledger = run.get("ledger")
    return _named(run) | {
        "target": run.target,
        "scorer": run.get("scorer", "name"),
        "rows": run.get("training", "rows"),
        "tokens": run.get("training", "tokens"),
        "cost": {part: ledger[part] for part in ("selection", "training", "everything", "saved")},
    }


def tables(part: dict[str, Any]) -> str:
    others = [record for record in part["records"] if "pct" not in record or record["name"] == ALL]
    groups: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in part["records"]:
        if record not in others:
            groups[record["pct_of"], record["pct"]].append(record)
    dataset, other = part["dataset"], next(name for name in ("alpaca", "dolly") if name != part["dataset"])
    columns = [
        (f"NLL, {dataset}", dataset, "nll", 1),
        (f"NLL, {other}", other, "nll", 1),
        ("ROUGE-L %", "answers", "rouge_l", 100),
    ]
    text = ["**Selected rows**", "", *_selections(part["selections"]), ""]
    for (pct_of, pct), records in sorted(groups.items()):
        text += [f"**{pct:g}% of the {pct_of}**", "", *_table([*others, *records], columns, dataset), ""]
    if groups:
        text += ["**Cost**", "", *_costs(part["records"])]
    return "\n".join(text).rstrip()


def _selections(selections: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for each in selections:
        cells = [
            _budget(each),
            str(each["seed"]),
            f"{each['rows']:,}",
            f"{each['tokens']:,}",
            f"{each['tokens_pct']:.1f}",
        ]
        cells += [f"{each['median_response']:g}", "" if each["known"] is None else f"{each['known']:,}"]
        spearman = [(each["spearman"] or {}).get(name) for name in ("response_tokens", "nll_0")]
        lines.append([*cells, *("" if value is None else f"{value:.2f}" for value in spearman)])
    head = ["selection", "seed", "rows", "tokens", "% of all tokens", "median response", "known before training"]
    return markdown([*head, "Spearman with response length", "with NLL_0"], lines)


def _budget(record: dict[str, Any]) -> str:
    return record["name"] if record["name"] == ALL else f"{record['name']}, {record['pct']:g}% of {record['pct_of']}"


def _table(
    records: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, str, float]], dataset: str
) -> list[str]:
    head = ["trained on", "seeds", "rows", "tokens"]
    for title, *_ in columns:
        head += [title, "minus random"]
    lines = []
    for group in _by_seed(records):
        cells = [group[0]["name"], _seeds(group), _span(group, "rows"), _span(group, "tokens")]
        for _, kind, metric, factor in columns:
            digits = 3 if factor == 1 else 1
            cells.append(_cell([record["held_out"][kind][metric] for record in group], factor, digits))
            compared = [record["minus_random"][kind][metric] for record in group if record.get("minus_random")]
            cells.append(_cell(compared, factor, digits, "+") if compared else "")
        cells.append(_cell([record["held_out"][dataset]["bits_per_byte"] for record in group], 1, 3))
        lines.append(cells)
    return markdown([*head, "bits per byte"], lines)


def _costs(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for record in records:
        if "cost" in record:
            cost = record["cost"]
            flops = [cost[part]["flops"] for part in ("selection", "training")]
            seconds = [cost[part]["device_seconds"] for part in ("selection", "training")]
            share = 100 * sum(flops) / cost["everything"]["flops"]
            cells = [_budget(record), str(record["seed"]), *(f"{value:.2e}" for value in flops), f"{share:.0f}"]
            lines.append([*cells, *(f"{value:,.0f}" for value in seconds)])
    head = ["trained on", "seed", "FLOPs, selection", "FLOPs, training", "% of all rows"]
    return markdown([*head, "seconds, selection", "seconds, training"], lines)


def _by_seed(records: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group records by name if there are enough seeds for an interval, else yield them one by one."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_name[record["name"]].append(record)
    for group in by_name.values():
        yield from [group] if len(group) >= FEWEST_SEEDS else [[record] for record in group]


def _seeds(group: Sequence[dict[str, Any]]) -> str:
    return ", ".join(str(record["seed"]) for record in group if "seed" in record)


def _span(group: Sequence[dict[str, Any]], key: str) -> str:
    values = sorted({record[key] for record in group if key in record})
    return " to ".join(f"{value:,}" for value in dict.fromkeys([*values[:1], *values[-1:]]))


def _cell(estimates: Sequence[dict[str, Any]], factor: float, digits: int, sign: str = "") -> str:
    """Format one value with its interval over rows, or the mean of several with its t interval over seeds."""
    value, low, high = (estimates[0][name] for name in ("value", "low", "high"))
    if len(estimates) > 1:
        value, low, high = t_interval([estimate["value"] for estimate in estimates])
    scaled = (None if number is None else factor * number for number in (value, low, high))
    return with_interval(*scaled, form=f"{sign}.{digits}f")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]]


def with_tables(page: str) -> str:
    for file in sorted((RESULTS / "data").glob("real-small-*.json")):
        page = between_marks(page, file.stem, tables(json.loads(file.read_text())))
    return page


def between_marks(page: str, name: str, text: str) -> str:
    """Return the page with `text` between `<!-- NAME -->` and `<!-- end -->`."""
    start, end = f"<!-- {name} -->", "<!-- end -->"
    before, after = page.split(start)
    return f"{before}{start}\n{text}\n{end}{after.split(end, 1)[1]}"


def main(argv: Sequence[str]) -> None:
    match argv:
        case ["collect", part, *folders] if folders:
            file = RESULTS / "data" / f"{part}.json"
            earlier = json.loads(file.read_text()) if file.exists() else {"about": {}}
            dataset = "alpaca" if part.endswith("alpaca") else "dolly"
            content = {"part": part, "dataset": dataset, "about": earlier["about"]} | joined(earlier, collect(folders))
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content, indent=1) + "\n")
        case ["tables"]:
            PAGE.write_text(with_tables(PAGE.read_text()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
