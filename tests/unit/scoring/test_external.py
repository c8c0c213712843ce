"""Score files of other tools, in the form in which their public sources write them."""

import json
from pathlib import Path

import numpy as np
import pytest

from lpsel.errors import UserError
from lpsel.scoring.read import read_scores


def write_bergson(folder, score_TQ, kind="float32", offsets=None, unwritten=()):
    """Pairs of a score and whether it was written, each aligned to the next power of 2, rows to 8 bytes."""
    rows, queries = score_TQ.shape
    stored = "uint16" if kind == "bfloat16" else kind
    size = np.dtype(stored).itemsize
    pair = 1 << size.bit_length()
    layout = {
        "names": [name for q in range(queries) for name in (f"score_{q}", f"written_{q}")],
        "formats": [kind, "bool"] * queries,
        "offsets": [offset for q in range(queries) for offset in (q * pair, q * pair + size)],
        "itemsize": -(-queries * pair // 8) * 8,
    }
    dtype = np.dtype(layout | {"formats": [stored, "bool"] * queries})
    cells = np.zeros(rows, dtype)
    for q in range(queries):
        values = score_TQ[:, q]
        if kind == "bfloat16":
            values = values.astype(np.float32).view(np.uint32) >> 16
        cells[f"score_{q}"], cells[f"written_{q}"] = values, True
    for row, q in unwritten:
        cells[f"written_{q}"][row] = False
    folder.mkdir()
    cells.tofile(folder / "scores.bin")
    info = {"attribute_tokens": offsets is not None, "num_items": rows if offsets is None else len(offsets) - 1,
            "num_rows": rows, "num_scores": queries, "dtype": layout}  # fmt: skip
    (folder / "info.json").write_text(json.dumps(info))
    if offsets is not None:
        np.save(folder / "offsets.npy", np.array(offsets))
    return folder


def columns(path, *names, rows=0):
    table = read_scores(path, columns=names, rows=lambda: rows)
    return [table.columns[name].tolist() if name in table.columns else None for name in names]


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_bergsons_scores_of_one_query(tmp_path, kind):
    folder = write_bergson(tmp_path / "scores", np.array([[0.5], [-1.25], [2.0]]), kind)
    assert columns(folder, "score", "score_0") == [[0.5, -1.25, 2.0], None]


def test_bergsons_scores_of_several_queries_and_their_mean(tmp_path):
    folder = write_bergson(tmp_path / "scores", np.array([[1.0, 3.0], [2.0, -4.0]]), unwritten=[(1, 0)])
    assert columns(folder, "score_0", "score_1", "score") == [
        [1.0, pytest.approx(np.nan, nan_ok=True)],
        [3.0, -4.0],
        [2.0, pytest.approx(np.nan, nan_ok=True)],
    ]


def test_bergsons_scores_of_tokens_are_summed_over_each_row(tmp_path):
    folder = write_bergson(tmp_path / "scores", np.array([[1.0], [2.0], [4.0], [8.0]]), offsets=[0, 3, 3, 4])
    assert columns(folder, "score") == [[7.0, 0.0, 8.0]]


def test_a_token_that_bergson_has_not_written_leaves_only_its_row_undefined(tmp_path):
    score = np.array([[1.0], [2], [3], [4], [5], [6]])  # 1 + 2, 3 + 4 with 3 missing, 5 + 6
    folder = write_bergson(tmp_path / "scores", score, offsets=[0, 2, 4, 6], unwritten=[(2, 0)])
    assert columns(folder, "score") == [[3.0, pytest.approx(np.nan, nan_ok=True), 11.0]]


def test_dataflex_has_values_of_the_selected_rows(tmp_path):
    file = tmp_path / "step_10.json"
    file.write_text(json.dumps({"indices": [3, 0, 3], "metric": {"loss": [0.5, 2.0, 0.5]}}))
    (loss,) = columns(file, "loss", rows=6)
    np.testing.assert_array_equal(loss, [2.0, np.nan, np.nan, 0.5, np.nan, np.nan])


def test_dataflex_has_the_loss_of_every_row_before_its_first_selection_by_delta_loss(tmp_path):
    file = tmp_path / "step_1.json"
    file.write_text(json.dumps({"indices": [2, 0], "metric": {"loss": [0.5, 2.0, 0.25]}}))
    assert columns(file, "loss") == [[0.5, 2.0, 0.25]]


def sample(doc_id, kind="none", **metrics):
    """A line as lm-eval logs it."""
    return json.dumps({
        "doc_id": doc_id, "doc": {"question": "?"}, "target": "0", "arguments": {"gen_args_0": {"arg_0": "?"}},
        "resps": [[["-1.5", "False"]]], "filtered_resps": [["-1.5", "False"]], "filter": kind,
        "metrics": list(metrics), "doc_hash": "a", "prompt_hash": "b", "target_hash": "c", **metrics,
    }) + "\n"  # fmt: skip


def test_lm_eval_has_the_metrics_of_the_documents_that_were_evaluated(tmp_path):
    file = tmp_path / "samples_mine_2026-01-01T00-00-00.jsonl"
    file.write_text(sample(2, acc=1.0, bits=[-6.0, 4]) + sample(0, acc=0.0, bits=[-5.0, 2]) + "\n")
    acc, bits = columns(file, "acc", "bits", rows=4)
    np.testing.assert_array_equal(acc, [0.0, np.nan, 1.0, np.nan])
    np.testing.assert_array_equal(bits, [-2.5, np.nan, -1.5, np.nan])


def test_lm_eval_has_a_column_for_each_filter(tmp_path):
    file = tmp_path / "samples_gsm8k_2026-01-01T00-00-00.jsonl"
    file.write_text(sample(0, "strict", exact_match=0.0) + sample(0, "flexible", exact_match=1.0))
    assert columns(file, "exact_match,strict", "exact_match,flexible", "exact_match") == [[0.0], [1.0], None]


def test_the_error_names_the_columns_where_a_rule_needs_losses(tmp_path):
    folder = write_bergson(tmp_path / "scores", np.ones((2, 2)))
    with pytest.raises(UserError, match="has no column nll_0") as caught:
        read_scores(folder)
    assert caught.value.hint.endswith("set selection=score_column selection.column=NAME, of score_0, score_1, score")


def cut(folder):
    (folder / "scores.bin").write_bytes((folder / "scores.bin").read_bytes()[:-1])


def with_objects(folder):
    """A layout with Python objects, which would make NumPy read pointers from the file."""
    info = json.loads((folder / "info.json").read_text())
    info["dtype"]["formats"][0] = "O"
    (folder / "info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("damage", [cut, with_objects, lambda folder: (folder / "info.json").write_text("[]")])
def test_a_damaged_folder_is_a_user_error(tmp_path, damage):
    folder = write_bergson(tmp_path / "scores", np.ones((3, 1)))
    damage(folder)
    with pytest.raises(UserError, match="is not in the format of Bergson") as caught:
        read_scores(folder, columns=["score"])
    assert (caught.value.name, caught.value.value) == ("scores", folder)


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        ("step_1.json", "[1]", "DataFlex"),
        ("step_1.json", '{"indices": [-1], "metric": {"loss": [1]}}', "DataFlex"),
        ("step_1.json", '{"indices": [], "metric": {}}', "DataFlex"),
        ("samples.jsonl", '{"instruction": "a"}\n', "lm-eval"),
        ("samples.jsonl", sample("a/1", acc=1.0), "lm-eval"),
        ("samples.jsonl", sample(0, acc="yes"), "lm-eval"),
    ],
)
def test_other_json_is_a_user_error(tmp_path, name, text, tool):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"is not in the format of {tool}"):
        read_scores(tmp_path / name, columns=["loss"])


def test_rows_are_selected_by_a_score_of_bergson(tmp_path, instructions, toy_model):
    from lpsel.commands.job import run

    score = np.random.default_rng(0).normal(size=(24, 1))
    folder = write_bergson(tmp_path / "scores", score)
    result = run(
        "select",
        ["dataset=local", f"dataset.path={instructions()}", f"scores={folder}", "selection=score_column",
         "selection.column=score", "selection.descending=true", "cluster=none", "pct=25", "tracker=none",
         "scorer=local", f"scorer.path={toy_model}", f"cache_dir={tmp_path}/cache"],
        tmp_path / "run",
    )  # fmt: skip
    rows = [json.loads(line)["output"] for line in Path(result["subset"]).read_text().splitlines()]
    assert sorted(int(row.split("#")[1]) for row in rows) == sorted(np.argsort(-score[:, 0])[:6].tolist())
    assert result["scores"] == str(folder)
