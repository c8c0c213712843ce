"""The models that `lpsel evaluate model=...` stands for."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir

from lpsel.commands.evaluate import _candidates, _runs_of
from lpsel.config import config_dir
from lpsel.errors import UserError


@pytest.fixture
def config():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("evaluate")


def test_the_folder_of_a_sweep_stands_for_its_finished_training_runs_but_the_baseline(few_runs, caplog):
    sweep = few_runs / "train"
    of_sweep = _runs_of(str(sweep), None)
    assert {run.rpartition("/")[2] for run in of_sweep} == {path.name for path in sweep.iterdir()} - {"cut-off"}
    assert "1 of its runs are not finished" in caplog.text
    assert set(of_sweep) - set(_runs_of(f"{sweep}/", f"{sweep}/full/")) == {str(sweep / "full")}
    for name in (str(sweep / "full"), str(sweep / "full" / "model"), "opt-350m", "facebook/opt-350m"):
        assert _runs_of(name, None) == [name]


def test_runs_that_differ_only_in_their_seed_are_named_with_it(few_runs, tmp_path, config):
    runs = []
    for seed in (1, 2):
        runs.append(str(shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / str(seed))))
        result = json.loads((few_runs / "train" / "toy-llama-low" / "result.json").read_text())
        (tmp_path / str(seed) / "result.json").write_text(json.dumps(result | {"seed": seed}))
    models = _candidates(runs, [str(few_runs / "train" / "full")], config)
    one, two = (model.name for model in models.models)
    assert (one.removesuffix(", seed 1"), two.removesuffix(", seed 2")) == (one[:-8], one[:-8])
    assert "seed" not in models.baseline.name


@pytest.mark.parametrize(
    "changes",
    [{"pct": "x"}, {"pct": 10**400}, {"pct": [10]}, {"adapter": "lora"}, {"scorer": "x"}, {"base_model": {}}],
)
def test_a_result_that_lpsel_did_not_write_is_no_run(few_runs, tmp_path, config, changes):
    shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / "theirs")
    result = json.loads((tmp_path / "theirs" / "result.json").read_text())
    (tmp_path / "theirs" / "result.json").write_text(json.dumps(result | changes))
    with pytest.raises(UserError) as caught:
        _candidates([str(tmp_path / "theirs")], [], config)
    assert caught.value.problem.startswith("neither a finished run of train.py (result.json with a model) nor")
