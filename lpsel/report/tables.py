"""Report tables: lists of rows, each a dictionary by column, with None for missing values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpsel.data.content_ids import listed
from lpsel.errors import printable_line
from lpsel.evaluation.statistics import UNDEFINED
from lpsel.report.cells import readable
from lpsel.report.points import Point, metrics_of, model_name, points, trained_models
from lpsel.report.quality_tables import point_rows, result_rows
from lpsel.report.runs import Run, Runs, find_runs, number
from lpsel.report.summary import summarize
from lpsel.run_config import RESULT

Table = list[dict[str, Any]]


def all_tables(runs: Runs, points: Sequence[Point]) -> dict[str, Table]:
    """All tables by name; a table without rows is empty."""
    return {
        "results": result_rows(points),
        "runs": run_rows(runs, points),
        "evaluations": point_rows(points),
        "differences": difference_rows(runs),
        "warnings": warning_rows(runs),
        "groups": group_rows(runs),
        "votes": vote_rows(runs),
        "harness": harness_rows(runs),
        "diagnosis": diagnosis_rows(runs),
        "costs": cost_rows(runs),
        "examples": example_rows(runs),
    }


def find_readable(paths: Sequence[str | Path]) -> Runs:
    """`find_runs`, but skips runs whose result.json has invalid values, with the reason."""
    runs = find_runs(paths)
    sound = Runs(skipped=list(runs.skipped))
    for run in runs.finished:
        alone = Runs([run])
        try:
            measured = points(alone)
            summarize(alone, measured)
            for table in filter(None, all_tables(alone, measured).values()):
                readable(table)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            sound.skipped.append((run.folder, f"{RESULT} is not complete ({printable_line(error)})"))
        else:
            sound.finished.append(run)
    return sound


def run_rows(runs: Runs, points: Sequence[Point]) -> Table:
    """One row per run, with its key figure and costs."""
    last_point = {p.run.folder: p for p in points}
    settings = ("target", "scorer", "rule", "bucket", "pct")
    rows = []
    for run in runs.finished:
        point = last_point.get(run.folder)
        selects = run.command in ("train", "select")
        trained_rows = run.get("training", "rows")
        saved = number(run.get("ledger", "saved", "share"))
        row = {
            "run": run.name,
            "command": run.command,
            **{name: getattr(run, name) if selects else None for name in settings},
            "seed": run.get("seed"),
            "rows": run.get("n_selected" if selects else "n") if trained_rows is None else trained_rows,
            "unusable rows": listed(run.get("rows_unusable") or {}) or None,
            **{name: getattr(point, name, None) for name in ("metric", "value", "low", "high")},
            "selection FLOPs": number(run.get("ledger", "selection", "flops")),
            "training FLOPs": number(run.get("ledger", "training", "flops") or run.get("training", "flops")),
            "total FLOPs": run.flops,
            "saved %": None if saved is None else 100 * saved,
            "total device seconds": run.seconds,
            "folder": str(run.folder),
        }
        rows.append(row)
    return rows


def difference_rows(runs: Runs) -> Table:
    """Paired differences between two models of a pairwise evaluation, in percentage points of the win rate."""
    columns = {"difference": "value", "ci_low": "low", "ci_high": "high", "p_value_holm": "p value holm", "n": "n"}
    rows = []
    for run in runs.by_command("evaluate"):
        seeds = _seeds(runs, run)
        for pair in run.entries("comparisons"):
            if pair.get("n"):
                model, minus = str(pair["models"][0]), str(pair["models"][1])
                numbers = {column: number(pair.get(name)) for name, column in columns.items()}
                row = {"model": model, "minus": minus, "seed": seeds.get(model)}
                rows.append(row | numbers | {"evaluation": str(run.folder)})
    return rows


def _seeds(runs: Runs, evaluation: Run) -> dict[str, Any]:
    """Seeds of the training runs of an evaluation's models, by model; without models that lpsel did not train."""
    return {model: run.get("seed") for model, run in trained_models(evaluation, runs).items()}


def warning_rows(runs: Runs) -> Table:
    """Warnings about evaluations and votes that limit the conclusions."""
    return [
        {"text": str(sentence), "evaluation": str(run.folder)}
        for run in runs.by_command("evaluate", "votes")
        for sentence in run.get("warnings") or []
    ]


def cost_rows(runs: Runs) -> Table:
    """Cost ledger of every training run."""
    parts = {"scoring": "selection", "training": "training", "all rows": "everything", "saved": "saved"}
    return [
        {
            **_which(run),
            **{f"{name} FLOPs": run.get("ledger", part, "flops") for name, part in parts.items()},
            "break-even % of FLOPs": run.get("ledger", "break_even_pct"),
            "break-even % of rows": run.get("ledger", "break_even_rows_pct"),
            "folder": str(run.folder),
        }
        for run in runs.by_command("train")
        if run.get("ledger")
    ]


