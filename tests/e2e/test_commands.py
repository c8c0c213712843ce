"""The three commands from end to end, in one process, on a toy model."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.datasets import write_instructions

from lpsel.commands import result_summary
from lpsel.commands.job import run
from lpsel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED_CHECK = Path(__file__).resolve().parents[3] / "shared" / "tools" / "check-contract"


def given(tmp_path, toy_model, data, *more):
    return [
        "dataset=local", f"dataset.path={data}", "trainer=cpu", "tracker=none", f"cache_dir={tmp_path}/cache", *more,
    ]  # fmt: skip


def scorer(toy_model):
    return ["scorer=local", f"scorer.path={toy_model}", "cluster=none", "pct=25"]


def model(toy_model):
    return ["model=local", f"model.path={toy_model}", "model.recipe.learning_rate=1e-3", "model.recipe.epochs=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of `trained`: rows.jsonl, cache and train."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def trained(folder, toy_model):
    data = write_instructions(folder)
    overrides = given(folder, toy_model, data, *scorer(toy_model), *model(toy_model), "selection=lp_app")
    return run("train", overrides, folder / "train")


def test_the_subset_has_the_sources_rows_in_their_order(trained, folder):
    source = (folder / "rows.jsonl").read_text().splitlines()
    subset = Path(trained["subset"]).read_text().splitlines()
    selected = pq.read_table(trained["selection"])
    chosen = [i for i, s in zip(selected["index"].to_pylist(), selected["selected"].to_pylist(), strict=True) if s]
    assert len(subset) == trained["n_selected"] == 6  # 25% of 24
    assert [json.loads(line) for line in subset] == [json.loads(source[i]) for i in chosen]


def test_the_selected_rows_have_the_lowest_lp_app(trained):
    table = pq.read_table(trained["scores"]).to_pandas()
    import numpy as np

    before, after = np.exp(table["nll_0"]), np.exp(table["nll_1"])
    expected = set(np.argsort(((before - after) / before).to_numpy(), kind="stable")[:6])
    selected = pq.read_table(trained["selection"]).to_pandas()
    assert set(selected.loc[selected["selected"], "index"]) == expected


def test_near_duplicates_among_the_selected_rows_are_counted(tmp_path, toy_model, instructions):
    overrides = given(tmp_path, toy_model, instructions(), *scorer(toy_model), "selection=full")
    found = run("select", overrides, tmp_path / "full")["diagnosis"]
    # "Instruction: Count to k. Response: 0 1 ... k #i", k = i % 7, has k + 5 triples, all but the last the same for
    # one k: (k + 4) / (k + 6) is .67 for k = 0 and at least .71 for the 20 rows with another k, six of which are first.
    assert (found["near_duplicates"], found["near_duplicates_among"]) == (14, 24)
    assert "14 of 24 different selected rows are near-duplicates" in found["warnings"][-1]


def test_the_trained_model_loads_with_transformers_and_has_changed(trained, toy_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (toy_model, trained["model"]))
    assert AutoTokenizer.from_pretrained(trained["model"]).eos_token == "<eos>"
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert not list(Path(trained["model"]).glob("*.bin"))


def test_result_json_equals_the_returned_result(trained, folder):
    written = json.loads((folder / "train" / "result.json").read_text())
    assert written["n_selected"] == 6
    assert written["rule"] == "lp_app"
    assert written["training"]["steps"] == 1
    assert written["training"]["rows"] == 6
    spent = written["ledger"]
    assert spent["selection"]["flops"] == written["scoring"]["flops"] > 0
    assert spent["total"]["tokens"] == written["scoring"]["tokens"] + written["training"]["tokens"]
    assert spent["everything"]["flops"] > spent["training"]["flops"]
    assert written["scorer"]["path"] == trained["scorer"]["path"]


@pytest.mark.skipif(not SHARED_CHECK.is_file(), reason="../shared/tools/check-contract is not there")
def test_run_folders_pass_check_contract(trained, folder):
    folders = [folder / "train", Path(trained["scores"]).parent]
    done = subprocess.run([sys.executable, SHARED_CHECK, *folders], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "as the contract says"


@pytest.mark.parametrize(
    ("pct", "n"),
    [(1, 520), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((3, 1560), (5, 2600), (10, 5200)))],
)
def test_lp_app_on_alpaca_selects_the_exact_number_and_no_empty_answer(tmp_path, shared_data, pct, n):
    """Of the 520 rows with the lowest LP_app of OPT-350M, 16 have an empty answer."""
    rows = ["dataset=local", f"dataset.path={shared_data}/alpaca.jsonl.xz", "cluster=none", "tracker=none"]
    scores = [f"scores={shared_data}/perplexities_alpaca.npz", "scores_key=opt-350m", "selection=lp_app", f"pct={pct}"]
    result = run("select", [*rows, *scores], tmp_path / "run")
    answers = [json.loads(line)["output"] for line in Path(result["subset"]).read_text().splitlines()]
    assert len(answers) == result["n_selected"] == n
    assert all(answer.strip() for answer in answers)
    assert result["reasons"]["empty answer"] == 28
    if SHARED_CHECK.is_file():
        subprocess.run([sys.executable, SHARED_CHECK, tmp_path / "run"], check=True)


def test_select_selects_the_rows_that_train_trained_on(trained, folder, tmp_path, toy_model):
    overrides = given(folder, toy_model, folder / "rows.jsonl", *scorer(toy_model), "selection=lp_app")
    selected = run("select", overrides, tmp_path / "run")
    assert selected["scores_reused"]
    assert Path(selected["subset"]).read_text() == Path(trained["subset"]).read_text()


def test_runs_are_evaluated_next_to_untrained_models(trained, folder, tmp_path, toy_model):
    overrides = given(folder, toy_model, folder / "rows.jsonl", "dataset.limit=5", "evaluator.max_new_tokens=4")
    models = f"models=[{Path(trained['model']).parent}]"
    result = run("evaluate", [*overrides, f"baseline={toy_model}", models], tmp_path / "runs" / "evaluate")
    untrained, after = result["models"]
    assert result["n"] == 5
    assert result["baseline"] == "toy-llama"
    assert after["name"] == "toy-llama, lp_app by toy-llama, 25%"
    assert after["metrics"]["nll"]["value"] < untrained["metrics"]["nll"]["value"]
    assert after["difference"]["nll"]["high"] < 0
    lines = (tmp_path / "runs" / "evaluate" / after["generations"]).read_text().splitlines()
    assert [json.loads(line)["reference"] for line in lines][:2] == ["0 #0", "0 1 #1"]


def test_scores_from_a_file_need_neither_scorer_nor_torch(tmp_path, instructions):
    table = pa.table({"ppl_0": [10.0, 10.0, 10.0, 10.0], "ppl_1": [9.0, 2.0, 5.0, 8.0], "cluster": [0, 0, 1, 1]})
    pq.write_table(table, tmp_path / "scores.parquet")
    data = instructions(rows=4)
    code = (
        "import sys; from pathlib import Path; from lpsel.commands.job import run; "
        f"result = run('select', ['dataset=local', 'dataset.path={data}', 'scores={tmp_path}/scores.parquet', "
        f"'tracker=none', 'pct=50'], Path('{tmp_path}/run')); "
        "print(result['n_selected'], [m for m in ('torch', 'transformers', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 []", done.stderr
    # LP_app is .1, .8, .5, .2: rows 0 and 3 are the hardest of their clusters.
    chosen = pq.read_table(tmp_path / "run" / "selection.parquet")["selected"].to_pylist()
    assert chosen == [True, False, False, True]


def test_scores_of_the_same_rows_in_another_order_are_matched(trained, tmp_path, toy_model, instructions):
    other = instructions(rows=24, name="other.jsonl", order=list(reversed(range(24))))
    overrides = given(tmp_path, toy_model, other, f"scores={trained['scores']}", "cluster=none", "pct=25")
    selected = run("select", [*overrides, "selection=lp_app"], tmp_path / "runs" / "other")
    ours, theirs = (Path(result["subset"]).read_text().splitlines() for result in (selected, trained))
    assert ours == theirs[::-1]


def test_scores_of_other_data_are_rejected(trained, tmp_path, toy_model, instructions):
    other = instructions(rows=24, name="other.jsonl")
    other.write_text(other.read_text().replace("#23", "#24"))
    overrides = given(tmp_path, toy_model, other, f"scores={trained['scores']}", "cluster=none")
    with pytest.raises(
        UserError, match=r"scores: row 23 of dataset other, with id \w{32}, has no score: the scores are for other rows"
    ):
        run("select", overrides, tmp_path / "runs" / "other")


def test_a_repeated_command_reuses_its_model_unless_the_rows_changed(tmp_path, toy_model, instructions):
    target = ["model=local", f"model.path={toy_model}", "model.recipe.epochs=1"]
    how = ["selection=random", "cluster=none", "pct=50"]
    asked = [*given(tmp_path, toy_model, instructions(rows=8)), *target, *how]
    first = run("train", asked, tmp_path / "run")
    weights = (tmp_path / "run/model/model.safetensors").stat()
    again = run("train", asked, tmp_path / "run")
    assert (tmp_path / "run/model/model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert again["training"] == first["training"], "seconds as well"
    assert again["reused_from"] is None
    run("train", asked, tmp_path / "elsewhere")
    elsewhere = (tmp_path / "elsewhere/model/model.safetensors").stat()
    assert elsewhere.st_ino != weights.st_ino, "another folder: trained again, not linked as in a sweep"
    instructions(rows=12)  # the same file
    more = run("train", asked, tmp_path / "run")
    assert more["training"]["rows"] > first["training"]["rows"]


def lines_about_tokens(caplog):
    return [message for message in caplog.messages if message.startswith("Tokens for ")]


def test_full_trains_on_every_row_with_a_supervised_token(tmp_path, toy_model, instructions, caplog):
    caplog.set_level("INFO")
    data = instructions(rows=6)
    data.write_text(data.read_text() + json.dumps({"instruction": "x" * 600, "output": "cut off"}) + "\n")
    overrides = given(tmp_path, toy_model, data, *model(toy_model), "selection=full")
    result = run("train", overrides, tmp_path / "run")
    assert (result["n_total"], result["n_eligible"], result["n_selected"]) == (7, 6, 6)
    assert result["reasons"] == {"no supervised token": 1}
    assert result["scores"] is None
    assert result["training"]["rows"] == 6
    assert len(lines_about_tokens(caplog)) == 1, "not one for the selection and one for the training"


def test_random_needs_no_scorer_and_does_not_depend_on_row_order(tmp_path, toy_model, instructions, caplog):
    caplog.set_level("INFO")
    order = [5, 3, 1, 7, 0, 2, 6, 4]
    texts = []
    for name, rows in (("a.jsonl", None), ("b.jsonl", order)):
        data = instructions(rows=8, name=name, order=rows)
        overrides = given(tmp_path, toy_model, data, *scorer(toy_model), "selection=random")
        result = run("select", overrides, tmp_path / name.removesuffix(".jsonl"))
        texts.append(sorted(Path(result["subset"]).read_text().splitlines()))
        assert result["scores"] is None
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2
    assert len(lines_about_tokens(caplog)) == 2, "one of each command"


def test_the_scorer_itself_can_embed_the_rows(tmp_path, toy_model, instructions):
    shared = [*given(tmp_path, toy_model, instructions(rows=12), *scorer(toy_model)), "cluster=kmeans", "seed=1"]
    clustered = run("select", [*shared, "cluster.embedder=scorer", "cluster.n_clusters=3"], tmp_path / "clustered")
    assert clustered["clusters"] == 3
    by_name = run("select", [*shared, f"cluster.embedder={toy_model}", "cluster.n_clusters=3"], tmp_path / "by-name")
    assert Path(by_name["subset"]).read_bytes() == Path(clustered["subset"]).read_bytes()
    spread = run("select", [*shared, "cluster.embedder=scorer", "selection=k_center"], tmp_path / "spread")
    assert (spread["n_selected"], spread["scores"]) == (3, None)
    with pytest.raises(UserError, match=r"cluster\.embedder=scorer: does not support scorer\.revision=main"):
        run("select", [*shared, "cluster.embedder=scorer", "scorer.revision=main"], tmp_path / "revision")


@pytest.mark.parametrize("rule", ["perplexity", "ifd", "superfilter", "el2n"])
def test_rules_of_the_pass_before_training_select(rule, tmp_path, toy_model, instructions):
    data = instructions(rows=12)
    overrides = given(tmp_path, toy_model, data, *scorer(toy_model), f"selection={rule}")
    result = run("select", overrides, tmp_path / "run")
    assert result["n_selected"] == min(3, result["n_eligible"])
    assert result["scoring"]["tokens"] > 0
    assert Path(result["scores"]).parent.name.split("-e")[-1].startswith("0")
    ends = result["examples"]
    assert ends["first"][0]["selected"]
    assert ends["first"][0]["score"] == result["score"]["selected"]["highest"]


def test_a_rule_ranks_by_a_column_of_the_dataset(tmp_path, toy_model, instructions):
    data = instructions(rows=8)
    rows = [json.loads(line) | {"reward": i % 4} for i, line in enumerate(data.read_text().splitlines())]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = given(tmp_path, toy_model, data, *scorer(toy_model), "selection=score_column")
    result = run("select", [*common, "selection.column=reward"], tmp_path / "run")
    assert [json.loads(line)["reward"] for line in Path(result["subset"]).read_text().splitlines()] == [0, 0]
    first = result["examples"]["first"]
    assert [(row["index"], row["score"], row["selected"], row["text"]) for row in first[:3]] == [
        (0, 0.0, True, "Count to 0."), (4, 0.0, True, "Count to 4."), (1, 1.0, False, "Count to 1."),
    ]  # fmt: skip
    assert result["examples"]["last"][-1]["index"] == 7
    listed = [text for _, text in result_summary.selection(result) if "  row " in text]
    assert [line.split(":")[0] for line in listed[:2]] == ["0  row 0", "0  row 4"]
    assert len(listed) == 6, "a row among the first is not repeated among the last"
    assert len(first[0]["id"]) == 32
    with pytest.raises(UserError, match=r"selection\.column=price: neither in scores= nor in row 0 of the dataset"):
        run("select", [*common, "selection.column=price"], tmp_path / "other")
    with pytest.raises(UserError, match=r"selection\.column=output: row 0 has '0 #0'\. Name a numeric column"):
        run("select", [*common, "selection.column=output"], tmp_path / "other")


def test_released_arrays_work_as_scores(tmp_path, toy_model, instructions):
    import numpy as np

    np.savez(tmp_path / "scores.npz", small=[[10.0] * 4, [9.0, 2, 5, 8]], large=[[10.0] * 4, [1.0, 2, 9, 8]])
    overrides = given(tmp_path, toy_model, instructions(rows=4), f"scores={tmp_path}/scores.npz", "cluster=none")
    result = run("select", [*overrides, "scores_key=large", "pct=25"], tmp_path / "run")
    assert pq.read_table(result["selection"])["selected"].to_pylist() == [False, False, True, False]
    with pytest.raises(UserError, match=r"has the arrays small, large\. Set scores_key=NAME"):
        run("select", overrides, tmp_path / "other")
    with pytest.raises(UserError, match=r"scores_key=small: names an array of scores=FILE\.npz"):
        run("select", [*overrides, "scores=null", "scores_key=small"], tmp_path / "other")


def test_null_clusters_in_scores_are_ignored_with_cluster_none(tmp_path, toy_model, instructions):
    table = pa.table({"ppl_0": [10.0] * 4, "ppl_1": [9.0, 2.0, 5.0, 8.0], "cluster": [0, None, 1, 1]})
    pq.write_table(table, tmp_path / "scores.parquet")
    overrides = given(tmp_path, toy_model, instructions(rows=4), f"scores={tmp_path}/scores.parquet", "pct=50")
    result = run("select", [*overrides, "cluster=none"], tmp_path / "run")
    assert pq.read_table(result["selection"])["selected"].to_pylist() == [True, False, False, True]
    with pytest.raises(UserError, match=r"column cluster is int64 with 1 empty, .* \(or set cluster=none\)"):
        run("select", [*overrides, "cluster=auto"], tmp_path / "other")


def test_missing_columns_are_reported_before_the_dataset_is_read(tmp_path, toy_model):
    pq.write_table(pa.table({"nll_0": [1.0], "nll_1": [0.5]}), tmp_path / "scores.parquet")
    (tmp_path / "half.jsonl").write_text("{")  # an error once it is read
    overrides = given(tmp_path, toy_model, tmp_path / "half.jsonl", f"scores={tmp_path}/scores.parquet", "cluster=none")
    with pytest.raises(UserError, match="selection=lp: needs 3 recorded epochs, and these scores have 1"):
        run("select", [*overrides, "selection=lp"], tmp_path / "run")


def test_the_csv_tracker_writes_metrics(tmp_path, toy_model, instructions):
    overrides = given(tmp_path, toy_model, instructions(rows=8), *model(toy_model), "selection=full")
    run("train", [*overrides, "tracker=csv"], tmp_path / "run")
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"target/nll", "target/learning_rate", "step"} <= set(header)


TORCHRUN = ["-m", "torch.distributed.run"]
LAUNCHERS = {
    "ddp, started by Lightning": ["trainer=ddp", "trainer.devices=2"],
    "fsdp, started by torchrun": ["trainer=fsdp", "trainer.devices=2"],
    "fsdp, two nodes of torchrun": ["trainer=fsdp", "trainer.devices=1", "trainer.num_nodes=2"],
}


def started(launcher, port):
    """What follows `python` on the command lines that start it, one for each node."""
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    return {
        "ddp, started by Lightning": [["-m", "lpsel", "train"]],
        "fsdp, started by torchrun": [[*TORCHRUN, "--standalone", "--nproc-per-node=2", "train.py"]],
        "fsdp, two nodes of torchrun": [[*TORCHRUN, *nodes, "train.py"]] * 2,
    }[launcher]


@pytest.mark.parametrize(
    "launcher", [name if "Lightning" in name else pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS]
)
def test_two_processes_train_the_same_target(tmp_path, toy_model, instructions, free_port, launcher):
    """With a scorer and a target to train: two fits in one run, on both ranks."""
    from safetensors.torch import load_file

    common = given(tmp_path, toy_model, instructions(), *scorer(toy_model), *model(toy_model), "selection=lp_app")
    one = run("train", common, tmp_path / "one")
    two = [*LAUNCHERS[launcher], "trainer.accelerator=cpu", f"cache_dir={tmp_path}/cache-of-two"]
    overrides = [*common, *two, f"hydra.run.dir={tmp_path}/two"]
    nodes = [
        subprocess.Popen([sys.executable, *start, *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for start in started(launcher, free_port())
    ]
    for node in nodes:
        _, complaint = node.communicate(timeout=250)
        assert node.returncode == 0, complaint
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["training"]["world_size"] == 2
    assert Path(result["subset"]).read_text() == Path(one["subset"]).read_text()
    for count in ("tokens", "flops", "steps"):
        assert result["training"][count] == one["training"][count]
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (one["model"], result["model"]))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-5)
