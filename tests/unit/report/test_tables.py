"""Tables of the report, from real runs of a tiny model."""

from lpsel.report import tables
from lpsel.report.runs import find_runs


def test_costs_are_those_of_the_ledgers(few_runs):
    runs = find_runs([few_runs])
    rows = {row["run"]: row for row in tables.cost_rows(runs)}
    for run in runs.by_command("train"):
        row = rows[run.name]
        assert row["saved FLOPs"] == row["all rows FLOPs"] - row["scoring FLOPs"] - row["training FLOPs"]
