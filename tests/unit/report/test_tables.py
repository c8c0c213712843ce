"""Tables of the report, from real runs of a tiny model."""

from lpsel.report import tables
from lpsel.report.runs import find_runs, points


def test_costs_are_those_of_the_ledgers(few_runs):
    runs = find_runs([few_runs])
    rows = {row["run"]: row for row in tables.cost_rows(runs)}
    for run in runs.by_command("train"):
        row = rows[run.name]
        assert row["saved FLOPs"] == row["all rows FLOPs"] - row["scoring FLOPs"] - row["training FLOPs"]


def test_spread_is_over_seeds_only(sweep, another_seed):
    another_seed(sweep, "4", seed=2)
    another_seed(sweep, "5", seed=1)
    (row,) = tables.seed_rows(points(find_runs([sweep])))
    assert (row["seeds"], row["pct"]) == (2, 5)  # two runs with seed 1 count once
