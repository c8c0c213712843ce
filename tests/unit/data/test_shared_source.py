"""Which calls share one source."""

import shutil

import pytest

from lpsel.commands.job import run
from lpsel.data import content_ids
from lpsel.data import shared_source as module
from lpsel.data.dataset import DatasetSpec
from lpsel.data.shared_source import SHARED, shared_source
from lpsel.errors import UserError

from .rows import ADD, SAY, write


@pytest.fixture(autouse=True)
def none_yet(monkeypatch):
    monkeypatch.setattr(module, "_shared", {})


def of(path, **settings):
    return shared_source(DatasetSpec("rows", str(path), **settings))


def test_the_same_rows_have_one_source_and_others_their_own(tmp_path):
    path = write(tmp_path / "rows.jsonl", ADD, SAY)
    source = of(path)
    assert of(path) is source
    assert of(path, limit=1) is not source
    assert of(shutil.copy(path, tmp_path / "copy.jsonl")) is not source


def test_rows_that_have_changed_are_read_again(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.jsonl", ADD)
    assert len(of(folder)) == 1
    write(folder / "b.jsonl", SAY)
    assert len(of(folder)) == 2
    write(folder / "a.jsonl", ADD, ADD)
    ids = of(folder).ids
    assert len(ids) == 3
    (folder / "c.jsonl").write_bytes((folder / "b.jsonl").read_bytes())
    (folder / "c.jsonl").replace(folder / "b.jsonl")  # the same size and rows, in another file
    assert of(folder).ids == ids


def test_a_source_that_could_not_be_read_is_not_kept(tmp_path):
    with pytest.raises(UserError):
        of(tmp_path / "rows.jsonl")
    assert len(of(write(tmp_path / "rows.jsonl", ADD))) == 1


def test_only_the_last_ones_are_kept(tmp_path):
    first, *others = (write(tmp_path / f"{n}.jsonl", ADD) for n in range(SHARED + 1))
    source, kept = of(first), [of(path) for path in others]
    assert [of(path) for path in others] == kept
    assert of(first) is not source


def test_jobs_in_one_process_read_their_rows_once(monkeypatch, tmp_path, instructions):
    scanned = []
    scan = content_ids.scan
    monkeypatch.setattr(content_ids, "scan", lambda source: scanned.append(source) or scan(source))
    given = [
        "scorer=tiny",
        "dataset=local",
        f"dataset.path={instructions(rows=20)}",
        "selection=longest",
        "cluster=none",
        "tracker=none",
    ]
    results = [run("select", [*given, f"pct={pct}"], tmp_path / str(pct)) for pct in (10, 20)]
    assert [result["n_selected"] for result in results] == [2, 4]
    assert len(scanned) == 1


def test_skipped_rows_are_in_the_log_of_every_job(tmp_path, caplog):
    path = write(tmp_path / "rows.jsonl", ADD, SAY | {"output": ["a list"]})
    with caplog.at_level("INFO"):
        assert len(of(path, bad_rows="skip")) == 2
        of(path, bad_rows="skip")
    assert caplog.text.count("1 of 2 rows of rows are unusable and skipped") == 2
