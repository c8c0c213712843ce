"""`lpsel rows`: rankings worked out by hand, texts that try to run in the terminal, real scores."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands import job
from lpsel.commands.arguments import checked_rows, selection_table
from lpsel.commands.rows import Chosen, main
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.errors import UserError

EVIL = "\x1b[2J\x1b]0;owned\x07[red]Clear the screen.[/red]\r\u202e"


def head(line):
    return re.split(r"\s{2,}", line.strip())


@pytest.fixture
def scores(tmp_path):
    """Four rows with LP_app .1, .8, .5 and, with no supervised token, none; NLL after training falls with it."""
    table = pa.table(
        {"ppl_0": [10.0, 10.0, 10.0, None], "ppl_1": [9.0, 2.0, 5.0, None], "ppl_2": [8.0, 1.5, 1.5, None]}
    )
    pq.write_table(table, tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def ranking(capsys, *arguments):
    main(list(map(str, arguments)))
    return [head(line)[0] for line in capsys.readouterr().out.splitlines() if line.startswith("row ")]


def test_hard_rows_have_a_low_learning_percentage_or_a_high_loss(scores, capsys):
    assert ranking(capsys, scores) == ["row 0", "row 2", "row 1"]
    assert ranking(capsys, scores, "--hardest", 1, "--easiest", 1) == ["row 0", "row 1"]
    assert ranking(capsys, scores, "--easiest", 2) == ["row 1", "row 2"]
    # LP: (10 - 9) / (10 - 8) = .5; (10 - 2) / 8.5 = .94; (10 - 5) / 8.5 = .59
    assert ranking(capsys, scores, "--by", "lp") == ["row 0", "row 2", "row 1"]
    assert ranking(capsys, scores, "--by", "nll_1") == ["row 0", "row 2", "row 1"]
    assert ranking(capsys, scores, "--by", "nll_0", "--hardest", 2) == ["row 0", "row 1"]  # ties by row number


def test_rows_have_their_numbers_and_missing_texts_are_explained(scores, capsys):
    main([str(scores), "--hardest", "1"])
    title, row, why = capsys.readouterr().out.splitlines()
    assert title == "Hardest 1 of 3 rows by lp_app"
    assert head(row) == ["row 0", "lp_app 0.1", "NLL 2.303 → 2.197 → 2.079"]  # ln 10, ln 9, ln 8
    assert why == f"No texts: {scores}: does not name its dataset. Add --dataset FILE."


def test_texts_cannot_run_in_the_terminal(scores, tmp_path, capsys, on_a_terminal):
    rows = [{"instruction": EVIL, "input": "[link=x]", "output": "a\nb"}] + [{"instruction": "x", "output": "y"}] * 3
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([str(scores), "--hardest", "1", "--dataset", str(data)])
    printed = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert [head(line) for line in printed.splitlines()[2:]] == [
        ["user", r"\x1b[2J\x1b]0;owned\x07[red]Clear the screen.[/red]\r\u202e"],
        ["input", "[link=x]"],
        ["assistant", r"a\nb"],
    ]
    arguments = ["-m", "lpsel", "rows", str(scores), "--hardest", "1", "--dataset", str(data)]
    drawn = on_a_terminal(*arguments, NO_COLOR="1").decode()
    assert "[red]Clear the screen.[/red]" in drawn
    assert set(re.findall(r"\x1b.[^m]*m?", drawn)) <= {"\x1b[0m", "\x1b[1m", "\x1b[3m"}, "rich's own, and no color"


def test_a_scores_folder_names_its_dataset(few_runs, capsys):
    folder = few_runs / "train" / "toy-llama-low"
    result = json.loads((folder / "result.json").read_text())
    main([str(Path(result["scores"]).parent), "--hardest", "2"])
    lines = capsys.readouterr().out.splitlines()
    source = list(Source(DatasetSpec("rows", result["dataset"]["path"])))
    for place in (1, 4):  # a line of numbers, one of the user, one of the assistant
        index = int(lines[place].split()[1])
        assert head(lines[place + 1]) == ["user", source[index].raw["instruction"]]
        assert head(lines[place + 2]) == ["assistant", source[index].raw["output"]]


def test_unusable_rows_of_the_dataset_are_passed_over_or_named(scores, tmp_path, capsys):
    rows = [{"instruction": ["a"], "output": "b"}, {"instruction": "x", "output": "y"}, {"image": "z"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))
    main([str(scores), "--dataset", str(data), "--easiest", "2", "--hardest", "1"])
    shown = [head(line) for line in capsys.readouterr().out.splitlines() if " of 3 rows by " not in line]
    assert [line[:2] for line in shown if "row" not in line[0]] == [
        ["unusable", "a list as text"],
        ["user", "x"],
        ["assistant", "y"],
        ["unusable", "an unknown form"],
    ]


def test_rows_are_checked_by_their_content_unusable_ones_too(tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"image": "z"}, {"instruction": "x", "output": "y"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(DatasetSpec("rows", str(data), bad_rows="skip"))
    ids = source.ids.to_pylist()
    assert [row.index for row in checked_rows(source, dict(enumerate(ids)))] == [0, 1, 2]
    assert [row.index for row in checked_rows(source, {2: "user-7", 1: None})] == [1, 2]
    for wrong, number in (({0: ids[0], 1: ids[2]}, 1), ({2: ids[2], 3: None}, 3)):
        with pytest.raises(UserError, match=f"row {number} is not the row that was scored"):
            list(checked_rows(source, wrong))


@pytest.fixture
def run(few_runs):
    """A run without clusters that selected 6 of the 8 rows in the lowest third of 24, by content and seed."""
    return few_runs / "train" / "toy-llama-low"


def test_rows_of_a_run_say_whether_they_were_selected_and_where_the_cut_was(run, capsys):
    written = {row["index"]: row for row in pq.read_table(run / "selection.parquet").to_pylist()}
    main([str(run), "--hardest", "24"])
    lines = capsys.readouterr().out.splitlines()
    shown = [(int(lines[i].split()[1]), lines[i + 1].strip()) for i in range(1, len(lines), 4)]
    assert len(shown) == 24
    assert {mark for row, mark in shown if row in written and written[row]["selected"]} == {
        f"selected, rank {rank}; 6 rows are selected" for rank in range(1, 7)
    }
    assert {mark for row, mark in shown if not written[row]["selected"]} == {
        "not selected, rank 7; 6 rows are selected",
        "not selected, rank 8; 6 rows are selected",
        "not selected: in bucket mid",
        "not selected: in bucket high",
    }


def test_chosen_lists_only_selected_rows(run, capsys):
    selected = pq.read_table(run / "selection.parquet")["selected"].to_numpy().nonzero()[0].tolist()
    assert sorted(int(name.split()[1]) for name in ranking(capsys, run, "--chosen")) == selected
    main([str(run), "--chosen", "--hardest", "2"])
    assert capsys.readouterr().out.splitlines()[0] == "Hardest 2 of 6 selected rows by lp_app"


def test_one_row_is_shown_with_all_of_its_text(scores, tmp_path, capsys, monkeypatch):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        json.dumps({"instruction": "x", "output": "word " * 100}) + "\n" + '{"instruction": "x", "output": ""}\n' * 3
    )
    arguments = [str(scores), "--dataset", str(data)]
    monkeypatch.setattr("lpsel.commands.rows.Console.is_terminal", True)
    main([*arguments, "--hardest", "1"])
    assert re.sub(r"\x1b\S*?m", "", capsys.readouterr().out).rstrip().endswith("word…")
    main([*arguments, "--row", "3", "0"])
    out = re.sub(r"\x1b\S*?m", "", capsys.readouterr().out)
    assert re.findall(r"^row \d +lp_app \S+", out, re.MULTILINE) == [
        "row 3        lp_app undefined",
        "row 0        lp_app 0.1",
    ]
    assert out.count("word") == 100


def test_rows_of_a_run_with_clusters_have_the_counts_of_their_cluster(tmp_path):
    columns = {"selected": [True, False, True], "rank": [1, 2, 1], "cluster": [4, 4, -1]}
    table = pa.table({**columns, "reason": pa.nulls(3, pa.string())})
    chosen = Chosen.of(table, {"clusters": 2})
    assert [chosen.mark(row) for row in range(3)] == [
        "selected, rank 1; 1 row is selected in cluster 4",
        "not selected, rank 2; 1 row is selected in cluster 4",
        "selected, rank 1; 1 row is selected without a cluster",
    ]


def test_a_run_without_columns_of_its_selection_is_named(tmp_path):
    error = r"selection.parquet: is missing or has no columns selected, reason"
    with pytest.raises(UserError, match=error):
        selection_table(tmp_path, ["selected", "reason"])
    pq.write_table(pa.table({"selected": [True]}), tmp_path / "selection.parquet")
    with pytest.raises(UserError, match=error):
        selection_table(tmp_path, ["selected", "reason"])


@pytest.mark.parametrize(
    ("overrides", "first"),
    [(["selection=longest"], {23}), (["selection=random"], set(range(24))),
     (["selection=score_column", "selection.column=price", "scores=PRICES"], {5})],
)  # fmt: skip
def test_rows_of_a_run_without_losses_are_in_the_order_in_which_it_selects(
    overrides, first, instructions, toy_model, tmp_path, capsys
):
    data = instructions(rows=24)
    texts = [json.loads(line) for line in data.read_text().splitlines()]
    texts[23]["output"] = "the longest answer " * 9
    data.write_text("".join(json.dumps(row) + "\n" for row in texts))
    prices = tmp_path / "prices.parquet"
    pq.write_table(pa.table({"price": [float((row + 19) % 24) for row in range(24)]}), prices)
    given = [override.replace("PRICES", str(prices)) for override in overrides]
    shared = ["dataset=local", f"dataset.path={data}", "scorer=local", f"scorer.path={toy_model}", "cluster=none"]
    job.run("select", [*given, *shared, "pct=25", "tracker=none", f"cache_dir={tmp_path}"], tmp_path / "run")
    stored = pq.read_table(tmp_path / "run" / "selection.parquet").to_pylist()
    by_rank = [f"row {row['index']}" for row in sorted(stored, key=lambda row: row["rank"])]
    assert ranking(capsys, tmp_path / "run", "--hardest", 24) == by_rank
    assert ranking(capsys, tmp_path / "run", "--chosen") == by_rank[:6]
    assert int(by_rank[0].split()[1]) in first
    main([str(tmp_path / "run"), "--easiest", "1"])
    title, _, mark, *texts, note = capsys.readouterr().out.splitlines()
    assert title == "Last 1 of 24 rows by rank"
    assert mark.strip() == "not selected, rank 24; 6 rows are selected"
    assert texts
    assert note.startswith("This run has no losses. The rows are in the order in which selection=")


def test_rows_of_a_rule_with_a_score_of_its_own_are_in_its_order(few_runs, tmp_path, capsys):
    scored = json.loads((few_runs / "train" / "toy-llama-low" / "result.json").read_text())
    data = json.loads((few_runs / "train" / "toy-llama-low" / "run_config.json").read_text())["config"]["dataset"]
    given = ["selection=perplexity", "dataset=local", f"dataset.path={data['path']}", f"scores={scored['scores']}"]
    job.run("select", [*given, "cluster=none", "pct=25", "tracker=none", f"cache_dir={tmp_path}"], tmp_path / "run")
    stored = pq.read_table(tmp_path / "run" / "selection.parquet").to_pylist()
    by_rank = [f"row {row['index']}" for row in sorted(stored, key=lambda row: row["rank"])]
    assert ranking(capsys, tmp_path / "run", "--chosen", "--hardest", 24) == by_rank[:6]
    assert ranking(capsys, tmp_path / "run", "--by", "nll_1", "--hardest", 24) != by_rank
    main([str(tmp_path / "run"), "--hardest", "1"])
    title, first, *_, note = capsys.readouterr().out.splitlines()
    assert title == "First 1 of 24 rows by rank"
    assert head(first)[0] == by_rank[0]
    assert head(first)[1].startswith("score ")
    assert head(first)[2].startswith("NLL ")
    assert note == "The rows are in the order in which selection=perplexity selects them."


def test_a_dataset_with_other_rows_is_an_error(few_runs, tmp_path, capsys):
    folder = few_runs / "train" / "toy-llama-low"
    other = tmp_path / "other.jsonl"
    other.write_text('{"instruction": "x", "output": "y"}\n' * 24)
    with pytest.raises(UserError, match=r"--dataset=.*other\.jsonl: row \d+ is not the row that was scored"):
        main([str(folder), "--hardest", "2", "--dataset", str(other)])


def test_released_scores_with_the_released_data(shared_data, capsys):
    arguments = [str(shared_data / "perplexities_dolly.npz"), "--key", "opt-350m", "--hardest", "2"]
    main([*arguments, "--dataset", str(shared_data / "dolly.jsonl.xz")])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Hardest 2 of [\d,]+ rows by lp_app", lines[0])
    assert sum(line.startswith("row ") for line in lines) == 2
    assert sum(line.strip().startswith("user ") for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["SCORES", "--by", "lp_ap"],
            "--by=lp_ap: these scores have lp, lp_app, lp_nll, lp_app_nll, nll_0, nll_1, nll_2. Choose one of them.",
        ),
        (["SCORES", "--hardest", "-3"], "--hardest: -3: must be a number of rows"),
        (["SCORES", "--easiest", "few"], "--easiest: few: must be a number of rows"),
        (["SCORES", "--row", "9"], "--row=9: these scores have rows 0 to 3. Pass one of them."),
        (["SCORES", "--chosen"], "--chosen: these are scores without a selection. Pass a run folder."),
        (["nowhere.parquet"], "nowhere.parquet: no such file"),
        (["SCORES", "--dataset", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_errors_are_one_line(scores, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        main([str(scores) if argument == "SCORES" else argument for argument in arguments])


def test_a_run_that_is_not_finished_has_no_scores_yet(tmp_path):
    (tmp_path / "run_config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path}: neither a scores folder nor a finished run of select or train"):
        main([str(tmp_path)])


def test_texts_of_a_run_are_found_from_any_folder(instructions, tmp_path, monkeypatch, capsys):
    data = instructions(rows=6)
    monkeypatch.chdir(data.parent)
    given = ["scorer=tiny", "dataset=local", f"dataset.path={data.name}", "cluster=none", "tracker=none", "pct=50"]
    job.run("select", [*given, "selection=longest"], tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["../run", "--hardest", "1"])
    first = json.loads(data.read_text().splitlines()[0])
    shown = capsys.readouterr().out
    assert "No texts" not in shown
    assert first["instruction"].split()[0] in shown
