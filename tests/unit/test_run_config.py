"""A run folder belongs to one configuration."""

import os

import pytest
from hydra import compose
from omegaconf import OmegaConf

from lpsel.config import configured
from lpsel.errors import UserError
from lpsel.run_config import MAX_HASHED, RunConfig, unused_keys
from lpsel.storage import write_json


@pytest.mark.parametrize(("done", "state"), [(True, "a"), (False, "an unfinished")])
def test_a_folder_of_another_configuration_is_rejected_with_the_difference(tmp_path, done, state):
    ours = RunConfig("train", {"pct": 5, "scorer": {"name": "opt-350m"}, "seed": 42})
    RunConfig("train", {"pct": 10, "scorer": {"name": "tiny"}, "seed": 42}).save(tmp_path)
    if done:
        write_json(tmp_path / "result.json", {})
    with pytest.raises(UserError) as caught:
        ours.check(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds {state} run with pct=10, scorer.name=tiny; this one has pct=5, scorer.name=opt-350m. Set "
        "another hydra.run.dir (in a sweep, hydra.sweep.dir), or delete the folder."
    )


def test_the_same_configuration_is_accepted(tmp_path):
    ours = RunConfig("train", {"pct": 5})
    ours.save(tmp_path)
    ours.check(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"config": [1]}', '{"config": null}', "\x00"])
def test_a_file_that_lpsel_did_not_write_is_no_configuration(tmp_path, text):
    (tmp_path / "run_config.json").write_text(text)
    (tmp_path / "result.json").write_text('{"n": 1}')
    RunConfig("train", {"pct": 5}).check(tmp_path)
    assert RunConfig("train", {"pct": 5}).finished(tmp_path) is None


def test_a_rule_without_scores_uses_the_scorer_only_to_embed_rows():
    config = {"selection": {"epochs": None}, "cluster": {"embedder": "a/b"}}
    assert unused_keys("train", config) == {"scorer"}
    assert unused_keys("train", config | {"cluster": {"embedder": "scorer"}}) == set()
    assert unused_keys("train", {"selection": {"epochs": None, "pct": 100}, "cluster": {}}) == {"scorer", "pct"}
    assert unused_keys("select", config) == set()


@pytest.mark.parametrize("scored", [{"combine": {"lp_app_nll": 1}}, {"known": "drop"}, {"rising": "drop"}])
def test_a_rule_whose_options_need_scores_depends_on_the_scorer(scored):
    config = {"selection": {"epochs": None} | scored, "cluster": {}}
    assert unused_keys("train", config) == set()
    config["selection"]["scored_by"] = "target"
    assert unused_keys("train", config) == {"scorer"}


def test_the_run_config_is_discarded_unless_there_is_something_to_resume_from(tmp_path):
    ours = RunConfig("train", {"pct": 5})
    ours.save(tmp_path)
    (tmp_path / "train.log").write_text("")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "parts").mkdir()
    ours.discard(tmp_path)
    assert (tmp_path / "run_config.json").is_file()
    (tmp_path / "parts").rmdir()
    ours.discard(tmp_path)
    assert not (tmp_path / "run_config.json").exists()


def test_files_named_in_the_configuration_are_part_of_it(tmp_path):
    def run_config():
        config = {"dataset": {"path": str(rows)}, "models": [str(model)], "name": "", "trainer": {"precision": "auto"}}
        return RunConfig.of("evaluate", OmegaConf.create(config))

    rows, model = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text("{}")
    (model / "model").mkdir(parents=True)
    (model / "model" / "config.json").write_text("{}")
    (model / "result.json").write_text("{}")
    folder = tmp_path / "evaluated"
    folder.mkdir()
    run_config().save(folder)
    first = {"n": 1, "run": run_config().digest()}
    write_json(folder / "result.json", first)
    (model / "train.log").write_text("Done before")
    (model / "explore.html").write_text("")
    (model / ".hydra").mkdir()
    (model / ".hydra" / "config.yaml").write_text("")
    (model / "dataset").mkdir()  # by `lpsel publish`
    (model / "dataset" / "README.md").write_text("")
    assert run_config().finished(folder) == first
    (model / "model" / "config.json").write_text("{ }")
    assert run_config().finished(folder) is None
    run_config().save(folder)  # a run that begins, and is interrupted
    assert run_config().finished(folder) is None
    write_json(folder / "result.json", second := {"n": 2, "run": run_config().digest()})
    assert run_config().finished(folder) == second
    rows.write_text("{}\n{}")
    assert run_config().finished(folder) is None
    run_config().check(folder)  # the folder is still for this configuration


