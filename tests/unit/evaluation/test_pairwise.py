"""`evaluator=pairwise`, from prompts to win rates, with random models, real files and a real server."""

import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra import compose
from rich.console import Console

from lpsel import cli
from lpsel.commands.job import Job, run
from lpsel.commands.show import describe
from lpsel.config import configured
from lpsel.errors import UnusableRow, UserError
from lpsel.evaluation.tables import pairwise_table
from lpsel.generation.openai_client import Endpoint, Reply
from lpsel.report.points import measures
from lpsel.report.runs import Run
from lpsel.storage import read_json

PROMPTS = [
    {"id": f"p{i}", "instruction": f"Say {word}.", "category": category, "reference_output": word}
    for i, (word, category) in enumerate([("yes", "short"), ("no", "short"), ("perhaps not", "long"), ("so", "long")])
]


@pytest.fixture
def given(tmp_path):
    (tmp_path / "sayings.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return [
        "evaluator=pairwise",
        f"prompts={tmp_path}/sayings.jsonl",
        "evaluator.max_new_tokens=8",
        "evaluator.resamples=200",
        "tracker=none",
        "trainer=cpu",
        f"cache_dir={tmp_path}/cache",
    ]


@pytest.fixture(scope="session")
def second_model(tmp_path_factory, toy_model):
    """The toy model with other weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("second") / "second"
    model = AutoModelForCausalLM.from_pretrained(toy_model)
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_model).save_pretrained(folder)
    return folder


def test_from_prompts_to_metrics(given, toy_model, second_model, tmp_path):
    models = [f"models={second_model}", f"baseline={toy_model}", "judge=reference"]
    result = run("evaluate", [*given, *models], tmp_path / "run")
    assert (result["n"], result["failed"], result["n_prompts"]) == (4, 0, 4)
    assert result["wins"] + result["ties"] + result["losses"] == 4
    assert (result["baseline"], result["name"], result["prompts"]) == ("toy-llama", "second", ["sayings"])
    assert set(result["by_category"]) == {"short", "long"}
    assert [about["generated"] for about in result["answers"]] == [4, 4]
    lines = (tmp_path / "run" / "generations" / "second.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["p0", "p1", "p2", "p3"]
    table = pq.read_table(result["judgements"])
    assert table["id"].to_pylist() == ["p0", "p1", "p2", "p3"]  # a reference has no order
    assert {"order", "verdict", "raw", "prompt_tokens", "completion_tokens"} <= set(table.column_names)

    again = run("evaluate", [*given, *models], tmp_path / "again")
    assert [about["generated"] for about in again["answers"]] == [0, 0]
    assert again["models"][0]["judging"]["asked"] == 0
    assert again["win_rate"] == result["win_rate"]


def test_missing_prompts_are_reported_before_anything_is_tracked(given, toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "start_tracking", lambda _: pytest.fail("tracked"))
    options = [*given, f"models={toy_model}", f"baseline={toy_model}", "judge=reference"]
    with pytest.raises(UserError, match=r"prompts=nowhere\.jsonl: no such file"):
        run("evaluate", [*options, "prompts=nowhere.jsonl"], tmp_path / "run")


def test_prompts_that_a_model_cannot_use_are_left_out_for_all_models(given, toy_model, second_model, tmp_path):
    """A row is unusable in itself, and one model's chat template rejects another row."""
    strict = tmp_path / "strict"
    shutil.copytree(second_model, strict)
    (strict / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
        "{{ m.content }}\n{% endfor %}"
    )
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    odd = [{"id": "images", "instruction": "See", "image": "x.png"}, {"id": "system", "messages": system}]
    usable = [{"id": "chat", "messages": system[1:], "reference_output": "Ho"}, PROMPTS[0]]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*odd, *usable]))
    asked = [*given, f"prompts={tmp_path}/mixed.jsonl", f"models={strict}", f"baseline={toy_model}", "judge=reference"]
    with pytest.raises(UnusableRow) as caught:
        run("evaluate", asked, tmp_path / "stopped")
    assert (caught.value.location, caught.value.kind) == ("prompts=mixed, row 0", "images")
    result = run("evaluate", [*asked, "dataset.bad_rows=skip"], tmp_path / "run")
    assert result["rows_unusable"] == {"images": 1, "the chat template rejects it": 1}
    assert (result["n"], result["n_prompts"]) == (2, 2)
    for model in ("strict", "toy-llama"):
        lines = (tmp_path / "run" / "generations" / f"{model}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["chat", "p0"]
    assert "Unusable rows are left out: images (1), the chat template rejects it (1)." in pairwise_table(result).caption

    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*usable, odd[1]]))
    with pytest.raises(UnusableRow) as caught:
        run("evaluate", asked, tmp_path / "rejected")
    assert (caught.value.location, caught.value.kind) == ("prompt system", "the chat template rejects it")


