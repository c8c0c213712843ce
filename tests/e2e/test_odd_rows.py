"""Files in which one row in a hundred is odd, through reading, scoring, selection and training."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.cli import run as command_line
from lpsel.commands.job import run
from lpsel.errors import UnusableRow
from lpsel.model.lightning_module import FineTuner

STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '\\n') }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
USER = {"role": "user", "content": "Hi"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": '{"city": "Bonn"}'}]}
PICTURE = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "x"}]}
ODD = [  # the kind, and a row or line of it
    ("a list as text", {"instruction": "List the colors.", "output": ["red", "blue"]}),
    ("half a surrogate pair", {"instruction": "Smile.", "output": "\ud83d"}),
    ("images", {"messages": [PICTURE, {"role": "assistant", "content": "A cat."}]}),
    ("images", {"instruction": "See.", "output": "A dog.", "image": "dog.png"}),
    ("audio", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
    ("an unknown role", {"messages": [{"role": "wizard", "content": "Abracadabra"}]}),
    ("an unknown form", {"text": "All in one column."}),
    ("invalid JSON", "{"),
    ("a row that is not an object", "[1]"),
]
REJECTED = [  # only where a chat template writes the rows
    ("the chat template rejects it", {"messages": [USER, USER, {"role": "assistant", "content": "Ho"}]}),
    ("the chat template has no tools", {"messages": [USER, CALL]}),
]
EMPTY = ("", " ", "\n\t", "\u3000", None)
EVERY = 100  # rows, of which the first is odd


def write_rows(path, rows, odd=(*ODD, *REJECTED), every=EVERY):
    """Write JSON lines of Alpaca rows; returns the numbers of unusable rows by kind, and the numbers of empty ones."""
    kinds, empty = {}, []
    with path.open("w") as file:
        for i in range(rows):
            row = {
                "instruction": f"Count to {i % 7} and add {i}.",
                "output": f"{' '.join(map(str, range(i % 7)))} #{i}",
            }
            turn, normal = divmod(i, every)
            choice = turn % (len(odd) + len(EMPTY))
            if not normal and choice < len(odd):
                kinds[i], row = odd[choice]
            elif not normal:
                row["output"] = EMPTY[choice - len(odd)]
                empty.append(i)
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
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
    kinds, empty = write_rows(tmp_path / "rows.jsonl", n, ODD)
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


@pytest.fixture(scope="session")
def strict_model(with_chat_template):
    """The toy model with a chat template that rejects some conversations and has no tools."""
    return with_chat_template(STRICT, "strict")


def training(model, path, cache, *overrides):
    models = ["scorer=local", f"scorer.path={model}", "model=local", f"model.path={model}", "trainer=cpu"]
    recipe = ["scorer.recipe.epochs=1", "model.recipe.epochs=1", "scorer.max_length=96", "model.max_length=96"]
    chat = ["scorer.template=chat", "model.template=chat", "selection=lp_app", "pct=10"]
    return [*settings(path, cache), *models, *recipe, *chat, *overrides]


def without_target(asked):
    """The overrides of `train` that `select` has as well."""
    return [override for override in asked if not override.startswith("model")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, strict_model):
    """A target trained on rows that a scorer selected, of a file with odd rows."""
    folder = tmp_path_factory.mktemp("odd")
    kinds, empty = write_rows(folder / "rows.jsonl", 400, every=25)
    asked = training(strict_model, folder / "rows.jsonl", folder / "cache")
    result = run("train", [*asked, "dataset.bad_rows=skip"], folder / "run")
    return asked, result, kinds, empty


def test_skipped_rows_have_no_scores(trained):
    _, result, kinds, _ = trained
    scores = read(result["scores"])
    assert {i: kind for i, kind in enumerate(scores["unusable"]) if kind} == kinds
    assert scores["index"] == list(range(400))
    assert {i for i, nll in enumerate(scores["nll_1"]) if nll is None} == set(kinds)
    manifest = json.loads(Path(result["scores"]).with_name("manifest.json").read_text())
    assert manifest["rows_unusable"] == counted(kinds)
    assert manifest["rows_without_supervised_token"] == 0


def test_neither_skipped_rows_nor_empty_answers_are_trained_on(trained):
    _, result, kinds, empty = trained
    assert (result["n_selected"], result["training"]["rows"]) == (40, 40)
    assert result["rows_unusable"] == result["training"]["rows_unusable"] == counted(kinds)
    assert len(counted(kinds)) == 10
    selected = np.flatnonzero(read(result["selection"])["selected"])
    assert not set(selected.tolist()) & (set(kinds) | set(empty))


def test_scores_of_a_run_that_skipped_rows_are_not_used_by_one_that_must_not(trained, tmp_path):
    asked, _, kinds, _ = trained
    with pytest.raises(UnusableRow) as caught:
        run("train", asked, tmp_path / "run")
    assert caught.value.location.endswith(f"rows.jsonl, line {min(kinds) + 1}")
    assert caught.value.hint.endswith("set dataset.bad_rows=skip to leave such rows out")


def test_the_log_counts_rows_that_cannot_be_read_and_those_that_the_template_rejects(trained, tmp_path, caplog):
    asked, _, kinds, _ = trained
    with caplog.at_level("INFO"):
        run("select", [*without_target(asked), "dataset.bad_rows=skip"], tmp_path / "run")
    unreadable = sum(kind in dict(ODD) for kind in kinds.values())
    assert f"{unreadable} of 400 rows of rows are unusable and skipped: " in caplog.text
    (tokens,) = (line for line in caplog.messages if line.startswith("Tokens for "))
    assert f"; {len(kinds)} are unusable and skipped: " in tokens
    assert f"the chat template rejects it ({counted(kinds)['the chat template rejects it']})" in tokens
    assert "unusable: the chat template has no tools" in caplog.text


class Cut(BaseException):
    """Stands in for a kill: nothing catches it."""


@pytest.mark.parametrize("step", ["validation_step", pytest.param("training_step", marks=pytest.mark.slow)])
def test_a_command_that_was_cut_off_gives_the_same_scores(trained, tmp_path, monkeypatch, step):
    asked, result, kinds, _ = trained
    small = ["score_tokens=4000", "checkpoint_steps=1", f"cache_dir={tmp_path}"]
    asked = [*without_target(asked), "dataset.bad_rows=skip", *small]
    calls, whole = [], getattr(FineTuner, step)

    def cut(self, batch, i):
        calls.append(i)
        if len(calls) == 3:
            raise Cut
        return whole(self, batch, i)

    monkeypatch.setattr(FineTuner, step, cut)
    with pytest.raises(Cut):
        run("select", asked, tmp_path / "run")
    resumed = run("select", asked, tmp_path / "run")
    assert resumed["rows_unusable"] == counted(kinds)
    scores, expected = read(resumed["scores"]), read(result["scores"])
    assert scores["unusable"] == expected["unusable"]
    for name in ("nll_0", "nll_1"):
        assert [nll is None for nll in scores[name]] == [kind is not None for kind in expected["unusable"]]
        usable = [i for i, nll in enumerate(scores[name]) if nll is not None]
        np.testing.assert_allclose(
            *(np.array(each[name])[usable].astype(float) for each in (scores, expected)), rtol=1e-5
        )


def from_command_line(command, *overrides):
    sys.argv = [command]
    command_line(command, list(overrides))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3, 12])
def test_ranks_skip_the_same_rows_and_give_the_scores_of_one(tmp_path, strict_model, as_ranks, world):
    """11 rows, so that no number of ranks divides them, of which 4 are unusable and 2 have an empty answer."""
    kinds, _ = write_rows(tmp_path / "rows.jsonl", 11, [REJECTED[0], ODD[0], REJECTED[1], ODD[-1]], every=2)
    asked = training(strict_model, tmp_path / "rows.jsonl", tmp_path / "cache", "dataset.bad_rows=skip", "pct=30",
                     "scorer.recipe.global_batch=4", "model.recipe.global_batch=3")  # fmt: skip
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world}", f"hydra.run.dir={tmp_path}/run"]
    asked.remove("trainer=cpu")
    as_ranks(world, from_command_line, "train", *asked, *ranks)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    one = run("train", [*asked, "trainer=cpu", f"cache_dir={tmp_path}/one"], tmp_path / "alone")
    assert result["training"]["world_size"] == world
    assert result["rows_unusable"] == one["rows_unusable"] == counted(kinds)
    assert Path(result["subset"]).read_text() == Path(one["subset"]).read_text()
    several, alone = (pq.read_table(each["scores"])["nll_1"].to_numpy() for each in (result, one))
    np.testing.assert_allclose(several, alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10_000, 100_000])
def test_of_many_rows_the_odd_ones_are_not_scored_selected_or_trained_on(tmp_path, strict_model, n):
    kinds, empty = write_rows(tmp_path / "rows.jsonl", n)
    asked = training(strict_model, tmp_path / "rows.jsonl", tmp_path / "cache", "pct=1")
    with pytest.raises(UnusableRow) as caught:
        run("train", asked, tmp_path / "stopped")
    assert caught.value.location == f"{tmp_path}/rows.jsonl, line 1"
    assert caught.value.hint.endswith("set dataset.bad_rows=skip to leave such rows out")
    result = run("train", [*asked, "dataset.bad_rows=skip"], tmp_path / "run")
    assert result["rows_unusable"] == counted(kinds)
    unusable = {f"unusable: {kind}": count for kind, count in counted(kinds).items()}
    assert result["reasons"] == {**unusable, "empty answer": len(empty)}
    assert (result["n_eligible"], result["n_selected"]) == (n - n // 100, n // 100)
    assert result["training"]["rows"] == n // 100
    scores = read(result["scores"])
    assert {i for i, nll in enumerate(scores["nll_1"]) if nll is None} == set(kinds)
