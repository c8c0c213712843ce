"""The report's tables: lists of rows, each a dictionary of column and value, None where there is none."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpsel.report.runs import BESIDE, Found, Point, measures_of, number

RUN_COLUMNS = (
    "run", "command", "target", "scorer", "rule", "bucket", "pct", "rows", "seed", "metric", "value", "low", "high",
    "selection FLOPs", "training FLOPs", "saved %", "seconds", "folder",
)  # fmt: skip


def every(found: Found, measured: Sequence[Point]) -> dict[str, list[dict[str, Any]]]:
    """All of them by name; those without rows are empty."""
    return {
        "runs": run_rows(found, measured),
        "evaluations": point_rows(measured),
        "seeds": seed_rows(measured),
        "groups": group_rows(found),
        "votes": vote_rows(found),
        "harness": harness_rows(found),
        "costs": cost_rows(found),
        "examples": example_rows(found),
    }


def run_rows(found: Found, measured: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for every run."""
    of_run = {p.run.folder: p for p in measured}
    rows = []
    for run in found.runs:
        p = of_run.get(run.folder)
        saved = number(run.get("ledger", "saved", "share"))
        train_rows = run.get("training", "rows")
        own = run.command in ("train", "select")
        rows.append(dict(zip(RUN_COLUMNS, (
            run.name, run.command, run.target if own else None, run.scorer if own else None,
            run.rule if own else None, run.bucket, run.pct if own else None,
            train_rows if train_rows is not None else run.get("n_selected") if own else run.get("n"),
            run.get("seed"), p.metric if p else None, p.value if p else None, p.low if p else None,
            p.high if p else None, number(run.get("ledger", "selection", "flops")),
            number(run.get("ledger", "training", "flops") or run.get("training", "flops")),
            None if saved is None else 100 * saved, number(run.get("training", "seconds")), str(run.folder),
        ), strict=True)))  # fmt: skip
    return rows


def point_rows(measured: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for every figure that an evaluation found of a run."""
    told = [name for name in BESIDE if any(p.beside[name] is not None for p in measured)]
    return [
        {"run": p.run.name, "series": p.run.series, "pct": p.run.pct, "seed": p.run.get("seed"),
         "metric": p.metric, "value": p.value, "low": p.low, "high": p.high,
         **{name.replace("_", " "): p.beside[name] for name in told}, "against": p.against,
         "folder": str(p.run.folder), "evaluation": str(p.evaluation.folder)}
        for p in measured
    ]  # fmt: skip


def seed_rows(measured: Sequence[Point]) -> list[dict[str, Any]]:
    """Mean, lowest, highest and standard deviation over the seeds of what was run more than once."""
    groups: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    for p in measured:
        groups[p.run.series, p.run.pct, p.metric, p.against][p.run.get("seed")] = p.value
    rows = []
    for (series, pct, metric, against), values in groups.items():
        of = list(values.values())
        if len(of) > 1:
            rows.append({"series": series, "pct": pct, "metric": metric, "seeds": len(of), "mean": float(np.mean(of)),
                         "lowest": min(of), "highest": max(of), "sd": float(np.std(of, ddof=1)),
                         "against": against})  # fmt: skip
    return rows


def cost_rows(found: Found) -> list[dict[str, Any]]:
    """The ledger of every training run."""
    return [
        {"run": r.name, "choosing FLOPs": r.get("ledger", "selection", "flops"),
         "training FLOPs": r.get("ledger", "training", "flops"),
         "everything FLOPs": r.get("ledger", "everything", "flops"), "saved FLOPs": r.get("ledger", "saved", "flops"),
         "pays below %": r.get("ledger", "break_even_pct"), "folder": str(r.folder)}
        for r in found.of("train") if r.get("ledger")
    ]  # fmt: skip


def example_rows(found: Found) -> list[dict[str, Any]]:
    """First, last and random rows of the rankings, once for every rule, scorer and bucket."""
    rows, seen = [], set()
    for run in found.of("train", "select"):
        of, examples = (run.rule, run.scorer, run.bucket), run.get("examples")
        if of in seen or not run.get("scores") or not isinstance(examples, dict):
            continue
        seen.add(of)
        for end, at_end in examples.items():
            rows += [{"rule": run.rule, "bucket": run.bucket, "end": end, "index": e.get("index"),
                      "score": e.get("score"),
                      "chosen": e.get("selected"), "text": e.get("text"), "folder": str(run.folder)}
                     for e in at_end]  # fmt: skip
    return rows


def group_rows(found: Found) -> list[dict[str, Any]]:
    """Win rates of every category and prompt set of every evaluation and count of votes."""
    return [
        {"model": str(measured.get("name", measured.get("model", "–"))), "against": str(run.get("baseline") or "–"),
         "kind": kind, "group": str(name), **{key: of.get(key) for key in ("n", "wins", "ties", "losses", "failed")},
         "value": rate, "low": number(of.get("ci_low")), "high": number(of.get("ci_high")),
         "evaluation": str(run.folder)}
        for run in found.of("evaluate", "votes")
        for kind, key in (("category", "by_category"), ("prompt set", "by_prompt_set"))
        for measured in run.measured
        for name, of in (measured.get(key) or {}).items()
        if (rate := number(of.get("win_rate"))) is not None
    ]  # fmt: skip


def vote_rows(found: Found) -> list[dict[str, Any]]:
    """What every annotator said, and how far they agree: Krippendorff's alpha, of nominal votes."""
    return [
        {"model": str(run.get("model")), "against": str(run.get("baseline")), "annotator": str(person.get("name")),
         **{key: person.get(key) for key in ("votes", "skipped", "replaced", "wins", "ties", "losses")},
         "value": number(person.get("win_rate")), "low": number(person.get("ci_low")),
         "high": number(person.get("ci_high")), "Krippendorff's alpha": run.get("agreement", "krippendorff_alpha"),
         "pairs with several votes": run.get("agreement", "pairs_with_several_votes"), "evaluation": str(run.folder)}
        for run in found.of("votes") for person in run.entries("annotators")
    ]  # fmt: skip


def harness_rows(found: Found) -> list[dict[str, Any]]:
    """Every figure of lm-evaluation-harness, with 95 % intervals of 1.96 standard errors."""
    return [
        {"model": m.model, "task": m.metric.partition("/")[0], "kind": m.metric.partition("/")[2],
         "rows": measured.get("tasks", {}).get(m.metric.partition("/")[0], {}).get("rows"),
         "value": m.value, "low": m.low, "high": m.high, "evaluation": str(run.folder)}
        for run in found.of("evaluate") if run.get("evaluator") == "lm_eval"
        for measured in run.measured
        for m in measures_of(measured)
    ]  # fmt: skip
