"""lpsel validate: subsets of equal size are trained on, evaluated, and compared with their mean scores."""

import html
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpsel.commands import runs, show, validate
from lpsel.commands.report import report
from lpsel.errors import UserError

ROWS = 40


@pytest.fixture
def scores(tmp_path):
    """Row i has LP_app on NLL i / 100, except row 5, which has none; and a column of another tool."""
    fraction = np.arange(ROWS) / 100
    columns = {"index": np.arange(ROWS), "nll_0": np.full(ROWS, 2.0), "nll_1": 2 * (1 - fraction), "other": -fraction}
    columns["nll_1"] = pa.array(columns["nll_1"], mask=np.arange(ROWS) == 5)
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    return str(tmp_path / "mine.parquet")


@pytest.fixture
def given(tmp_path, toy_model, instructions):
    data, held_out = instructions(rows=ROWS), instructions(rows=6, name="held-out.jsonl")
    return [
        f"dataset={data}", f"model={toy_model}", "model.max_length=256", "model.recipe.epochs=1",
        "model.recipe.learning_rate=1e-3", "trainer=cpu", "tracker=none", f"cache_dir={tmp_path}/cache",
    ], [f"dataset={held_out}"]  # fmt: skip


def held_out_nll(folder, held_out):
    """The mean NLL of the answers' tokens by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for line in Path(held_out[0].split("=")[1]).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{row['instruction']}\n\n### Response:"
        )["input_ids"]
        answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            loss = model(
                input_ids=torch.tensor([prompt + answer]), labels=torch.tensor([[-100] * len(prompt) + answer])
            )
        total, count = total + loss.loss.item() * len(answer), count + len(answer)
    return total / count


def check_other_commands(tmp_path, score, result, capsys):
    """`lpsel show` and `lpsel runs` have the correlations; `lpsel report` names the command that prints them."""
    folder = tmp_path / "out"
    show.main([str(folder)])
    shown = capsys.readouterr().out
    assert shown.split("\n")[0].split() == ["validate", str(folder)]
    text = " ".join(shown.split())
    assert f"mine lp_app_nll Spearman: {score['conclusion']} NLL {score['nll_lowest']:.3f} of the lowest rows" in text
    assert f"Random subsets 5 of 20%: NLL {result['random_nll']['mean']:.3f}, standard deviation" in text
    assert "Cost 7 trainings," in text
    runs.main([str(folder)])
    line = capsys.readouterr().out.splitlines()[1]
    low, high = sorted([score["spearman"], -score["spearman"]])
    assert line.startswith("validate")
    assert f"Spearman {low:.4g} to {high:.4g} of 2 scores" in line
    runs.main([str(folder), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (row["command"], row["flops"]) == ("validate", result["cost"]["flops"])
    figure = {"model": score["score"], "metric": "spearman", "value": score["spearman"]}
    assert row["figures"][0] == figure | {"low": score["ci_low"], "high": score["ci_high"]}
    reason = r"reports leave out validations; print it with `lpsel show`"
    with pytest.raises(UserError, match=rf"out: no finished run \({reason}\)\. Name run folders of train, select, "):
        report([str(folder)], tmp_path / "report")
    page = report([str(folder / "random_001-seed-42"), str(folder)], tmp_path / "report")
    assert html.unescape(page.read_text()).count(reason) == 1


def test_subsets_are_trained_on_once_and_compared(tmp_path, scores, given, capsys):
    settings = validate.Settings(*given, subsets=5, pct=20)
    result = validate.run([scores], ["lp_app_nll", "other"], settings, tmp_path / "out")
    random, ends = result["subsets"][:5], {m["name"]: m for m in result["subsets"][5:]}
    assert {m["rows"] for m in result["subsets"]} == {8}, "20% of 40"
    assert ends["lowest_0"]["mean_score"]["mine lp_app_nll"] == pytest.approx(np.mean([0, 1, 2, 3, 4, 6, 7, 8]) / 100)
    assert ends["highest_0"]["mean_score"]["mine lp_app_nll"] == pytest.approx(np.arange(32, 40).mean() / 100)
    assert ends["lowest_1"]["nll"] == ends["highest_0"]["nll"], "the other column has the opposite order"
    assert result["cost"]["trainings"] == 7, "the same rows are trained on once"
    assert len({m["nll"] for m in random}) == 5
    assert random[0]["nll"] == pytest.approx(held_out_nll(tmp_path / "out/random_001-seed-42/train/model", given[1]))
    first, second = result["scores"]
    assert second["spearman"] == pytest.approx(-first["spearman"])
    means = [m["mean_score"]["mine lp_app_nll"] for m in random]
    order = np.argsort(np.argsort(means)), np.argsort(np.argsort([m["nll"] for m in random]))
    assert first["spearman"] == pytest.approx(np.corrcoef(*order)[0, 1])
    assert first["random_above_lowest"] == sum(m["nll"] > first["nll_lowest"] for m in random)
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (written["scores"], written["train"], written["evaluate"]) == (result["scores"], *given)
    validate.show(result)
    assert "5 random subsets of 20%" in capsys.readouterr().out
    check_other_commands(tmp_path, first, result, capsys)

    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    again = validate.run([scores], ["lp_app_nll", "other"], settings, tmp_path / "out")
    assert again["subsets"] == result["subsets"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")} == trained


def test_selected_rows_are_found_where_the_dataset_has_another_order(tmp_path):
    pq.write_table(pa.table({"index": [0, 1, 2], "id": pa.array(["a", "b", "c"], pa.large_string())}), tmp_path / "t")
    pq.write_table(pa.table({"id": ["c", "a", "b"], "selected": [True, False, True]}), tmp_path / "s")
    assert validate._selected(str(tmp_path / "s"), tmp_path / "t").tolist() == [2, 1]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "selected": [True, False, True]}), tmp_path / "s")
    assert validate._selected(str(tmp_path / "s"), tmp_path / "t").tolist() == [0, 2]


def test_a_dry_run_lists_the_trainings_and_writes_nothing(tmp_path, scores, given, capsys):
    files = sorted(tmp_path.rglob("*"))
    options = ["--subsets", "5", "--pct", "20", "--seeds", "2", "--metric", "lp_app_nll", "--out", f"{tmp_path}/out"]
    validate.main([scores, *given[0], "dry_run=true", *options, "--held-out", *given[1]])
    *table, folder = capsys.readouterr().out.splitlines()
    trainings = [line.split() for line in table if "train toy" in line or "-seed-" in line]
    names = [f"random_00{k}" for k in range(1, 6)] + ["lowest_0", "highest_0"]
    assert [line[0] for line in trainings] == [f"{name}-seed-{seed}" for name in names for seed in (42, 43)]
    assert {line[3] for line in trainings} == {"8"}, "20% of 40"
    assert folder == f"{tmp_path}/out"
    assert [file for file in sorted(tmp_path.rglob("*")) if "cache" not in file.parts] == files


def kill_at_the_fourth_evaluation(scores, given, out):
    """`run`, ended by SIGKILL when it evaluates the fourth subset."""
    import os
    import signal

    calls, run_job = [], validate.run_job

    def killed(command, *arguments, **named):
        calls.append(command)
        if calls.count("evaluate") == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_job(command, *arguments, **named)

    validate.run_job = killed
    validate.run([scores], ["lp_app_nll"], validate.Settings(*given, subsets=5, pct=20), out)


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_result(tmp_path, scores, given, as_ranks):
    settings = validate.Settings(*given, subsets=5, pct=20)
    assert as_ranks(1, kill_at_the_fourth_evaluation, scores, given, tmp_path / "out", may_fail=True) == [-9]
    weights = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    assert len(weights) == 4
    resumed = validate.run([scores], ["lp_app_nll"], settings, tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in weights} == weights
    elsewhere = validate.run([scores], ["lp_app_nll"], settings, tmp_path / "elsewhere")
    assert [m["nll"] for m in elsewhere["subsets"]] == [m["nll"] for m in resumed["subsets"]]
    assert elsewhere["scores"] == resumed["scores"]
    assert (resumed["cost"]["trainings"], elsewhere["cost"]["trainings"]) == (7, 0), "models are shared with other runs"


@pytest.mark.slow
def test_the_nll_is_the_mean_over_seeds_and_five_subsets_support_no_conclusion(tmp_path, scores, given):
    given[0].append("model.recipe.global_batch=4")  # two steps, whose rows depend on the seed
    settings = validate.Settings(*given, subsets=5, pct=20, seeds=2)
    result = validate.run([scores], ["lp_app_nll"], settings, tmp_path / "out")
    for subset in result["subsets"]:
        assert subset["nll"] == pytest.approx(np.mean(subset["nll_of_seeds"]))
        assert len(set(subset["nll_of_seeds"])) == 2
    assert result["cost"]["trainings"] == 14
    trained = [json.loads(file.read_text())["training"] for file in (tmp_path / "out").glob("*/train/result.json")]
    assert result["cost"]["tokens"] == sum(training["tokens"] for training in trained)
    (score,) = result["scores"]
    assert score["ci_low"] < 0 < score["ci_high"]
    assert -1 <= score["bootstrap_low"] < 0 < score["bootstrap_high"] <= 1
    assert score["conclusive"] is False
    assert "too wide for a conclusion from 5 subsets, it contains 0. Raise --subsets or --seeds." in score["conclusion"]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_real_model_is_validated_on_real_rows(real_models, shared_data, tmp_path):
    with np.load(shared_data / "perplexities_dolly.npz") as released:
        nll = np.log(released["opt-350m"][:, :ROWS])
    pq.write_table(pa.table({f"nll_{epoch}": values for epoch, values in enumerate(nll)}), tmp_path / "s.parquet")
    dolly = f"dataset={shared_data}/dolly.jsonl.xz"
    given = [
        dolly, f"dataset.limit={ROWS}", f"model={real_models}/smollm2-135m", "model.max_length=64",
        "model.recipe.epochs=1", "trainer=cpu", "tracker=none", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    settings = validate.Settings(given, [dolly, f"dataset.skip={ROWS}", "dataset.limit=4"], subsets=5, pct=20)
    result = validate.run([str(tmp_path / "s.parquet")], ["lp_app_nll"], settings, tmp_path / "out")
    nll = [subset["nll"] for subset in result["subsets"]]
    assert {subset["rows"] for subset in result["subsets"]} == {8}
    assert all(1 < value < 5 for value in nll)
    assert len(set(nll)) == result["cost"]["trainings"] == 7
    assert result["cost"]["flops"] > 0
    assert "too wide for a conclusion from 5 subsets" in result["scores"][0]["conclusion"]


@pytest.mark.parametrize(
    ("metrics", "changed", "name"),
    [
        (["lp_app"], {"subsets": 4}, "--subsets"),
        (["lp_app"], {"seeds": 0}, "--seeds"),
        (["lp"], {}, "--metric"),
        (["loss"], {}, "--metric"),
        (["lp_app"], {"pct": 0}, "--pct"),
    ],
)
def test_errors_come_before_any_training(tmp_path, scores, metrics, changed, name):
    with pytest.raises(UserError) as caught:
        validate.run([scores], metrics, validate.Settings([], [], **changed), tmp_path / "out")
    assert caught.value.name == name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [validate.run, validate.plan])
@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("dataset=missing.jsonl", "dataset.path"),
        ("evaluator=pairwise", "evaluator"),
        ("dataset.bad_rows=1", "dataset.bad_rows"),
    ],
)
def test_errors_in_held_out_options_come_before_any_training(tmp_path, scores, given, command, option, name):
    train, held_out = given
    with pytest.raises(UserError) as caught:
        command([scores], ["lp_app_nll"], validate.Settings(train, [*held_out, option], 5, 20), tmp_path / "out")
    assert caught.value.name == name
    assert not (tmp_path / "out").exists()


def test_adapters_that_are_not_merged_are_rejected_before_any_training(tmp_path, scores, given):
    train, held_out = given
    settings = validate.Settings([*train, "adapter=lora", "adapter.merge=false"], held_out, 5, 20)
    with pytest.raises(UserError) as caught:
        validate.run([scores], ["lp_app_nll"], settings, tmp_path / "out")
    assert (caught.value.name, caught.value.value) == ("adapter.merge", "false")
    assert not (tmp_path / "out").exists()


def test_options_of_train_and_evaluate_are_told_from_scores(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(validate, "run", lambda *given: seen.append(given) or {"run_dir": tmp_path})
    monkeypatch.setattr(validate, "show", lambda result: None)
    validate.main(["A", "model=opt-125m", "B", "--subsets", "9", "--metric", "lp,other", "trainer=cpu",
                   "--held-out", "dolly", "dataset.limit=200", "--out", str(tmp_path)])  # fmt: skip
    tables, metrics, settings, out = seen[0]
    assert (tables, metrics, out) == (["A", "B"], ["lp", "other"], tmp_path)
    assert settings == validate.Settings(["model=opt-125m", "trainer=cpu"], ["dataset=dolly", "dataset.limit=200"], 9)
    assert capsys.readouterr().out == f"{tmp_path}\n"


@pytest.mark.parametrize(
    "arguments", [["A", "dry_run=true", "--held-out", "d"], ["A", "--held-out", "d", "dry_run=True"]]
)
def test_a_dry_run_may_be_asked_for_among_the_options_of_train_or_evaluate(monkeypatch, arguments):
    planned = []
    monkeypatch.setattr(validate, "plan", lambda *given: planned.append(given[0]))
    validate.main(arguments)
    assert planned == [["A"]]
