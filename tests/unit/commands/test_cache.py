"""`lpsel cache`, on the cache of real runs."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from lpsel.cache import Entry, in_use, warn_if_shared
from lpsel.commands.cache import contents, main, prune
from lpsel.commands.job import run
from lpsel.errors import UserError

DAY = 24 * 60 * 60


@pytest.fixture(scope="module")
def scored(toy_model, tmp_path_factory):
    """A cache with the tokens and scores that two selections used, and the folders of these runs."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "rows.jsonl").write_text("".join(f'{{"instruction": "Q{n}", "output": "A {n}"}}\n' for n in range(8)))
    given = [
        "dataset=local", f"dataset.path={folder}/rows.jsonl", "scorer=local", f"scorer.path={toy_model}",
        "scorer.recipe.global_batch=8", "trainer=cpu", "tracker=none", "cluster=none", "pct=25",
        f"cache_dir={folder}/cache",
    ]  # fmt: skip
    for name in ("a", "b"):
        run("select", given, folder / "runs" / name)
    return folder


@pytest.fixture
def cache(scored, tmp_path):
    """A copy of the cache in which every file was last used 10 days ago."""
    shutil.copytree(scored / "cache", tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (time.time() - 10 * DAY,) * 2)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("mode", "owner", "warning"),
    [
        (0o755, "own", None),
        (0o775, "own", None),
        (0o755, "root", None),
        (0o777, "own", "can be written to by every user"),
        (0o700, "another", "belongs to another user"),
    ],
)
def test_a_cache_that_others_can_change_is_a_warning(tmp_path, monkeypatch, caplog, mode, owner, warning):
    tmp_path.chmod(mode)
    own = tmp_path.stat().st_uid
    status = os.stat_result((mode, 0, 0, 2, {"own": own, "root": 0, "another": own + 1}[owner], 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: status)
    warn_if_shared(tmp_path)
    assert [f"cache_dir={tmp_path}: {warning}, who can" in text for text in caplog.messages] == [True] * bool(warning)


def by_kind(cache_dir):
    return {entry.kind: entry for entry in contents(cache_dir)}


def test_entries_have_their_size_age_and_the_runs_that_used_them(cache, scored, capsys, monkeypatch):
    entries = by_kind(cache)
    assert set(entries) == {"tokens", "scores", "hashes"} - ({"hashes"} - set(entries))
    scores = entries["scores"]
    files = [file for file in (cache / "scores").rglob("*") if file.is_file()]
    assert scores.size == sum(file.stat().st_size for file in files) > 1000
    assert scores.days == pytest.approx(10, abs=0.01)
    assert scores.runs == (scored / "runs" / "a", scored / "runs" / "b")
    assert scores.paths == tuple(sorted((cache / "scores").iterdir()))  # the finished scores, and their lock
    assert entries["tokens"].runs == (scored / "runs" / "a",)  # the second run found the scores
    monkeypatch.chdir(scored)
    main(["--dir", str(cache)])
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("scores"))
    assert line.split("ago")[1].strip() == "runs/a, runs/b"
    assert "10 days ago" in line
    assert lines[-1].endswith(f"in {cache}")


def test_the_largest_entries_fit_a_screen_and_all_are_listed_on_request(tmp_path, capsys):
    for n in range(40):
        for kind in ("tokens", "scores"):
            Entry.of(tmp_path, kind, {"n": n}).folder.mkdir(parents=True)
            (Entry.of(tmp_path, kind, {"n": n}).folder / "file").write_bytes(bytes(1000 * (n + 1)))
    main(["--dir", str(tmp_path)])
    short = capsys.readouterr().out.splitlines()
    main(["--dir", str(tmp_path), "--all"])
    full = capsys.readouterr().out.splitlines()
    assert len(short) < 24
    assert len([line for line in full if line.startswith(("tokens ", "scores "))]) == 80 + 1
    assert short[1:16] == full[1:16], "the largest"
    assert short[-3:] == [
        "... and 65 smaller entries: add --all to list them",
        "scores 820.0 kB, tokens 820.0 kB",  # 1 + 2 + ... + 40 = 820
        f"80 entries, 1.6 MB, in {tmp_path}",
    ]