def test_its_table_of_verdicts_can_be_imported(given, toy_model, second_model, tmp_path):
    short = tmp_path / "short.txt"  # the model's context is
    short.write_text("{nonce}\n{prompt}\n{first}\n{nonce}\n{second}\nA or B?")
    judged_by = [
        "judge=hf",
        f"judge.prompt={short}",
        f"judge.model.path={toy_model}",
        "judge.model.template=plain",
        "+judge.model.max_length=512",
    ]
    models = [f"models=[{second_model}]", f"baseline={toy_model}"]
    result = run("evaluate", [*given, *models, *judged_by], tmp_path / "run")
    assert (result["n"], result["failed"]) == (4, 0)
    table = pq.read_table(result["judgements"])
    assert table["order"].to_pylist() == ["baseline_first", "model_first"] * 4
    verdicts = [f"judgements={result['judgements']}", "evaluator=pairwise", "evaluator.resamples=200", "tracker=none"]
    imported = run("evaluate", [*verdicts, f"cache_dir={tmp_path}/cache"], tmp_path / "imported")
    for figure in (
        "n",
        "wins",
        "ties",
        "losses",
        "failed",
        "win_rate",
        "ci_low",
        "ci_high",
        "flip_rate",
        "by_category",
    ):
        assert imported[figure] == result[figure], figure
    assert pq.read_table(imported["judgements"])["preference"].to_pylist() == table["preference"].to_pylist()


def test_several_models_are_compared_with_one_baseline(given, toy_model, second_model, tmp_path):
    models = [f"models=[{second_model},{toy_model}]", f"baseline={toy_model}", "judge=reference"]
    result = run("evaluate", [*given, *models], tmp_path / "run")
    second, same = result["models"]
    assert (same["name"], same["ties"], same["win_rate"]) == ("toy-llama-2", 4, 50)
    assert second["p_value_holm"] >= second["p_value"]
    shown = pairwise_table(result)
    assert shown.row_count == 2
    assert "Against toy-llama, judged by" in shown.caption


def test_a_sweep_asks_the_judge_again_for_missing_verdicts_only(given, toy_model, second_model, tmp_path, monkeypatch):
    def evaluate(reply, *settings):
        asked = []
        monkeypatch.setattr(Endpoint, "complete", lambda *_, **__: asked.append(1) or Reply(reply, "stop", 10, 1))
        judge = ["judge=openai", "judge.base_url=http://127.0.0.1:9/v1", "judge.attempts=1", "judge.concurrency=1"]
        models = [f"models={second_model}", f"baseline={toy_model}"]
        return run("evaluate", [*given, *models, *judge, *settings], tmp_path / "job", in_sweep=True), len(asked)

    result, asked = evaluate("I cannot tell.")
    assert (result["n"], result["failed"], result["unanswered"], asked) == (0, 4, 8, 9)  # with the check
    patient = ("judge.attempts=2", "judge.timeout=60")  # which change no verdict
    result, asked = evaluate("[[A]]", *patient)
    assert (result["n"], result["flip_rate"], result["unanswered"], asked) == (4, 100, 0, 8)
    assert evaluate("[[B]]", *patient) == (result, 0)
    with pytest.raises(UserError, match=r"judge\.model=other"):
        evaluate("[[B]]", "judge.model=other")


def test_the_cost_counts_verdicts_that_models_share_once(given, toy_model, second_model, tmp_path, monkeypatch):
    """Two models with the same answers; 10 + 1 tokens at $1 and $5 a million are $0.000015 a question."""
    twin = shutil.copytree(second_model, tmp_path / "twin")
    models = [f"models=[{second_model},{twin}]", f"baseline={toy_model}"]
    judge = ["judge=openai", "judge.base_url=http://127.0.0.1:9/v1", "judge.attempts=1", "judge.concurrency=1"]
    prices = ["judge.prompt_price=1", "judge.completion_price=5"]
    # 4 prompts in both orders: an unreadable reply is asked for again by the second model, a verdict is shared
    for reply, questions in (("I cannot tell.", 16), ("[[A]]", 8)):
        monkeypatch.setattr(Endpoint, "complete", lambda *_, reply=reply, **__: Reply(reply, "stop", 10, 1))
        result = run("evaluate", [*given, *models, *judge, *prices], tmp_path / f"run-{questions}")
        assert result["cost"] == pytest.approx(15e-6 * questions)
        assert [model["judging"]["cost"] for model in result["models"]] == [pytest.approx(15e-6 * 8)] * 2


