"""`lpsel explore`: what is on the page of a run, where it comes from, and what is wrong with a folder."""

import base64
import json
import re
import shutil
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures.explorer import HOSTILE, NLL

from lpsel.cache import MANIFEST, USERS, Entry, _user_file, used_by
from lpsel.clustering.embeddings import _write
from lpsel.commands.explore import explore
from lpsel.commands.job import run
from lpsel.errors import UserError
from lpsel.storage import write_json


def data_of(page):
    """The data on a page, as its script reads it."""
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page.read_text())[1]

    def invalid(constant):
        raise AssertionError(f"JSON.parse rejects {constant}")

    return json.loads(zlib.decompress(base64.b64decode(packed)), parse_constant=invalid)


@pytest.fixture
def copied(explorable, tmp_path):
    """A copy of the run, next to no dataset."""
    return shutil.copytree(explorable, tmp_path / "copy")


def test_the_page_has_every_row_with_its_scores_losses_and_texts(explorable):
    page, notes = explore(explorable, None, None, explorable.parent / "cache")
    assert page == explorable / "explore.html"
    assert notes == [f"No map: {explorable.parent}/cache has no embeddings that this run used"]
    columns = data_of(page)["columns"]
    stored = pq.read_table(explorable / "selection.parquet").to_pydict()
    assert columns["index"] == list(range(60))
    for name in ("selected", "rank", "cluster", "reason"):
        assert columns[name] == stored[name]
    assert columns["nll_0"] == pytest.approx(NLL[0], rel=1e-4)
    assert columns["score"] == pytest.approx(1 - NLL[1] / NLL[0], rel=1e-4)
    assert columns["prompt"][13] == HOSTILE
    assert columns["response"][21].endswith("…")
    assert len(columns["response"][21]) <= 600
    assert columns["length"][2] == len("0 1 2")
    assert sum(columns["selected"]) == 12
    assert columns["reason"][5] == "empty answer"
    html = page.read_text()
    assert "All 60 rows, 12 of them selected." in html
    assert "12 of 60 rows (20%, budget exact)" in html
    assert "unsafe-eval" not in html
    assert HOSTILE not in html


def test_without_its_dataset_a_page_has_no_texts_and_with_another_one_it_is_an_error(copied, explorable, tmp_path):
    result = json.loads((copied / "result.json").read_text())
    result["dataset"]["path"] = str(tmp_path / "gone.jsonl")
    (copied / "result.json").write_text(json.dumps(result))
    page, (no_texts, _) = explore(copied, None, None, tmp_path)
    assert re.match(r"No texts: dataset\.path=.*gone\.jsonl: ", no_texts)
    assert not {"prompt", "length"} & data_of(page)["columns"].keys()

    rows = explorable.parent / "rows.jsonl"
    page, notes = explore(copied, None, str(rows), tmp_path)
    assert len(notes) == 1
    assert data_of(page)["columns"]["prompt"][1] == "Count to 1."

    (tmp_path / "other.jsonl").write_text(rows.read_text().replace("Count to 2.", "Count to two."))
    with pytest.raises(UserError) as raised:
        explore(copied, None, str(tmp_path / "other.jsonl"), tmp_path)
    assert (raised.value.name, raised.value.problem) == ("--dataset", "row 2 is not the row that was scored")


