"""Quality tables: metrics from every evaluation, and results of every selection over its seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpsel.evaluation.statistics import t_interval
from lpsel.report.cells import spread
from lpsel.report.comparisons import at_equal_rows, at_equal_tokens
from lpsel.report.points import WIN_RATE_DETAILS, Interval, Point, by_selection, comparable, untrained
from lpsel.report.runs import grouped, number, short_labels

SPREAD = ("value", "low", "high", "lowest", "highest", "sd")  # over seeds


def point_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per training run and evaluation."""
    known = [name for name in WIN_RATE_DETAILS if any(p.details[name] is not None for p in points)]
    return [
        {
            "run": p.run.name,
            "series": p.run.series,
            "pct": p.run.pct,
            "seed": p.run.get("seed"),
            **_sizes([p]),
            "metric": p.metric,
            **p.at._asdict(),
            **{name.replace("_", " "): p.details[name] for name in known},
            "against": p.against,
            "folder": str(p.run.folder),
            "evaluation": str(p.evaluation.folder),
        }
        for p in points
    ]


def result_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per selection, percentage and metric, key figures first, then untrained models.

    A row has the mean over seeds, and the differences from equally many random rows and from random rows with equally
    many training tokens. The interval is for the mean (t, n - 1 degrees of freedom), or from the evaluation if there is
    one seed. A series with two values for one seed has no mean, since it is unknown which one to use.
    """
    rows, labels = [], short_labels([p.run for p in points])
    for group in comparable(points):
        from_rows = {c.selection: c.difference for c in at_equal_rows(group)}
        from_tokens = {c.selection: c.difference for c in at_equal_tokens(group)}
        for series, by_pct in by_selection(group).items():
            for pct, same in by_pct.items():
                differences = {
                    "minus random": from_rows.get((series, pct)),
                    "minus random, equal tokens": from_tokens.get((series, pct)),
                }
                rows.append(_result(labels[series], same, differences))
        for label, value in untrained(group).items():
            empty = dict.fromkeys(rows[-1])
            known = {"metric": group[0].metric, "against": group[0].against, "selection": label, "value": value}
            rows.append(empty | known)
    return rows


def _result(label: str, same: Sequence[Point], differences: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Row of one selection, from its points of all seeds and its differences from random rows by column name."""
    by_seed = grouped(same, lambda p: p.run.get("seed"))
    one_per_seed = [seed_points[0] for seed_points in by_seed.values()]
    p = one_per_seed[0]
    ambiguous = [seed for seed, seed_points in by_seed.items() if len({q.value for q in seed_points}) > 1]
    flops = _mean([q.run.flops for q in one_per_seed])
    flops_of_all_rows = _mean([q.run.flops_of_all_rows for q in one_per_seed])
    difference_columns: dict[str, float | None] = {}
    for name, at in differences.items():
        value, low, high = at or (None, None, None)
        difference_columns |= {name: value, f"{name} low": low, f"{name} high": high}
    return {
        "selection": label,
        "series": p.run.series,
        "pct": p.run.pct,
        "seeds": ", ".join(str(seed) for seed in sorted(by_seed, key=str) if seed is not None),
        **_sizes(one_per_seed),
        "metric": p.metric,
        "n": _range([q.details["n"] for q in one_per_seed]),
        **(dict.fromkeys(SPREAD) if ambiguous else _spread(one_per_seed)),
        **difference_columns,
        "total FLOPs": flops,
        "FLOPs, % of all rows": 100 * flops / flops_of_all_rows if flops and flops_of_all_rows else None,
        "problem": f"two values for seed {ambiguous[0]}" if ambiguous else None,
        "against": p.against,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known and not 0; None if there are none."""
    known = [value for value in values if value]
    return float(np.mean(known)) if known else None


def _spread(points: Sequence[Point]) -> dict[str, float | None]:
    """Columns `SPREAD` of a selection with one point per seed."""
    values = [p.value for p in points]
    if len(values) == 1:
        return dict.fromkeys(SPREAD) | points[0].at._asdict()
    statistics = (*t_interval(values), min(values), max(values), float(np.std(values, ddof=1)))
    return dict(zip(SPREAD, statistics, strict=True))


def _sizes(points: Sequence[Point]) -> dict[str, str | None]:
    """Training rows and tokens, which can differ at equal percentages."""
    return {
        "rows": _range([number(p.run.get("training", "rows")) for p in points]),
        "training tokens": _range([p.run.tokens for p in points]),
    }


def _range(values: Sequence[float | None]) -> str | None:
    """Format counts as a number or a range; None if none is known."""
    known = [value for value in values if value is not None]
    return spread(known, "{:,.0f}".format) if known else None
