"""The models that `lpsel evaluate model=...` stands for."""

import json
import shutil
from dataclasses import replace

import pytest
from hydra import compose

from lpsel.commands.evaluate import _runs_of, _warn_of_toy_rows, candidates_of
from lpsel.commands.job import run
from lpsel.config import build, configured
from lpsel.data.dataset import DatasetSpec
from lpsel.errors import UserError


@pytest.fixture
def config():
    with configured("evaluate"):
        yield compose("evaluate")


def candidates(config, *models, baseline=None):
    config.models, config.baseline = list(models), baseline
    return candidates_of(config)[0]


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
    models = candidates(config, *runs, baseline=str(few_runs / "train" / "full"))
    one, two = (model.name for model in models.models)
    assert (one.removesuffix(", seed 1"), two.removesuffix(", seed 2")) == (one[:-8], one[:-8])
    assert "seed" not in models.baseline.name


def test_runs_that_differ_in_how_they_select_have_different_names(few_runs, tmp_path, config):
    shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    settings = result["settings"] | {"length": "matched", "known": "drop", "pct_of": "tokens"}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"settings": settings}))
    runs = [str(few_runs / "train" / "toy-llama-low"), str(tmp_path / "run")]
    plain, changed = (model.name for model in candidates(config, *runs).models)
    assert plain.endswith("lp_app low bucket by toy-llama, 25%")
    assert changed.endswith("lp_app low bucket of matched length without known rows by toy-llama, 25% of the tokens")


@pytest.mark.parametrize(
    "changes",
    [{"pct": "x"}, {"pct": 10**400}, {"pct": [10]}, {"adapter": "lora"}, {"scorer": "x"}, {"base_model": {}}],
)
def test_a_result_that_lpsel_did_not_write_is_no_run(few_runs, tmp_path, config, changes):
    shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / "theirs")
    result = json.loads((tmp_path / "theirs" / "result.json").read_text())
    (tmp_path / "theirs" / "result.json").write_text(json.dumps(result | changes))
    with pytest.raises(UserError) as caught:
        candidates(config, str(tmp_path / "theirs"))
    assert caught.value.problem.startswith("neither a finished run of train.py (result.json with a model) nor")


def test_a_real_model_on_the_embedded_rows_is_a_warning(few_runs, tmp_path, config, caplog):
    def warned(name, evaluator):
        caplog.clear()
        _warn_of_toy_rows(evaluator, [name], candidates(config, name))
        return caplog.text

    trained = str(shutil.copytree(few_runs / "train" / "toy-llama-low", tmp_path / "run"))
    embedded = build(config.evaluator)
    assert "dataset=embedded has toy rows for the embedded models: results of toy-" in warned(trained, embedded)
    assert "results of opt-350m on them are meaningless. Set dataset=" in warned("facebook/opt-350m", embedded)
    assert not warned("tiny-target", embedded)
    assert not warned(trained, replace(embedded, dataset=DatasetSpec("mine", path="mine.jsonl")))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(
        json.dumps(result | {"base_model": result["base_model"] | {"path": None}})
    )
    assert not warned(trained, embedded)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "prompts=koala",
            "prompts=koala: evaluator=reference does not use it. Leave it out, or set evaluator=pairwise.",
        ),
        ("judgements=x.json", "judgements=x.json: evaluator=reference does not use it"),
        ("judge=human", "judge: evaluator=reference does not use it"),
        ("evaluator=lm_eval tasks=x judge.attempts=2", "judge: evaluator=lm_eval does not use it"),
        (
            "evaluator=pairwise judgements=x prompts=koala",
            "prompts=koala: evaluator=pairwise does not use it with judg",
        ),
        ("evaluator=pairwise judgements=x judge=human", "judge: evaluator=pairwise does not use it with judgements="),
        ("evaluator=pairwise judgements=x models=a", "model=a: evaluator=pairwise does not use it with judgements="),
    ],
)
def test_an_option_that_is_not_used_is_an_error(overrides, message, tmp_path):
    given = ["tracker=none", f"cache_dir={tmp_path}", *overrides.split()]
    with pytest.raises(UserError) as caught:
        run("evaluate", given, tmp_path / "run")
    assert str(caught.value).startswith(message)
    with configured("evaluate"):
        config = compose("evaluate", overrides=given)
    with pytest.raises(UserError) as planned:
        candidates_of(config)
    assert str(planned.value) == str(caught.value)
