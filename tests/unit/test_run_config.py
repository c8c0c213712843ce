"""A run folder belongs to one configuration."""

import pytest
from omegaconf import OmegaConf

from lpsel.errors import UserError
from lpsel.run_config import Asked, unused_keys
from lpsel.storage import write_json


@pytest.mark.parametrize(("done", "state"), [(True, "a"), (False, "an unfinished")])
def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path, done, state):
    ours = Asked("train", {"pct": 5, "scorer": {"name": "opt-350m"}, "seed": 42})
    Asked("train", {"pct": 10, "scorer": {"name": "tiny"}, "seed": 42}).keep(tmp_path)
    if done:
        write_json(tmp_path / "result.json", {})
    with pytest.raises(UserError) as refused:
        ours.check(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: holds {state} run with pct=10, scorer.name=tiny; this one has pct=5, scorer.name=opt-350m; give "
        "another hydra.run.dir (in a sweep hydra.sweep.dir), or delete the folder."
    )


def test_the_same_configuration_may_go_on(tmp_path):
    ours = Asked("train", {"pct": 5})
    ours.keep(tmp_path)
    ours.check(tmp_path)


def test_a_rule_without_scores_depends_on_the_scorer_only_where_that_embeds_the_rows():
    config = {"selection": {"epochs": None}, "cluster": {"embedder": "a/b"}}
    assert unused_keys("train", config) == {"scorer"}
    assert unused_keys("train", config | {"cluster": {"embedder": "scorer"}}) == set()
    assert unused_keys("train", {"selection": {"epochs": None, "pct": 100}, "cluster": {}}) == {"scorer", "pct"}
    assert unused_keys("select", config) == set()


def test_what_was_asked_is_forgotten_unless_there_is_something_to_go_on_with(tmp_path):
    ours = Asked("train", {"pct": 5})
    ours.keep(tmp_path)
    (tmp_path / "train.log").write_text("")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "parts").mkdir()
    ours.forget(tmp_path)
    assert (tmp_path / "asked.json").is_file()
    (tmp_path / "parts").rmdir()
    ours.forget(tmp_path)
    assert not (tmp_path / "asked.json").exists()


def test_files_that_the_configuration_names_are_part_of_what_was_asked(tmp_path):
    def asked():
        config = {"dataset": {"path": str(rows)}, "models": [str(model)], "name": "", "trainer": {"precision": "auto"}}
        return Asked.of("evaluate", OmegaConf.create(config))

    rows, model = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text("{}")
    (model / "model").mkdir(parents=True)
    (model / "model" / "config.json").write_text("{}")
    folder = tmp_path / "evaluated"
    folder.mkdir()
    asked().keep(folder)
    write_json(folder / "result.json", {"n": 1})
    (model / "train.log").write_text("Done before")
    (model / ".hydra").mkdir()
    (model / ".hydra" / "config.yaml").write_text("")
    assert asked().finished(folder) == {"n": 1}
    (model / "model" / "config.json").write_text("{ }")
    assert asked().finished(folder) is None
    asked().keep(folder)
    assert asked().finished(folder) == {"n": 1}
    rows.write_text("{}\n{}")
    assert asked().finished(folder) is None
    asked().check(folder)  # the folder is still for this configuration
