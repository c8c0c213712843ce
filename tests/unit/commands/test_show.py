"""`lpsel show`, on real run folders."""

import json
import re

import pytest

from lpsel.commands.show import main
from lpsel.errors import UserError


def shown(capsys, *arguments):
    main(list(map(str, arguments)))
    title, *lines = capsys.readouterr().out.splitlines()
    return title, dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if not line.startswith(" "))


def test_a_training_run_says_what_was_chosen_trained_and_spent_and_where_its_scores_are(few_runs, capsys):
    folder = few_runs / "train" / "other-scorer-high"
    result = json.loads((folder / "result.json").read_text())
    title, told = shown(capsys, folder)
    assert title.split() == ["train", str(folder)]
    assert told["Selection lp_app"].startswith("6 of 24 rows (25 %, 25 % requested")
    assert told["Scores from"] == f"reused: {result['scores']}"
    assert told["Scorer"].startswith(f"other-scorer: {result['scoring']['tokens']:,} tokens")
    assert f"{result['training']['tokens']:,} tokens" in told["Target"]
    assert told["Cost"].startswith(f"{result['ledger']['selection']['flops']:.3g} FLOPs to select")
    assert told["Seed"] == "42"
    assert told["Data"].startswith("rows (")
    assert "subset.jsonl" in told["Files"]
    assert "model/" in told["Files"]


def test_an_evaluation_has_a_line_for_every_model(few_runs, capsys):
    result = json.loads((few_runs / "evaluate/held-out/result.json").read_text())
    _, told = shown(capsys, few_runs / "evaluate" / "held-out" / "result.json")
    assert told["Baseline"] == result["baseline"]
    for model in result["models"]:
        assert told[model["name"]].startswith(f"nll {model['metrics']['nll']['value']:.4g} [")


def test_a_folder_that_is_no_finished_run_is_a_mistake(few_runs, tmp_path):
    with pytest.raises(UserError, match="cut-off: this run is not finished; give its command again"):
        main([str(few_runs / "train" / "cut-off")])
    with pytest.raises(UserError, match=r"contains 5 runs; `lpsel runs .*` lists them"):
        main([str(few_runs / "train")])
    (tmp_path / "result.json").write_text('{"command": "train", "rule": "lp"}')
    with pytest.raises(UserError, match="lacks what a run of train says"):
        main([str(tmp_path)])
