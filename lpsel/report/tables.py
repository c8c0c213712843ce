"""Tables of the report: lists of rows, each a dictionary of columns, None where a value is missing."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpsel.report.runs import WIN_RATE_DETAILS, Point, Run, Runs, measures_of, number

Table = list[dict[str, Any]]


def all_tables(runs: Runs, points: Sequence[Point]) -> dict[str, Table]:
    """All tables by name; a table without rows is empty."""
    return {
        "runs": run_rows(runs, points),
        "evaluations": point_rows(points),
        "seeds": seed_rows(points),
        "groups": group_rows(runs),
        "votes": vote_rows(runs),
        "harness": harness_rows(runs),
        "diagnosis": diagnosis_rows(runs),
        "costs": cost_rows(runs),
        "examples": example_rows(runs),
    }


def run_rows(runs: Runs, points: Sequence[Point]) -> Table:
    """A row per run, with its key figure and its costs."""
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
            "rows": run.get("n_selected" if selects else "n") if trained_rows is None else trained_rows,
            "seed": run.get("seed"),
            **{name: getattr(point, name, None) for name in ("metric", "value", "low", "high")},
            "selection FLOPs": number(run.get("ledger", "selection", "flops")),
            "training FLOPs": number(run.get("ledger", "training", "flops") or run.get("training", "flops")),
            "saved %": None if saved is None else 100 * saved,
            "seconds": number(run.get("training", "seconds")),
            "folder": str(run.folder),
        }
        rows.append(row)
    return rows


def point_rows(points: Sequence[Point]) -> Table:
    """A row per training run and evaluation of it."""
    known = [name for name in WIN_RATE_DETAILS if any(p.details[name] is not None for p in points)]
    return [
        {
            "run": p.run.name,
            "series": p.run.series,
            "pct": p.run.pct,
            "seed": p.run.get("seed"),
            **{name: getattr(p, name) for name in ("metric", "value", "low", "high")},
            **{name.replace("_", " "): p.details[name] for name in known},
            "against": p.against,
            "folder": str(p.run.folder),
            "evaluation": str(p.evaluation.folder),
        }
        for p in points
    ]


def seed_rows(points: Sequence[Point]) -> Table:
    """Mean, extremes and standard deviation over the seeds of runs that differ in nothing else."""
    seeds: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    for p in points:
        seeds[p.run.series, p.run.pct, p.metric, p.against][p.run.get("seed")] = p.value
    rows = []
    for (series, pct, metric, against), by_seed in seeds.items():
        values = list(by_seed.values())
        if len(values) > 1:
            statistics = {
                "mean": float(np.mean(values)),
                "lowest": min(values),
                "highest": max(values),
                "sd": float(np.std(values, ddof=1)),
            }
            row = {"series": series, "pct": pct, "metric": metric, "seeds": len(values)}
            rows.append(row | statistics | {"against": against})
    return rows


def cost_rows(runs: Runs) -> Table:
    """The ledger of every training run."""
    parts = {"scoring": "selection", "training": "training", "all rows": "everything", "saved": "saved"}
    return [
        {
            "run": run.name,
            **{f"{name} FLOPs": run.get("ledger", part, "flops") for name, part in parts.items()},
            "break-even %": run.get("ledger", "break_even_pct"),
            "folder": str(run.folder),
        }
        for run in runs.by_command("train")
        if run.get("ledger")
    ]


def diagnosis_rows(runs: Runs) -> Table:
    """What the scores of every selection follow, and what was selected."""
    return [
        {
            "run": run.name,
            "rule": run.rule,
            "pct": run.pct,
            **{f"Spearman with {name}": run.get("diagnosis", "spearman", name) for name in _compared(runs)},
            "between clusters": run.get("diagnosis", "clusters"),
            "median response": run.get("diagnosis", "median_response", "selected"),
            "of all rows": run.get("diagnosis", "median_response", "all"),
            **{name: run.get("diagnosis", name) for name in ("known", "rising", "duplicates")},
            "warnings": " ".join(run.get("diagnosis", "warnings") or []) or None,
            "folder": str(run.folder),
        }
        for run in runs.by_command("train", "select")
        if run.get("diagnosis")
    ]


def _compared(runs: Runs) -> list[str]:
    """What any selection's score was compared with."""
    return list(dict.fromkeys(name for run in runs.finished for name in run.get("diagnosis", "spearman") or {}))


def example_rows(runs: Runs) -> Table:
    """First, last and random rows of the rankings, once per rule, scorer and bucket."""
    rankings: dict[tuple[Any, ...], Run] = {}
    for run in runs.by_command("train", "select"):
        if run.get("scores") and isinstance(run.get("examples"), dict):
            rankings.setdefault((run.rule, run.scorer, run.bucket), run)
    return [
        {
            "rule": run.rule,
            "bucket": run.bucket,
            "end": end,
            **{name: example.get(name) for name in ("index", "score", "selected", "text")},
            "folder": str(run.folder),
        }
        for run in rankings.values()
        for end, examples in run.get("examples").items()
        for example in examples
    ]


def group_rows(runs: Runs) -> Table:
    """Win rates per category and prompt set of every evaluation and vote count."""
    counts = ("n", "wins", "ties", "losses", "failed")
    return [
        {
            "model": str(entry.get("name", entry.get("model", "–"))),
            "against": str(run.get("baseline") or "–"),
            "kind": kind,
            "group": str(name),
            **{count: group.get(count) for count in counts},
            **_win_rate(group),
            "evaluation": str(run.folder),
        }
        for run in runs.by_command("evaluate", "votes")
        for kind, key in (("category", "by_category"), ("prompt set", "by_prompt_set"))
        for entry in run.models
        for name, group in (entry.get(key) or {}).items()
        if number(group.get("win_rate")) is not None
    ]


def vote_rows(runs: Runs) -> Table:
    """The votes of every annotator, and the agreement between annotators."""
    counts = ("votes", "skipped", "replaced", "wins", "ties", "losses")
    return [
        {
            "model": str(run.get("model")),
            "against": str(run.get("baseline")),
            "annotator": str(annotator.get("name")),
            **{count: annotator.get(count) for count in counts},
            **_win_rate(annotator),
            "Krippendorff's alpha": run.get("agreement", "krippendorff_alpha"),
            "pairs with several votes": run.get("agreement", "pairs_with_several_votes"),
            "evaluation": str(run.folder),
        }
        for run in runs.by_command("votes")
        for annotator in run.entries("annotators")
    ]


def _win_rate(counted: dict[str, Any]) -> dict[str, float | None]:
    keys = {"value": "win_rate", "low": "ci_low", "high": "ci_high"}
    return {name: number(counted.get(key)) for name, key in keys.items()}


def harness_rows(runs: Runs) -> Table:
    """Every metric of lm-evaluation-harness."""
    rows = []
    for run in runs.by_command("evaluate"):
        for entry in run.models if run.get("evaluator") == "lm_eval" else []:
            for m in measures_of(entry):
                task, _, kind = m.metric.partition("/")
                count = entry.get("tasks", {}).get(task, {}).get("rows")
                row = {"model": m.model, "task": task, "kind": kind, "rows": count}
                rows.append(row | {"value": m.value, "low": m.low, "high": m.high, "evaluation": str(run.folder)})
    return rows
