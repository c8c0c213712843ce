"""Files in which one row in a hundred is odd, through reading, scoring, selection and training."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands.job import run
from lpsel.errors import UnusableRow

ODD = {
    "a list as text": {"instruction": "List the colors.", "output": ["red", "blue"]},
    "half a surrogate pair": {"instruction": "Smile.", "output": "\ud83d"},
}
EMPTY = ("", " ", "\n\t", "\u3000", None)
EVERY = 100  # rows, of which the first is odd


def write_rows(path, rows):
    """Write JSON lines of Alpaca rows; returns the numbers of unusable rows by kind, and the numbers of empty ones."""
    kinds, empty = {}, []
    with path.open("w") as file:
        for i in range(rows):
            row = {
                "instruction": f"Count to {i % 7} and add {i}.",
                "output": f"{' '.join(map(str, range(i % 7)))} #{i}",
            }
            turn, odd = divmod(i, EVERY)
            if odd == 0:
                choice = turn % (len(ODD) + len(EMPTY))
                if choice < len(ODD):
                    kinds[i], row = list(ODD.items())[choice]
                else:
                    row["output"] = EMPTY[choice - len(ODD)]
                    empty.append(i)
            file.write(json.dumps(row) + "\n")
    return kinds, empty


def counted(kinds):
    """Numbers of rows by kind."""
    return dict(Counter(kinds.values()))


def settings(path, cache):
    return ["dataset=local", f"dataset.path={path}", "cluster=none", "tracker=none", f"cache_dir={cache}"]


def read(path):
    return pq.read_table(path).to_pydict()


def test_of_100_000_rows_the_odd_ones_are_counted_and_not_selected(tmp_path):
    """Reading and selecting, with given scores: the lower the row number, the harder, odd rows first."""
    n = 100_000
    kinds, empty = write_rows(tmp_path / "rows.jsonl", n)
    assert len(kinds) + len(empty) == n // 100
    easier = np.linspace(0, 1, n)
    pq.write_table(pa.table({"nll_0": np.full(n, 3.0), "nll_1": 3 - easier}), tmp_path / "scores.parquet")
    asked = [*settings(tmp_path / "rows.jsonl", tmp_path), f"scores={tmp_path}/scores.parquet", "selection=lp_app"]
    result = run("select", [*asked, "dataset.bad_rows=skip", "pct=5"], tmp_path / "run")
    assert result["rows_unusable"] == counted(kinds)
    unusable = {f"unusable: {kind}": count for kind, count in counted(kinds).items()}
    assert result["reasons"] == {**unusable, "empty answer": len(empty)}
    assert (result["n_selected"], result["n_eligible"]) == (n // 20, n - n // 100)
    written = read(result["selection"])
    first = [i for i in range(n) if i not in kinds and i not in set(empty)][: n // 20]
    assert np.flatnonzero(written["selected"]).tolist() == first
    assert [i for i, reason in enumerate(written["reason"]) if reason == "empty answer"] == empty
    subset = [json.loads(line) for line in Path(result["subset"]).read_text().splitlines()]
    assert all(row["output"].strip() for row in subset)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_model):
    """A target trained on rows that a scorer selected, of a file with odd rows."""
    folder = tmp_path_factory.mktemp("odd")
    kinds, empty = write_rows(folder / "rows.jsonl", 800)
    models = ["scorer=local", f"scorer.path={toy_model}", "model=local", f"model.path={toy_model}", "trainer=cpu"]
    recipe = ["scorer.recipe.epochs=1", "model.recipe.epochs=1", "scorer.max_length=96", "model.max_length=96"]
    asked = [*settings(folder / "rows.jsonl", folder / "cache"), *models, *recipe, "scorer.template=plain",
             "model.template=plain", "selection=lp_app", "pct=10"]  # fmt: skip
    result = run("train", [*asked, "dataset.bad_rows=skip"], folder / "run")
    return asked, result, kinds, empty


def test_skipped_rows_have_no_scores(trained):
    _, result, kinds, _ = trained
    scores = read(result["scores"])
    assert {i: kind for i, kind in enumerate(scores["unusable"]) if kind} == kinds
    assert scores["index"] == list(range(800))
    assert {i for i, nll in enumerate(scores["nll_1"]) if nll is None} == set(kinds)
    manifest = json.loads(Path(result["scores"]).with_name("manifest.json").read_text())
    assert manifest["rows_unusable"] == counted(kinds)
    assert manifest["rows_without_supervised_token"] == 0


def test_neither_skipped_rows_nor_empty_answers_are_trained_on(trained):
    _, result, kinds, empty = trained
    assert (result["n_selected"], result["training"]["rows"]) == (80, 80)
    assert result["rows_unusable"] == counted(kinds)
    selected = np.flatnonzero(read(result["selection"])["selected"])
    assert not set(selected.tolist()) & (set(kinds) | set(empty))


def test_scores_of_a_run_that_skipped_rows_are_not_used_by_one_that_must_not(trained, tmp_path):
    asked, _, kinds, _ = trained
    with pytest.raises(UnusableRow) as caught:
        run("train", asked, tmp_path / "run")
    assert caught.value.location.endswith(f"rows.jsonl, line {min(kinds) + 1}")
    assert caught.value.hint.endswith("set dataset.bad_rows=skip to leave such rows out")
