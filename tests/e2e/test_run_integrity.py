"""Damage to what is kept: never another subset, but an error with the file and the remedy, or made again."""

import json
import logging
import multiprocessing
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lpsel.commands.agreement import main as agreement
from lpsel.commands.job import run
from lpsel.commands.publish import publish
from lpsel.commands.rows import main as rows
from lpsel.errors import UserError
from lpsel.storage import read_json, write_json


def overrides(model, data, cache, *more):
    return [
        "dataset=local", f"dataset.path={data}", "scorer=local", f"scorer.path={model}", "scorer.recipe.global_batch=8",
        "trainer=cpu", "tracker=none", "cluster=none", "pct=25", f"cache_dir={cache}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def first(toy_model, tmp_path_factory):
    """A selection by scores that it made itself: its folder with rows.jsonl, cache and run in it."""
    folder = tmp_path_factory.mktemp("first")
    rows = [{"instruction": f"Count to {i % 7}.", "output": " ".join(map(str, range(i % 7))) + f" #{i}"}
            for i in range(24)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("select", overrides(toy_model, folder / "rows.jsonl", folder / "cache"), folder / "run")
    return folder


@pytest.fixture
def copied(first, tmp_path, toy_model):
    """A copy of that folder and a second run on its cache."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)

    def again(*more, data=tmp_path / "rows.jsonl"):
        return run("select", overrides(toy_model, data, tmp_path / "cache", *more), tmp_path / "again")

    return tmp_path, again


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)


def one(folder, pattern):
    (found,) = folder.rglob(pattern)
    return found


def subset(folder):
    return (folder / "subset.jsonl").read_bytes()


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "flipped": (flip, "scores.parquet: has changed since it was written"),
    "cut": (cut, "scores.parquet: has changed since it was written"),
    "gone": (Path.unlink, "scores.parquet: no longer exists"),
}


def test_intact_files_are_reused(copied):
    folder, again = copied
    assert again()["scores_reused"]
    assert subset(folder / "again") == subset(folder / "run")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("how", ["from the cache", "by name"])
def test_damaged_scores_are_an_error_with_the_file_and_the_fix(copied, damage, how):
    folder, again = copied
    scores = one(folder / "cache", "scores.parquet")
    harm, complaint = DAMAGE[damage]
    harm(scores)
    with pytest.raises(UserError, match=rf"^\S*{complaint}.*\. Delete \S*{scores.parent.name} "):
        again(*([f"scores={scores.parent}"] if how == "by name" else []))
    assert not (folder / "again" / "subset.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 2}, r"manifest.json: has format 2, lpsel \S* reads format 1\. Delete"),
        ({"sha256": {}}, r"has no hashes of files\. Delete"),
        ({"precision": "bf16-true"}, r"manifest.json: is the manifest of other scores\. Delete"),
        ({"dataset_fingerprint": "0" * 64}, r"manifest.json: is the manifest of other scores\. Delete"),
    ],
)
def test_a_manifest_of_other_scores_is_an_error(copied, change, complaint):
    folder, again = copied
    manifest = one(folder / "cache/scores", "manifest.json")
    write_json(manifest, read_json(manifest) | change)
    with pytest.raises(UserError, match=complaint):
        again()


def test_scores_with_the_manifest_of_other_rows_are_rejected(copied):
    folder, again = copied
    manifest = one(folder / "cache/scores", "manifest.json")
    write_json(manifest, read_json(manifest) | {"dataset_fingerprint": "0" * 64})
    with pytest.raises(
        UserError, match=r"rows have fingerprint \w{12}, but its manifest.json belongs to rows with 0{12}"
    ):
        again(f"scores={manifest.parent}")


def test_data_that_changed_after_scoring_is_detected_by_its_fingerprint(copied):
    folder, again = copied
    scores = one(folder / "cache", "scores.parquet").parent
    changed = folder / "changed.jsonl"
    changed.write_text((folder / "rows.jsonl").read_text().replace("#7", "#70"))
    was, now = read_json(scores / "manifest.json")["dataset_fingerprint"][:12], r"\w{12}"
    with pytest.raises(
        UserError, match=rf"row 7 of dataset changed, .*\(fingerprint {was}, of changed (?!{was}){now}\)\. Score"
    ):
        again(f"scores={scores}", data=changed)
    changed.write_text("".join((folder / "rows.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        UserError, match=rf"have 24 rows.* has 23, index from 0 \(fingerprint {was}, of changed {now}\)\. Score"
    ):
        again(f"scores={scores}", data=changed)


def test_a_damaged_model_in_the_cache_of_a_sweep_is_trained_again(first, tmp_path, toy_model, caplog):
    asked = overrides(toy_model, first / "rows.jsonl", tmp_path / "cache", "model=local", f"model.path={toy_model}",
                      "model.recipe.epochs=1", "selection=full")  # fmt: skip
    made = run("train", asked, tmp_path / "a", in_sweep=True)
    found = run("train", asked, tmp_path / "b", in_sweep=True)
    assert (made["reused_from"], found["reused_from"]) == (None, str(tmp_path / "a"))
    weights = tmp_path / "a/model/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # the other run has the same file
    weights.write_bytes(content)
    flip(weights, 0.9)
    with caplog.at_level(logging.WARNING):
        again = run("train", asked, tmp_path / "c", in_sweep=True)
    assert again["reused_from"] is None
    assert "a/model/model.safetensors: has changed since it was written" in caplog.text
    assert (tmp_path / "c/model/model.safetensors").read_bytes() == content


def test_a_damaged_subset_is_not_published_and_selected_again(copied, toy_model, caplog):
    folder, _ = copied
    asked = overrides(toy_model, folder / "rows.jsonl", folder / "cache")
    run("select", asked, folder / "done")
    whole = subset(folder / "done")
    flip(folder / "done/subset.jsonl")
    with pytest.raises(UserError, match=r"done/subset.jsonl: has changed since it was written .*\. Select again\."):
        publish(folder / "done", license="mit")
    run("select", asked, folder / "done", in_sweep=True)
    assert "done/subset.jsonl: has changed" in caplog.text
    assert subset(folder / "done") == whole


def test_a_result_with_another_format_is_rejected(copied):
    folder, _ = copied
    assert read_json(folder / "run/result.json")["format"] == 1
    write_json(folder / "run/result.json", read_json(folder / "run/result.json") | {"format": 2})
    complaint = r"run/result.json: has format 2, lpsel \S+ reads format 1\. Use the version of lpsel that wrote it\."
    with pytest.raises(UserError, match=complaint):
        publish(folder / "run", license="mit")
    with pytest.raises(UserError, match=complaint):
        run("evaluate", [f"models={folder}/run", "tracker=none", f"cache_dir={folder}/cache"], folder / "evaluated")
    with pytest.raises(UserError, match=complaint):
        agreement([str(folder / "run"), str(folder / "run")])
    with pytest.raises(UserError, match=complaint):
        rows([str(folder / "run")])


def test_two_simultaneous_commands_score_and_train_once(first, tmp_path, toy_model):
    asked = overrides(toy_model, first / "rows.jsonl", tmp_path / "cache", "model=local", f"model.path={toy_model}",
                      "model.recipe.epochs=1")  # fmt: skip

    def train(name):
        run("train", asked, tmp_path / name, in_sweep=True)

    started = [multiprocessing.get_context("fork").Process(target=train, args=(name,)) for name in "ab"]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    results = [read_json(tmp_path / name / "result.json") for name in "ab"]
    assert sorted(result["scores_reused"] for result in results) == [False, True]
    assert sorted(result["reused_from"] is None for result in results) == [False, True]
    assert subset(tmp_path / "a") == subset(tmp_path / "b")
    assert len(list((tmp_path / "cache").rglob("scores.parquet"))) == 1
    assert len(list((tmp_path / "cache").rglob("tokens.arrow"))) == 1
    assert pq.read_table(results[0]["selection"]).equals(pq.read_table(results[1]["selection"]))


def test_a_run_that_fails_leaves_the_finished_result(copied, monkeypatch):
    folder, again = copied
    again()
    finished = (folder / "again" / "result.json").read_bytes()
    with pytest.raises(UserError, match="pct=0"):
        again("pct=0")
    assert (folder / "again" / "result.json").read_bytes() == finished
    monkeypatch.setattr("lpsel.commands.select.select", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        again()
    assert (folder / "again" / "result.json").read_bytes() == finished
