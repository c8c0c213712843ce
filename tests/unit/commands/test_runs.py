"""`lpsel runs`, on real run folders."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lpsel.commands.job import run
from lpsel.commands.report import report
from lpsel.commands.runs import main
from lpsel.errors import UserError
from lpsel.report.runs import find_runs


def test_every_run_is_a_line_with_its_figures_and_its_full_path(few_runs, capsys, monkeypatch):
    monkeypatch.chdir(few_runs.parent)  # `runs` is the default folder
    main([])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "rows", "target", "figures", "cost", "folder"]
    by_folder = {line.split()[-1]: line for line in lines}
    assert set(by_folder) == {
        "runs/evaluate/held-out",
        *(f"runs/train/{name}" for name in ("full", "cut-off")),
        *(f"runs/train/{scorer}-{bucket}" for scorer in ("toy-llama", "other-scorer") for bucket in ("low", "high")),
    }
    nll = json.loads((few_runs / "evaluate/held-out/result.json").read_text())["models"][0]["metrics"]["nll"]
    full = by_folder["runs/train/full"]
    assert full.startswith("train full")
    assert f"NLL {nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]" in full
    assert by_folder["runs/train/toy-llama-low"].startswith("train lp_app low 25%")
    assert "not finished: no result.json" in by_folder["runs/train/cut-off"]
    assert "of 5 models" in by_folder["runs/evaluate/held-out"]
    assert lines.index(full) < lines.index(by_folder["runs/evaluate/held-out"]), "the latest last"


def test_scripts_get_numbers(few_runs, capsys):
    main([str(few_runs), "--json"])
    rows = {row["folder"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    low = rows[str(few_runs / "train" / "toy-llama-low")]
    result = json.loads((few_runs / "train" / "toy-llama-low" / "result.json").read_text())
    assert (low["rows"], low["pct"], low["bucket"]) == (6, 25, "low")
    assert low["flops"] == result["ledger"]["total"]["flops"]
    assert low["figures"][0]["metric"] == "nll"
    assert rows[str(few_runs / "train" / "cut-off")]["reason"] == "not finished: no result.json"


def test_an_evaluation_without_information_and_a_voting_page_are_named(tmp_path, capsys):
    verdicts = [f"{i},{order},{preference}" for i in range(9) for order, preference in (("a", 1), ("b", 2))]
    (tmp_path / "verdicts.csv").write_text("id,order,preference\n" + "\n".join(verdicts))
    judged = ["evaluator=pairwise", f"judgements={tmp_path}/verdicts.csv", "tracker=none", f"cache_dir={tmp_path}"]
    run("evaluate", judged, tmp_path / "flips")
    (tmp_path / "page").mkdir()
    people = {"command": "evaluate", "evaluator": "pairwise", "page": "annotate.html", "models": [{"name": "m"}]}
    (tmp_path / "page" / "result.json").write_text(json.dumps(people))
    main([str(tmp_path)])
    _, flips, page = capsys.readouterr().out.splitlines()
    assert flips.split()[:6] == ["evaluate", "pairwise", "9", "model", "no", "information"]
    assert page.split()[:5] == ["evaluate", "pairwise", "m", "voting", "page"]


def test_a_percentage_of_the_tokens_is_named(few_runs, tmp_path, capsys):
    folder = tmp_path / "of-tokens"
    shutil.copytree(few_runs / "train" / "toy-llama-low", folder)
    result = json.loads((folder / "result.json").read_text())
    result["settings"]["pct_of"] = "tokens"
    (folder / "result.json").write_text(json.dumps(result))
    main([str(folder)])
    assert "train lp_app low 25% of the tokens" in capsys.readouterr().out
    main([str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["pct_of"] == "tokens"


def test_the_table_fits_a_terminal_and_paths_are_wrapped(few_runs, on_a_terminal):
    output = on_a_terminal("-m", "lpsel", "runs", str(few_runs), NO_COLOR="1").decode()
    lines = output.splitlines()
    assert max(len(line) for line in lines if "\x1b" not in line) <= 80
    column = next(line for line in lines if "folder" in line)
    assert "cost" not in column
    parts = "".join(line.rstrip().rsplit("  ", 1)[-1].strip() for line in lines)
    assert str(few_runs / "train" / "toy-llama-low") in parts


def test_control_characters_in_names_are_escaped(tmp_path, capsys):
    (tmp_path / "evil").mkdir()
    result = {"command": "train", "rule": "\x1b[2J[red]", "pct": 5, "base_model": {"name": "m"}}
    (tmp_path / "evil" / "result.json").write_text(json.dumps(result))
    main([str(tmp_path)])
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert r"train \x1b[2J[red] 5%" in output


def test_a_command_that_fails_before_it_starts_leaves_no_run(tmp_path, toy_model, instructions):
    data = [f"dataset.path={instructions(rows=4)}", "dataset=local", "tracker=none", f"cache_dir={tmp_path}/cache"]
    late = ["scorer=local", f"scorer.path={toy_model}", "cluster=none", "scorer.max_length=2"]
    for name, more in (("at once", ["scores=nowhere.parquet"]), ("late", late)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "select.log").write_text("")
        with pytest.raises(UserError):
            run("select", [*data, *more], tmp_path / name)
    assert find_runs([tmp_path]).skipped == []


def test_no_runs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs and multirun: no such folder here"):
        main([])
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="runs: contains no run"):
        main([])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        main(["nowhere"])


def test_the_command_does_not_import_torch_or_matplotlib(few_runs):
    code = (
        "import sys; from lpsel.commands.runs import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, few_runs], capture_output=True, text=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_number_that_no_float_can_hold_does_not_stop_the_others(few_runs, tmp_path, capsys):
    shutil.copytree(few_runs / "evaluate" / "held-out", tmp_path / "good")
    odd = {"command": "evaluate", "n": 5, "win_rate": 10**310, "models": [{"name": "m", "win_rate": -(10**310)}]}
    for name, result in {"odd": odd, "train": {"command": "train", "pct": 10**310, "rule": "lp"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert any("of 5 models" in line for line in lines)
    report([str(tmp_path)], tmp_path / "report")
    assert "held-out" not in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"examples": {"first": "x"}},
        {"diagnosis": {"warnings": 5}},
        {"models": [{"name": []}]},
        {"bucket": [1]},
        {"seed": [1]},
        {"training": {"rows": 10**310}},
        {"models": [{"name": "m", "win_rate": 50.0, "by_category": {"c": {"n": 10**310, "win_rate": 50.0}}}]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_malformed_result_is_skipped_with_the_reason(few_runs, tmp_path, capsys, change):
    shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / "good")
    command = "evaluate" if "models" in change else "train"
    result = json.loads((tmp_path / "good" / "result.json").read_text()) | change | {"command": command}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "result.json").write_text(json.dumps(result))
    main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.split()[-1].endswith(("good", "odd"))]) == 2
    (odd,) = (line for line in lines if line.endswith("odd"))
    assert "result.json is not complete (" in odd or "bucket" in change
    assert (report([str(tmp_path)], tmp_path / "report")).is_file()


def test_seeds_are_shown_where_they_differ(sweep, another_seed, capsys):
    main([str(sweep)])
    assert " seed 1 " not in capsys.readouterr().out
    another_seed(sweep, "again", 2)
    main([str(sweep)])
    lines = capsys.readouterr().out.splitlines()
    assert sum("train lp 5% seed 1" in line for line in lines) == 1
    assert sum("train lp 5% seed 2" in line for line in lines) == 1