def test_a_small_input_is_compared_by_content_and_a_large_one_by_size_and_time(tmp_path):
    def changed(how):
        before = [RunConfig.of("evaluate", config).inputs[str(path)] for path in paths]
        for path in paths:
            how(path)
        after = [RunConfig.of("evaluate", config).inputs[str(path)] for path in paths]
        return [old != new for old, new in zip(before, after, strict=True)]

    def copy(path):
        os.utime(path, ns=(1, 1))

    def replace_in_place(path):
        stat = path.stat()
        with path.open("r+b") as file:
            file.write(b"?")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    paths = [tmp_path / "small.jsonl", tmp_path / "large.jsonl"]
    config = OmegaConf.create({"paths": [*map(str, paths)], "trainer": {"precision": "auto"}})
    for path, size in zip(paths, (MAX_HASHED, MAX_HASHED + 1), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    assert changed(copy) == [False, True]
    assert changed(replace_in_place) == [True, False]
    assert changed(lambda path: path.write_bytes(b"{}")) == [True, True]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("x", "${oc.env:GATEWAY}"),
        ("x", "Bearer ${oc.env:GATEWAY}"),
        ("x", "${gateway}"),
        ("x", "${nested.gateway}"),
        ("api-key", "${oc.env:GATEWAY}"),
    ],
)
def test_a_secret_that_a_request_sends_is_not_in_the_configuration(monkeypatch, name, header):
    monkeypatch.setattr("lpsel.redact._registered", set())
    monkeypatch.setenv("GATEWAY", "canary-0123456789")
    monkeypatch.setenv("FOLDER", "/home/user/prompts")
    config = {
        "judge": {"request": {"extra_headers": {name: header}, "max_tokens": 1024}}, "gateway": "${oc.env:GATEWAY}",
        "nested": {"gateway": "${gateway}"}, "prompts": "${oc.env:FOLDER}", "trainer": {"precision": "auto"},
    }  # fmt: skip
    kept = RunConfig.of("evaluate", OmegaConf.create(config)).config
    assert "canary" not in str(kept)
    assert (kept["prompts"], kept["judge"]["request"]["max_tokens"]) == ("/home/user/prompts", 1024)


@pytest.mark.parametrize("name", ["extra_headers.api-key", "extra_headers.Authorization", "extra_query.sig_token"])
def test_a_key_in_a_configuration_file_is_rejected(name):
    part, key = name.split(".")
    request = {"max_tokens": 8, "stop_token": "</s>", "extra_headers": {"x-team": "a"}, part: {key: "canary"}}
    with pytest.raises(UserError) as caught:
        RunConfig.of("evaluate", OmegaConf.create({"judge": {"request": request}, "trainer": {"precision": "auto"}}))
    assert caught.value.name == f"judge.request.{name}"
    assert "canary" not in str(caught.value)


def test_an_evaluation_with_open_questions_is_not_finished(tmp_path):
    ours = RunConfig("evaluate", {"judge": {"name": "openai"}})
    ours.save(tmp_path)
    for unanswered in (2, 0):
        write_json(tmp_path / "result.json", result := {"unanswered": unanswered, "run": ours.digest()})
        assert ours.finished(tmp_path) == (None if unanswered else result)


def test_what_other_runs_leave_in_the_cache_and_files_named_like_a_choice_are_no_inputs(tmp_path, monkeypatch):
    def made():
        with configured("evaluate"):
            return RunConfig.of("evaluate", compose("evaluate", overrides=overrides))

    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    overrides = ["evaluator=pairwise", "judge=hf", f"judge.model.path={tmp_path}/judge", f"cache_dir={cache}"]
    before = made()
    (cache / "users").write_text("")
    (tmp_path / "judge").write_text("")
    assert made().inputs.keys() == {f"{tmp_path}/judge"}
    (tmp_path / "judge").unlink()
    for name in ("local", "embedded-held-out", str(before.config["dataset"]["name"])):
        (tmp_path / name).mkdir(exist_ok=True)
    assert made() == before
    assert str(cache) not in str(before.config)


def test_the_files_that_a_glob_matches_are_inputs(tmp_path):
    def inputs():
        config = {"dataset": {"path": f"{tmp_path}/*.jsonl"}, "trainer": {"precision": "auto"}}
        config["evaluator"] = {"dataset": config["dataset"]}
        return RunConfig.of("evaluate", OmegaConf.create(config)).inputs

    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"name": "{name}"}}')
    states = [inputs()]
    assert states[0].keys() == {f"{tmp_path}/*.jsonl"}
    (tmp_path / "b.jsonl").write_text("{}")
    states.append(inputs())
    (tmp_path / "c.jsonl").write_text("{}")
    states.append(inputs())
    (tmp_path / "notes.txt").write_text("")
    assert inputs() == states[2]
    assert states[0] != states[1] != states[2]


def test_a_run_whose_unmerged_adapter_is_gone_is_not_finished(tmp_path):
    ours = RunConfig("train", {"pct": 5})
    ours.save(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(tmp_path / "result.json", {"model": None, "adapter": {"folder": str(adapter)}, "run": ours.digest()})
    assert ours.finished(tmp_path) is not None
    adapter.rmdir()
    assert ours.finished(tmp_path) is None
