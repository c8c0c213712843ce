"""Tables of quality: what every evaluation measured, and the results of every selection over its seeds."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpsel.report.comparisons import Comparison, at_equal_rows, t_interval
from lpsel.report.points import WIN_RATE_DETAILS, Point
from lpsel.report.runs import number, short_labels

SPREAD = ("value", "low", "high", "lowest", "highest", "sd")  # over seeds


def point_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row per training run and evaluation of it."""
    known = [name for name in WIN_RATE_DETAILS if any(p.details[name] is not None for p in points)]
    return [
        {
            "run": p.run.name,
            "series": p.run.series,
            "pct": p.run.pct,
            "seed": p.run.get("seed"),
            **_sizes([p]),
            **{name: getattr(p, name) for name in ("metric", "value", "low", "high")},
            **{name.replace("_", " "): p.details[name] for name in known},
            "against": p.against,
            "folder": str(p.run.folder),
            "evaluation": str(p.evaluation.folder),
        }
        for p in points
    ]


def result_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row per selection, percentage and metric, key figures first: the mean over the seeds, and random rows compared.

    The interval is that of the mean (t, n - 1 degrees of freedom), or that of the evaluation where there is one seed.
    A series with two values for one seed has no mean: which of them counts is unknown.
    """
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for p in points:
        groups[p.metric, p.against].append(p)
    rows, labels = [], short_labels([p.run for p in points])
    for group in reversed(groups.values()):
        compared = {(c.point.run.series, c.point.run.pct): c for c in at_equal_rows(group)}
        seeds: dict[tuple[str, float | None], dict[Any, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for p in group:
            seeds[p.run.series, p.run.pct][p.run.get("seed")].append(p)
        for key, by_seed in sorted(seeds.items(), key=lambda item: (item[0][0], item[0][1] or 0.0)):
            rows.append(_result(labels[key[0]], by_seed, compared.get(key)))
    return rows


def _result(label: str, by_seed: dict[Any, list[Point]], compared: Comparison | None) -> dict[str, Any]:
    first = [same[0] for same in by_seed.values()]
    p = first[0]
    doubled = [seed for seed, same in by_seed.items() if len({each.value for each in same}) > 1]
    values = dict.fromkeys(SPREAD) if doubled else _spread(first)
    ours = [run.flops for run in (each.run for each in first) if run.flops]
    everything = [flops for each in first if (flops := number(each.run.get("ledger", "everything", "flops")))]
    total = float(np.mean(ours)) if ours else None
    difference = dict.fromkeys(("value", "low", "high")) if compared is None else compared.difference._asdict()
    return {
        "selection": label,
        "series": p.run.series,
        "pct": p.run.pct,
        "seeds": ", ".join(str(seed) for seed in sorted(by_seed, key=str) if seed is not None),
        **_sizes(first),
        "metric": p.metric,
        "n": _range([each.details["n"] for each in first]),
        **values,
        **{f"minus random{name}": difference[key] for name, key in (("", "value"), (" low", "low"), (" high", "high"))},
        "total FLOPs": total,
        "FLOPs, % of all rows": 100 * total / float(np.mean(everything)) if total and everything else None,
        "problem": f"two values for seed {doubled[0]}" if doubled else None,
        "against": p.against,
    }


def _spread(points: Sequence[Point]) -> dict[str, float | None]:
    values = [p.value for p in points]
    if len(values) == 1:
        return dict.fromkeys(SPREAD) | {"value": values[0], "low": points[0].low, "high": points[0].high}
    spread = (*t_interval(values), min(values), max(values), float(np.std(values, ddof=1)))
    return dict(zip(SPREAD, spread, strict=True))


def _sizes(points: Sequence[Point]) -> dict[str, str | None]:
    """What equal percentages differ in: rows and tokens of training."""
    trained = {name: [number(p.run.get("training", name)) for p in points] for name in ("rows", "tokens")}
    return {"rows": _range(trained["rows"]), "training tokens": _range(trained["tokens"])}


def _range(values: Sequence[float | None]) -> str | None:
    """The lowest and the highest of the known values."""
    known = sorted({value for value in values if value is not None})
    return " to ".join(f"{value:,.0f}" for value in dict.fromkeys([known[0], known[-1]])) if known else None
