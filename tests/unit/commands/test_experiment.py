"""The evaluations of an experiment."""

import json

import pytest
from omegaconf import OmegaConf

from lpsel.commands import experiment


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """What `conclude` evaluates: pairs of the models and the baseline, of two rules and all rows for each target."""

    def conclude(evaluate, targets):
        runs, calls = [], []
        for name, path in targets:
            for rule in ("full", "random", "lp"):
                runs.append(tmp_path / f"{name}-{rule}")
                runs[-1].mkdir()
                result = {"base_model": {"name": name, "path": path}, "seed": 1, "rule": rule}
                config = {"config": {"model": {"trust_remote_code": False}}}
                (runs[-1] / "result.json").write_text(json.dumps(result))
                (runs[-1] / "run_config.json").write_text(json.dumps(config))
        monkeypatch.setattr(experiment, "run", lambda command, overrides, *_, **__: calls.append(overrides))
        monkeypatch.setattr(experiment, "report", lambda folders, page: page)
        sweep = {
            "hydra": {"runtime": {"choices": {"tracker": "none"}}}, "cache_dir": "cache",
            "experiment": {"name": "e", "evaluate": evaluate}, "trainer": {"accelerator": "cpu", "precision": "auto"},
        }  # fmt: skip
        experiment.conclude(OmegaConf.create(sweep), tmp_path, runs)
        return [[each for each in call if each.startswith(("models=", "baseline="))] for call in calls]

    return conclude


def test_every_target_is_evaluated_without_training_as_well(evaluated, tmp_path):
    found = evaluated(["evaluator=pairwise"], [("tiny-target", None), ("opt-13b", "facebook/opt-13b")])
    assert found == [
        [
            f'models=["{untrained}","{tmp_path}/{name}-random","{tmp_path}/{name}-lp"]',
            f'baseline="{tmp_path}/{name}-full"',
        ]
        for name, untrained in (("tiny-target", "tiny-target"), ("opt-13b", "facebook/opt-13b"))
    ]


def test_an_experiment_with_a_baseline_of_its_own_compares_with_that(evaluated, tmp_path):
    (found,) = evaluated({"rows": ["baseline=facebook/opt-13b"]}, [("opt-13b", "facebook/opt-13b")])
    assert found[0] == "baseline=facebook/opt-13b"
    assert found[1:] == [f'models=["{tmp_path}/opt-13b-full","{tmp_path}/opt-13b-random","{tmp_path}/opt-13b-lp"]']