def test_scores_are_deleted_only_if_no_run_that_exists_used_them(cache, scored):
    assert prune(cache, days=11) == []
    assert [entry.kind for entry in prune(cache, days=9) if entry.kind in ("tokens", "scores")] == ["tokens"]
    assert set(by_kind(cache)) == {"scores"}
    for file in (cache / "users").glob("*.json"):
        file.write_text(file.read_text().replace(str(scored / "runs"), str(cache / "gone")))
    (deleted,) = prune(cache, days=9)
    assert (deleted.kind, deleted.runs) == ("scores", ())
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def use(cache_dir, ready, done):
    with in_use(cache_dir, cache_dir / "run"):
        ready.set()
        done.wait(60)


def test_nothing_is_deleted_while_a_run_uses_the_cache(cache):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=use, args=(cache, ready, done))
    process.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=r"a running command uses it\. Try again"):
        prune(cache, days=0)
    assert "tokens" in by_kind(cache)
    done.set()
    process.join(60)
    assert "tokens" in {entry.kind for entry in prune(cache, days=9)}


def test_the_records_of_an_interrupted_run_have_no_user_and_are_deleted_by_age(tmp_path):
    entry = Entry.of(tmp_path, "trained", {"model": "m"})

    def interrupted():
        with in_use(tmp_path, tmp_path), entry.locked():
            (entry.folder / "checkpoints").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert by_kind(tmp_path)["trained"].runs == ()
    assert prune(tmp_path, days=1) == []
    assert [deleted.paths for deleted in prune(tmp_path, days=0)] == [(entry.folder,)]


def test_folders_that_are_not_of_the_cache_are_left_alone(tmp_path):
    for name in (
        "mine/thesis.txt",
        "notes.txt",
        "prompts/mine.jsonl",
        "scores/2024-run/scores.parquet",
        "users/me.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert prune(tmp_path, days=0) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_downloaded_prompts_are_deleted_by_age(tmp_path):
    prompts = tmp_path / "prompts" / "0123456789abcdef-koala.jsonl"
    prompts.parent.mkdir()
    prompts.write_text("{}")
    assert [entry.paths for entry in prune(tmp_path, days=0)] == [(prompts,)]
    assert not prompts.exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--dir", "nowhere"], "--dir"), (["--prune", "-1"], "--prune"), (["--prune", "x"], "--prune")],
)
def test_wrong_arguments_are_user_errors(tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LPSEL_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert caught.value.name == arguments[0]


def test_names_of_models_and_files_that_look_like_digests_do_not_hide_the_runs_that_used_an_entry(tmp_path):
    """A file named after its MD5, and a run folder whose name has 16 hexadecimal digits."""
    labels = ("tiny-0cc175b9c0f1b6a831c399e269772661", "run-0123456789abcdef-alpaca")
    entries = [Entry.of(tmp_path, "scores", {"n": n}, label=label) for n, label in enumerate(labels)]
    with in_use(tmp_path, tmp_path):
        for entry in entries:
            with entry.locked():
                entry.folder.with_name(f"{entry.folder.name}-e1").mkdir()
    listed = [entry for entry in contents(tmp_path) if entry.kind == "scores"]
    assert sorted(entry.paths[0].name for entry in listed) == sorted(entry.folder.name for entry in entries)
    assert [entry.runs for entry in listed] == [(tmp_path,), (tmp_path,)]
    assert [len(entry.paths) for entry in listed] == [2, 2]
    assert prune(tmp_path, days=0) == []


def test_an_entry_that_is_found_again_was_used_today(tmp_path):
    entry = Entry.of(tmp_path, "tokens", {"rows": "r"})
    for _ in range(2):
        with entry.locked():
            pass
        assert by_kind(tmp_path)["tokens"].days < 1
        for path in (entry.folder, *entry.folder.iterdir()):
            os.utime(path, (time.time() - 10 * DAY,) * 2)
    assert by_kind(tmp_path)["tokens"].days == pytest.approx(10, abs=0.01)