def test_human_judges_get_a_page(given, toy_model, second_model, tmp_path, capsys):
    models = [f"models={second_model}", f"baseline={toy_model}", "judge=human"]
    with configured("evaluate"):
        config = compose("evaluate", overrides=[*given, *models])
    (tmp_path / "run").mkdir()
    cli._run_job("evaluate", config, tmp_path / "run")
    *_, following, folder = capsys.readouterr().out.splitlines()
    assert (following, folder) == (f"Next: lpsel votes FILE... --key {tmp_path}/run", f"{tmp_path}/run")
    result = read_json(tmp_path / "run" / "result.json")
    assert ("Voting page", result["page"]) in describe(Run(tmp_path / "run", result))
    assert Path(result["page"]).is_file()
    assert Path(result["key"]).parent == tmp_path / "run"
    assert "win_rate" not in result
    assert not (tmp_path / "run" / "judgements.parquet").exists()
    assert pairwise_table(result).row_count == 1


def test_judges_of_two_files_are_compared_and_corrected_separately(tmp_path):
    # 10 prompts: both win on 5, both loss on 3, different on 2; chance agreement is .6 x .6 + .4 x .4 = .52
    for judge, verdicts in (("x", "2222211121"), ("y", "2222211112")):
        rows = [f"{i},{verdict},{judge},m,base" for i, verdict in enumerate(verdicts)]
        (tmp_path / f"{judge}.csv").write_text("id,preference,judge,model,baseline\n" + "\n".join(rows))
    files = f"judgements=[{tmp_path}/x.csv,{tmp_path}/y.csv]"
    result = run("evaluate", ["evaluator=pairwise", files, "tracker=none", f"cache_dir={tmp_path}"], tmp_path / "run")
    [agreed] = result["judges"]["m"]
    assert (agreed["agreement"], agreed["kappa"]) == (80, pytest.approx((0.8 - 0.52) / (1 - 0.52)))
    assert [model["p_value_holm"] for model in result["models"]] == [model["p_value"] for model in result["models"]]
    assert (
        "x and y agree on m in 80.0% of 10 prompts; Cohen's kappa 0.58, weighted 0.58."
        in pairwise_table(result).caption
    )


def test_two_models_are_compared_and_a_judge_without_information_gets_no_win_rate(tmp_path):
    # lp wins 60 and random 40 of 100 prompts in both orders; of the third model, the judge always prefers answer A
    rows = [f"{i},{order},{model},{2 if i < won else 1}" for i in range(100) for order in "ab"
            for model, won in (("lp", 60), ("random", 40))]  # fmt: skip
    rows += [f"{i},{order},same,{preference}" for i in range(100) for order, preference in (("a", 1), ("b", 2))]
    (tmp_path / "verdicts.csv").write_text("id,order,model,preference\n" + "\n".join(rows))
    given = ["evaluator=pairwise", f"judgements={tmp_path}/verdicts.csv", "tracker=none", f"cache_dir={tmp_path}"]
    result = run("evaluate", given, tmp_path / "run")
    [pair] = result["comparisons"]
    assert (pair["models"], pair["difference"], pair["n"]) == (["lp", "random"], 20, 100)
    assert pair["p_value_holm"] == pytest.approx(2 * 0.5**20)  # 20 prompts differ, all in one direction
    same = result["models"][2]
    assert [model["informative"] for model in result["models"]] == [True, True, False]
    assert (same["win_rate"], same["flip_rate"]) == (50, 100)
    [warning] = result["warnings"]
    assert warning.startswith("same: The judge carries no information: in 100% of the judged pairs")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(pairwise_table(result))
    shown = console.export_text()
    assert "no information" in shown
    assert "50.0" not in shown
    assert "lp minus random: +20.0 points [+11.7, +27.5]" in shown
    assert warning in " ".join(shown.split())
    assert measures(Run(tmp_path / "run", result))[-1].model == "random", "the report leaves it out"