def test_the_map_is_of_cached_embeddings_also_where_only_clusters_were_used(copied, tmp_path):
    ids = pq.read_table(copied / "selection.parquet")["id"].to_pylist()
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    entry = Entry.of(tmp_path, "embeddings", {"embedder": "e"}, label="e")
    entry.folder.mkdir(parents=True)
    _write(entry.folder, ids[:50], vectors[:50])
    clusters = Entry.of(tmp_path, "clusters", {"embeddings": entry.key}, label="k")
    clusters.folder.mkdir(parents=True)
    write_json(clusters.folder / MANIFEST, {"key": clusters.key})
    (tmp_path / USERS).mkdir()
    for used in (entry, clusters):
        write_json(_user_file(tmp_path, copied), {"run": str(copied), "entries": [used.digest]})
        assert used_by(tmp_path, copied) == [used.folder]
        page, notes = explore(copied, None, None, tmp_path)
        data = data_of(page)
        assert notes == []
        assert data["views"][-1]["name"] == "Map"
        assert data["columns"]["x"][50:] == [None] * 10
        assert None not in data["columns"]["x"][:50]
        assert re.fullmatch(r"first principal component, \d\d% of variance", data["views"][-1]["x"]["title"])


@pytest.mark.parametrize("rule", ["random", "full"])
def test_a_run_without_scores_shows_lengths(rule, explorable, tmp_path):
    """Scores are given here only so that nothing is tokenized; neither rule ranks by them."""
    overrides = [
        "dataset=local", f"dataset.path={explorable.parent}/rows.jsonl", f"scores={explorable.parent}/scores.csv",
        f"selection={rule}", "tracker=none", f"cache_dir={tmp_path}/cache", "cluster=none",
    ]  # fmt: skip
    run("select", overrides, tmp_path / "run")
    page, _ = explore(tmp_path / "run", None, None, tmp_path / "cache")
    data = data_of(page)
    assert "score" not in data["columns"]
    assert sum(data["columns"]["selected"]) == (60 if rule == "full" else 6)
    assert data["views"][-1]["name"] == "Score and length" or "length" in data["columns"]


def test_only_a_page_of_explore_is_replaced(explorable, tmp_path):
    mine = tmp_path / "notes.html"
    mine.write_text("<title>Mine</title>")
    with pytest.raises(UserError) as raised:
        explore(explorable, mine, None, tmp_path)
    assert (raised.value.name, raised.value.problem) == ("--out", "was not written by lpsel explore")
    assert mine.read_text() == "<title>Mine</title>"
    with pytest.raises(UserError, match="is a folder"):
        explore(explorable, tmp_path, None, tmp_path)
    page, _ = explore(explorable, tmp_path / "page.html", None, tmp_path)
    assert explore(explorable, page, None, tmp_path)[0] == page


def test_other_folders_are_errors_and_runs_of_train_are_none(copied, tmp_path):
    with pytest.raises(UserError, match=r"no such folder"):
        explore(tmp_path / "nowhere", None, None, tmp_path)
    result = json.loads((copied / "result.json").read_text())
    for command in ("evaluate", "train"):
        (copied / "result.json").write_text(json.dumps(result | {"command": command}))
        if command == "train":
            assert sum(data_of(explore(copied, None, None, tmp_path)[0])["columns"]["selected"]) == 12
        else:
            with pytest.raises(UserError, match=r"copy: is a run of evaluate\. Give a run of select or train"):
                explore(copied, None, None, tmp_path)


def test_a_row_with_an_infinite_loss_is_listed_and_in_no_plot(explorable, tmp_path):
    lines = (explorable.parent / "scores.csv").read_text().splitlines()
    lines[8] = "inf,2.0,1"  # row 7
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    overrides = [
        "dataset=local", f"dataset.path={explorable.parent}/rows.jsonl", f"scores={tmp_path}/scores.csv",
        "selection=lp_app_nll", "tracker=none", f"cache_dir={tmp_path}/cache", "cluster=none",
    ]  # fmt: skip
    run("select", overrides, tmp_path / "run")
    assert pq.read_table(tmp_path / "run" / "selection.parquet")["nll_0"][7].as_py() == np.inf
    page, _ = explore(tmp_path / "run", None, None, tmp_path / "cache")
    data = data_of(page)
    assert (data["columns"]["index"][7], data["columns"]["nll_0"][7]) == (7, None)
    assert np.isfinite([end for view in data["views"] for axis in "xy" for end in view[axis]["range"]]).all()
