"""`lpsel show`: print the settings, results, costs and files of one run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from lpsel.commands import result_summary
from lpsel.commands.arguments import OneLineParser
from lpsel.console import decimals, lines, show
from lpsel.errors import UserError
from lpsel.evaluation.statistics import with_interval
from lpsel.report.points import measures
from lpsel.report.runs import Run, find_runs, number
from lpsel.run_config import RESULT

Pairs = result_summary.Pairs
MAX_OVERRIDES = 10_000  # characters
SETTINGS = ("seed", "baseline", "limit", "num_fewshot")


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(prog="lpsel show", description="Print one run: its settings, results and costs.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or the result.json in it")
    path = parser.parse_args(arguments).run
    run = find_run(path.parent if path.name == RESULT else path)
    show(lines(describe(run), title=f"{run.command}  {run.folder}"))


def describe(run: Run) -> Pairs:
    """Describe a run as (name, text) pairs."""
    try:
        pairs = [*_settings(run), *_results(run), ("Files", _files(run.folder))]
        return [(name, str(what)) for name, what in pairs]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"is not complete ({error})"
        raise UserError(run.folder / RESULT, problem=problem, hint=f"run {run.command} again") from None


def find_run(folder: Path) -> Run:
    """Find the finished run in a folder; raises a UserError if there is none, or more than one."""
    runs = find_runs([folder])
    if len(runs.finished) == 1:
        return runs.finished[0]
    if runs.finished:
        raise UserError(folder, problem=f"contains {len(runs.finished)} runs", hint=f"`lpsel runs {folder}` lists them")
    reason = runs.skipped[0][1] if runs.skipped else f"no {RESULT} in it"
    hint = "name the folder of a finished run; an unfinished command can be repeated"
    raise UserError(folder, problem=reason, hint=hint)


def _settings(run: Run) -> Pairs:
    settings = {
        "overrides": _overrides(run.folder / ".hydra" / "overrides.yaml"),
        "data": _data(run),
        "judge": run.get("judge", "name") or run.get("judge", "kind"),
        **{name: run.get(name) for name in SETTINGS},
    }
    return [(name.capitalize(), str(value)) for name, value in settings.items() if isinstance(value, str | int)]


def _data(run: Run) -> Any:
    """Describe the dataset or the prompt sets of a run."""
    dataset, prompts = run.get("dataset"), run.get("prompts")
    if isinstance(dataset, dict):
        path = dataset.get("path")
        return f"{dataset.get('name')} ({path})" if path else str(dataset.get("name"))
    if dataset:
        return dataset
    return " and ".join(map(str, prompts)) if isinstance(prompts, list) else prompts


def _overrides(file: Path) -> str | None:
    """Read Hydra's list of overrides as text: parsing untrusted YAML could resolve and expand references."""
    try:
        with file.open(errors="replace") as opened:
            text = opened.read(MAX_OVERRIDES)
    except OSError:
        return None
    return " ".join(line.removeprefix("-").strip() for line in text.splitlines()) or None


def _results(run: Run) -> Pairs:
    if run.command in ("train", "select"):
        return result_summary.run(run.result)
    if run.command == "agreement":
        return [("Scorers", ", ".join(map(str, run.get("scorers") or []))), ("Page", str(run.get("page")))]
    if run.command == "validate":
        return _validation(run)
    pairs = [(m.model, f"{m.metric} {with_interval(*m.at, '#.4g')}") for m in measures(run)]
    pairs += [("Voting page", str(model["page"])) for model in run.entries("models") if "page" in model]
    pairs += [("Warning", str(sentence)) for sentence in run.get("warnings") or []]
    if (alpha := number(run.get("agreement", "krippendorff_alpha"))) is not None:
        pairs.append(("Krippendorff's alpha", f"{alpha:.3f}"))
    for person in run.entries("annotators"):
        pairs.append((str(person.get("name")), f"{person.get('votes')} pairs, {person.get('skipped')} of them skipped"))
    return [*pairs, ("Cost", f"{run.seconds:,.1f} s")] if run.seconds else pairs


def _validation(run: Run) -> Pairs:
    random, cost = run.result["random_nll"], run.result["cost"]
    nll = f"NLL {decimals(random['mean'])}, standard deviation {decimals(random['standard_deviation'])}"
    pairs = [("Random subsets", f"{random['subsets']} of {run.pct:g}%: {nll}")]
    for entry in run.entries("scores"):
        ends = ", ".join(f"{decimals(entry[f'nll_{end}'])} of the {end} rows" for end in ("lowest", "highest"))
        pairs.append((str(entry["score"]), f"Spearman: {entry['conclusion']} NLL {ends}."))
    spent = f"{cost['trainings']} trainings, {cost['tokens']:,} tokens, {cost['flops']:.3g} FLOPs"
    return [*pairs, ("Cost", f"{spent}, {cost['seconds']:,.1f} s")]


def _files(folder: Path) -> str:
    """List the files and subfolders of a folder with their sizes."""
    parts = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            parts.append(f"{path.name}{'/' if path.is_dir() else ''} {decimal(size)}")
    return ", ".join(parts)