def test_half_a_surrogate_pair_in_a_prompt_is_written_as_an_escape(tmp_path):
    (tmp_path / "verdicts.json").write_text('[{"instruction": "\\ud83d!", "preference": 2, "dataset": "\\udc00"}]')
    given = ["evaluator=pairwise", f"judgements={tmp_path}/verdicts.json", "tracker=none", f"cache_dir={tmp_path}"]
    [row] = pq.read_table(run("evaluate", given, tmp_path / "run")["judgements"]).to_pylist()
    assert (row["id"], row["category"]) == ("\\ud83d!", "\\udc00")


def test_imported_verdicts_do_not_need_torch(tmp_path):
    (tmp_path / "verdicts.csv").write_text("id,preference\na,2\nb,1\n")
    given = ["evaluator=pairwise", f"judgements={tmp_path}/verdicts.csv", "tracker=none", f"cache_dir={tmp_path}"]
    code = (
        "import sys; from pathlib import Path; from lpsel.commands.job import run; "
        f"run('evaluate', {given}, Path({str(tmp_path / 'run')!r})); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("without", "also", "message"),
    [
        (
            "models",
            [],
            "model=null: evaluator=pairwise compares a model with a baseline. Set model=RUN_OR_MODEL baseline=",
        ),
        ("prompts", [], "prompts=null: no prompts to answer. Set prompts=koala or prompts=FILE."),
        ("prompts", ["prompts=koalas"], "prompts=koalas: no such prompt set. Set one of alpaca_eval, koala, lima"),
        ("", ["judge=openai", "judge.base_url=http://127.0.0.1:9/v1", "judge.max_retries=0"], "judge.base_url=http"),
        ("", ["evaluator.limit=0"], "evaluator.limit=0: must be an integer, at least 1"),
    ],
)
def test_errors_are_raised_before_a_model_is_loaded(
    given, toy_model, second_model, tmp_path, monkeypatch, without, also, message
):
    monkeypatch.setattr("lpsel.generation.answers.load_model", lambda *_: pytest.fail("loaded a model"))
    models = [f"models={second_model}", f"baseline={toy_model}", "judge=reference"]
    overrides = [o for o in [*given, *models] if not without or not o.startswith(without)]
    overrides = [o for o in overrides if o.split("=")[0] not in {a.split("=")[0] for a in also}]
    with pytest.raises(UserError) as error:
        run("evaluate", [*overrides, *also], tmp_path / "run")
    assert str(error.value).startswith(message)


def test_verdicts_that_are_not_found_are_an_error(tmp_path):
    given = ["evaluator=pairwise", "judgements=none.json", "tracker=none", f"cache_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"^judgements=none\.json: no such file"):
        run("evaluate", given, tmp_path / "run")


def test_other_evaluators_reject_endpoints(tmp_path):
    overrides = ["models=x@http://127.0.0.1:9/v1", "tracker=none", "trainer=cpu", f"cache_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"^model=x@http://127.0.0.1:9/v1: this evaluator needs the model's weights\."):
        run("evaluate", overrides, tmp_path / "run")


def test_annotations_of_alpaca_eval_give_the_published_win_rates(shared_data, tmp_path):
    with gzip.open(shared_data / "alpaca_eval_annotations.json.gz") as file:
        entry = next(e for e in json.load(file)["entries"] if e["model"] == "alpaca-7b")
    rows = [
        {
            "instruction": f"prompt {i}",
            "output_1": "a" * baseline,
            "output_2": "b" * model,
            "generator_1": entry["baseline"],
            "generator_2": entry["generator"],
            "annotator": entry["annotator"],
            "preference": preference,
        }
        for i, (preference, baseline, model) in enumerate(
            zip(entry["preference"], entry["baseline_chars"], entry["model_chars"], strict=True)
        )
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    verdicts = [f"judgements={tmp_path}/annotations.json", "evaluator=pairwise", "evaluator.resamples=200"]
    result = run("evaluate", [*verdicts, "tracker=none", f"cache_dir={tmp_path}/cache"], tmp_path / "run")
    published = entry["published"]
    assert result["win_rate"] == pytest.approx(published["win_rate"], rel=1e-9)
    assert result["standard_error"] == pytest.approx(published["standard_error"], rel=1e-9)
    counts = [published[name] for name in ("n_wins", "n_draws", "n_wins_base", "n_total")]
    assert [result[name] for name in ("wins", "ties", "losses", "n")] == counts
    assert (result["name"], result["baseline"]) == ("alpaca-7b, alpaca_eval_gpt4", "text_davinci_003")
    assert result["model_mean_chars"] == pytest.approx(published["avg_length"], abs=0.5)
