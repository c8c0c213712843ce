"""The evaluations of an experiment."""

import json

import pytest
from fixtures.configurations import compose
from omegaconf import OmegaConf

from lpsel.commands import experiment
from lpsel.commands.evaluate import candidate
from lpsel.config import configured
from lpsel.errors import UserError
from lpsel.model.spec import ModelSpec
from lpsel.run_config import RunConfig


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """The overrides of what `conclude` evaluates, of two rules and all rows for each target."""

    def conclude(evaluate, targets, tracker=(), group=None, **base_model):
        runs, calls = [], []
        for name, path in targets:
            for rule in ("full", "random", "lp"):
                runs.append(tmp_path / f"{name}-{rule}")
                runs[-1].mkdir()
                result = {"base_model": {"name": group or name, "path": path, **base_model}, "seed": 1, "rule": rule}
                config = {"config": {"model": {"trust_remote_code": False}}}
                (runs[-1] / "result.json").write_text(json.dumps(result))
                (runs[-1] / "run_config.json").write_text(json.dumps(config))
        monkeypatch.setattr(experiment, "run", lambda command, overrides, *_, **__: calls.append(overrides))
        monkeypatch.setattr(experiment, "report", lambda folders, page: page)
        sweep = {
            "hydra": {"runtime": {"choices": {"tracker": "none"}}, "overrides": {"task": list(tracker)}},
            "experiment": {"name": "e", "evaluate": evaluate}, "cache_dir": "cache",
            "trainer": {"accelerator": "cpu", "precision": "auto"},
        }  # fmt: skip
        experiment.conclude(OmegaConf.create(sweep), tmp_path, runs)
        return calls

    return conclude


def named(call):
    return [override for override in call if override.startswith(("models=", "baseline="))]


def test_every_target_is_evaluated_without_training_as_well(evaluated, tmp_path):
    found = evaluated(["evaluator=pairwise"], [("tiny-target", None), ("opt-13b", "facebook/opt-13b")])
    assert [named(call) for call in found] == [
        [
            f'models=["{untrained}","{tmp_path}/{name}-random","{tmp_path}/{name}-lp"]',
            f'baseline="{tmp_path}/{name}-full"',
        ]
        for name, untrained in (("tiny-target", "tiny-target"), ("opt-13b", "facebook/opt-13b"))
    ]


def test_an_experiment_with_a_baseline_of_its_own_compares_with_that(evaluated, tmp_path):
    (found,) = evaluated({"rows": ["baseline=facebook/opt-13b"]}, [("opt-13b", "facebook/opt-13b")])
    baseline, *models = named(found)
    assert baseline == "baseline=facebook/opt-13b"
    assert models == [f'models=["{tmp_path}/opt-13b-full","{tmp_path}/opt-13b-random","{tmp_path}/opt-13b-lp"]']


def test_targets_trained_on_all_rows_in_several_ways_are_all_evaluated(evaluated, tmp_path):
    """A sweep of the learning rate: a name stands twice in the runs of a target."""
    (found,) = evaluated(["evaluator=pairwise"], [("a", None), ("b", None)], group="t")
    models, baseline = named(found)
    assert baseline == f'baseline="{tmp_path}/a-full"'
    runs = ("a-random", "a-lp", "b-full", "b-random", "b-lp")
    assert models == "models=[" + ",".join(['"t"', *(f'"{tmp_path}/{run}"' for run in runs)]) + "]"


OPT = {"revision": "main", "template": "alpaca", "max_length": 256, "bin_weights": True}


def composed(call):
    with configured("evaluate"):
        return compose("evaluate", overrides=call)


def test_the_untrained_target_is_read_as_it_was_for_training(evaluated):
    (found,) = evaluated(["evaluator=pairwise"], [("opt-13b", "facebook/opt-13b")], **OPT)
    assert candidate("facebook/opt-13b", composed(found)) == ModelSpec("opt-13b", "facebook/opt-13b", **OPT)


