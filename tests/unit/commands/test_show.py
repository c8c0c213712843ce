"""`lpsel show`, on real run folders."""

import json
import re
import shutil
import time
from itertools import pairwise

import pytest

from lpsel.commands.show import main
from lpsel.errors import UserError


def shown(capsys, *arguments):
    main(list(map(str, arguments)))
    title, *lines = capsys.readouterr().out.splitlines()
    return title, dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if not line.startswith(" "))


def test_a_training_run_has_its_selection_scores_training_and_cost(few_runs, capsys):
    folder = few_runs / "train" / "other-scorer-high"
    result = json.loads((folder / "result.json").read_text())
    title, pairs = shown(capsys, folder)
    assert title.split() == ["train", str(folder)]
    assert pairs["Selection lp_app"].startswith("6 of 24 rows (25%, budget exact")
    assert pairs["Scores from"] == f"reused: {result['scores']}"
    assert pairs["Scorer"].startswith(f"other-scorer: {result['scoring']['tokens']:,} tokens")
    assert f"{result['training']['tokens']:,} tokens" in pairs["Target"]
    assert pairs["Cost"].startswith(f"{result['ledger']['selection']['flops']:.3g} FLOPs to select")
    assert pairs["Seed"] == "42"
    assert pairs["Data"].startswith("rows (")
    assert "subset.jsonl" in pairs["Files"]
    assert "model/" in pairs["Files"]


def test_an_evaluation_has_a_line_per_model(few_runs, capsys):
    result = json.loads((few_runs / "evaluate/held-out/result.json").read_text())
    _, pairs = shown(capsys, few_runs / "evaluate" / "held-out" / "result.json")
    assert pairs["Baseline"] == result["baseline"]
    for model in result["models"]:
        assert pairs[model["name"]].startswith(f"nll {model['metrics']['nll']['value']:#.4g} [")


def test_a_folder_without_a_finished_run_is_an_error(few_runs, tmp_path):
    with pytest.raises(UserError, match=r"cut-off: not finished: no result\.json"):
        main([str(few_runs / "train" / "cut-off")])
    with pytest.raises(UserError, match=r"contains 5 runs\. `lpsel runs .*` lists them"):
        main([str(few_runs / "train")])
    (tmp_path / "result.json").write_text('{"command": "train", "rule": "lp"}')
    with pytest.raises(UserError, match=r"result\.json: is not complete"):
        main([str(tmp_path)])


LINKS = ",".join(["*{}"] * 9)
BOMB = "a: &a [x,x]\n" + "".join(f"{b}: &{b} [{LINKS.replace('{}', a)}]\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize("overrides", [BOMB, "[1", "- pct=5\n- model=${oc.env:HOME_OF_SECRETS}\n- \x1b[2J"])
def test_overrides_from_someone_else_are_shown_as_text(few_runs, tmp_path, capsys, monkeypatch, overrides):
    monkeypatch.setenv("HOME_OF_SECRETS", "resolved")
    shutil.copytree(few_runs / "evaluate" / "held-out", tmp_path / "theirs")
    (tmp_path / "theirs" / ".hydra").mkdir()
    (tmp_path / "theirs" / ".hydra" / "overrides.yaml").write_text(overrides)
    started = time.monotonic()
    _, pairs = shown(capsys, tmp_path / "theirs")
    assert time.monotonic() - started < 2
    if overrides.startswith("- "):
        assert pairs["Overrides"] == r"pct=5 model=${oc.env:HOME_OF_SECRETS} \x1b[2J"
