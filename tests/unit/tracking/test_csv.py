"""`tracker=csv`: numbers in metrics.csv."""

import csv

from lpsel.tracking.csv import CSVTracker
from lpsel.tracking.tracker import Rows


def test_numbers_are_written_with_their_step_and_tables_are_not(tmp_path):
    tracker = CSVTracker()
    tracker.start("train", {}, tmp_path)
    tracker.log({"rows": Rows(["a"], [[1]])})
    tracker.log({"target/nll": 1.5}, step=0)
    tracker.log({"target/nll": 1.25, "rows": Rows(["a"], [[1]])}, step=1)
    assert tracker.finish({}) is None
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["target/nll"]) for row in rows] == [("0", "1.5"), ("1", "1.25")]


def test_a_resumed_run_keeps_the_numbers_of_the_interrupted_one_before_the_step_that_it_repeats(tmp_path):
    interrupted = {0: {"target/nll": 1.5}, 1: {"target/nll": 1.25, "rows": 3}, 2: {"target/nll": 1.0}}
    for part in (interrupted, {2: {"target/nll": 1.125}}):
        tracker = CSVTracker()
        tracker.start("train", {}, tmp_path)
        for step, numbers in part.items():
            tracker.log(numbers, step)
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("1")  # as a full disk leaves a line
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["step"], row["target/nll"], row["rows"]) for row in csv.DictReader(file) if row["step"]]
    assert rows == [("0", "1.5", ""), ("1", "1.25", "3.0"), ("2", "1.125", "")], "although neither has finished"


def test_a_resumed_run_that_first_logs_its_scores_again_repeats_neither_them_nor_its_steps(tmp_path):
    """The scorer was finished; the target resumes from its checkpoint after step 1."""
    scores = [({"records/epoch": epoch, "records/median_nll": 2.0 - epoch}, None) for epoch in range(2)]

    def steps(role, *numbers):
        return [({f"{role}/nll": 1.0 + step, "epoch": 0}, step) for step in numbers]

    for logged in (
        [*steps("scorer", 0, 1, 2), *scores, *steps("target", 0, 1, 2)],
        [*scores, *steps("target", 2, 3), ({"ledger/total": 1.0}, None)],
    ):
        tracker = CSVTracker()
        tracker.start("train", {}, tmp_path)
        for numbers, step in logged:
            tracker.log(numbers, step)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["scorer/nll"]] == ["0", "1", "2"]
    assert [row["step"] for row in rows if row["target/nll"]] == ["0", "1", "2", "3"]
    assert [float(row["records/epoch"]) for row in rows if row["records/epoch"]] == [0, 1]
    assert [row["step"] for row in rows if row["ledger/total"]] == ["3"]