def test_an_option_in_the_evaluation_wins_and_another_baseline_is_not_read_like_the_target(evaluated):
    rows = {"own": ["baseline=facebook/opt-13b"], "set": ["max_length=64"], "other": ["baseline=gpt2"]}
    calls = evaluated(rows, [("opt-13b", "facebook/opt-13b")], **OPT)
    assert [composed(call).max_length for call in calls] == [256, 64, 512]
    assert [composed(call).revision for call in calls] == ["main", "main", None]


def test_options_of_the_tracker_are_those_of_the_sweep(evaluated):
    given = ["tracker.mode=offline", "tracker.project=mine", "pct=5"]
    (found,) = evaluated(["evaluator=pairwise"], [("tiny-target", None)], given)
    assert found[:4] == ["tracker=none", "tracker.mode=offline", "tracker.project=mine", "+experiment.name=e"]


def test_a_retried_job_joins_the_evaluation_that_was_made_without_it(tmp_path, monkeypatch):
    def run(command, overrides, folder, **_):
        config = RunConfig.of(command, composed(overrides))
        config.check(folder)
        found = (folder / "result.json").exists()
        config.save(folder)
        (folder / "result.json").write_text("{}")
        made.append((config.config["models"], config.config["baseline"], found))

    made = []
    monkeypatch.setattr(experiment, "run", run)
    node = {
        "hydra": {"runtime": {"choices": {"tracker": "none"}}, "overrides": {"task": []}},
        "experiment": {"name": "e"}, "cache_dir": "c", "trainer": {"accelerator": "cpu", "precision": "auto"},
    }  # fmt: skip
    alone, both = {"models": ["t", "lp"], "baseline": None}, {"models": ["t", "lp", "random"], "baseline": "full"}
    for named in (alone, both, both):
        experiment._evaluate(OmegaConf.create(node), ["evaluator=pairwise", "prompts=koala"], named, tmp_path)
    assert made == [(alone["models"], None, False), (both["models"], "full", False), (both["models"], "full", True)]
    with pytest.raises(UserError, match=r"holds a run with evaluator\.prompts=koala"):
        experiment._evaluate(OmegaConf.create(node), ["evaluator=pairwise", "prompts=vicuna"], both, tmp_path)


@pytest.mark.parametrize(
    ("evaluation", "name", "problem"),
    [
        (["evaluator=pairwise", "judge=hf"], "judge.model.path", "required and not set"),
        (["promts=koala"], "experiment.evaluate", "cannot be composed (Could not override 'promts')"),
        (["judge=none-such"], "experiment.evaluate", "cannot be composed (In 'evaluate': Could not find 'judge/none"),
    ],
)
def test_an_evaluation_that_cannot_run_is_found_before_the_jobs(evaluation, name, problem):
    node = {
        "hydra": {"runtime": {"choices": {"tracker": "none"}}, "overrides": {"task": []}}, "cache_dir": "c",
        "trainer": {"accelerator": "cpu", "precision": "auto"},
        "experiment": {"name": "e", "evaluate": {"good": ["evaluator=pairwise"], "other": evaluation}},
    }  # fmt: skip
    with configured("evaluate"), pytest.raises(UserError) as caught:
        experiment.check_evaluations(OmegaConf.create(node))
    assert caught.value.name == name
    assert caught.value.problem.startswith(problem)


def test_an_experiment_with_adapters_that_are_not_merged_is_rejected_before_the_jobs():
    node = {"adapter": {"merge": False}, "experiment": {"name": "e", "evaluate": ["evaluator=pairwise"]}}
    with pytest.raises(UserError) as caught:
        experiment.check_evaluations(OmegaConf.create(node))
    assert (caught.value.name, caught.value.value) == ("adapter.merge", "false")
    experiment.check_evaluations(OmegaConf.create({"adapter": {"merge": False}}))