def _which(run: Run) -> dict[str, Any]:
    """Identify a run of train or select: its folder name, rule, bucket, percentage and seed."""
    return {"run": run.name, **{key: getattr(run, key) for key in ("rule", "bucket", "pct")}, "seed": run.get("seed")}


def diagnosis_rows(runs: Runs) -> Table:
    """What the scores of every selection correlate with, and what was selected."""
    compared = dict.fromkeys(name for run in runs.finished for name in run.get("diagnosis", "spearman") or {})
    return [
        {
            **_which(run),
            **{f"Spearman with {name}": run.get("diagnosis", "spearman", name) for name in compared},
            "between clusters": run.get("diagnosis", "clusters"),
            "median response": run.get("diagnosis", "median_response", "selected"),
            "of all rows": run.get("diagnosis", "median_response", "all"),
            **{name: run.get("diagnosis", name) for name in ("known", "learned", "rising", "duplicates")},
            "near-duplicates": run.get("diagnosis", "near_duplicates"),
            "warnings": " ".join(run.get("diagnosis", "warnings") or []) or None,
            "folder": str(run.folder),
        }
        for run in runs.by_command("train", "select")
        if run.get("diagnosis")
    ]


def example_rows(runs: Runs) -> Table:
    """First, last and random rows of the rankings, once per rule, scorer and bucket."""
    rankings: dict[tuple[Any, ...], Run] = {}
    for run in runs.by_command("train", "select"):
        if run.get("scores") and isinstance(run.get("examples"), dict):
            rankings.setdefault((run.rule, run.scorer, run.bucket), run)
    return [
        {
            **{key: value for key, value in _which(run).items() if key != "run"},
            "end": end,
            **{name: example.get(name) for name in ("index", "score", "selected", "text")},
            "folder": str(run.folder),
        }
        for run in rankings.values()
        for end, examples in run.get("examples").items()
        for example in examples
    ]


def group_rows(runs: Runs) -> Table:
    """Win rates by category and prompt set, for every evaluation and vote count."""
    counts = ("n", "wins", "ties", "losses", "failed")
    rows = []
    for run in runs.by_command("evaluate", "votes"):
        seeds = _seeds(runs, run)
        informative = [entry for entry in run.models if entry.get("informative") is not False]
        for kind, key in (("category", "by_category"), ("prompt set", "by_prompt_set")):
            for entry in informative:
                for name, group in (entry.get(key) or {}).items():
                    if (win_rate := metrics_of(group).get("win_rate")) is None:
                        continue
                    row = {
                        "model": model_name(entry),
                        "seed": seeds.get(model_name(entry)),
                        "against": str(run.get("baseline") or "–"),
                        "kind": kind,
                        "group": str(name),
                        **{count: group.get(count) for count in counts},
                        **win_rate._asdict(),
                        "evaluation": str(run.folder),
                    }
                    rows.append(row)
    return rows


def vote_rows(runs: Runs) -> Table:
    """Votes of every annotator, and the agreement between annotators."""
    counts = ("votes", "skipped", "replaced", "wins", "ties", "losses")
    return [
        {
            "model": str(run.get("model")),
            "against": str(run.get("baseline")),
            "annotator": str(annotator.get("name")),
            **{count: annotator.get(count) for count in counts},
            **metrics_of(annotator).get("win_rate", UNDEFINED)._asdict(),
            "Krippendorff's alpha": run.get("agreement", "krippendorff_alpha"),
            "pairs with several votes": run.get("agreement", "pairs_with_several_votes"),
            "evaluation": str(run.folder),
        }
        for run in runs.by_command("votes")
        for annotator in run.entries("annotators")
    ]


def harness_rows(runs: Runs) -> Table:
    """All metrics of lm-evaluation-harness."""
    rows = []
    for run in runs.by_command("evaluate"):
        if run.get("evaluator") != "lm_eval":
            continue
        seeds = _seeds(runs, run)
        for entry in run.models:
            name = model_name(entry)
            for metric, at in metrics_of(entry).items():
                task, _, kind = metric.partition("/")
                count = entry.get("tasks", {}).get(task, {}).get("rows")
                row = {"model": name, "seed": seeds.get(name), "task": task, "kind": kind, "rows": count}
                rows.append(row | at._asdict() | {"evaluation": str(run.folder)})
    return rows
