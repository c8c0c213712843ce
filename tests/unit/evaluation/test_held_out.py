import copy
import dataclasses
import gc
import io
import json
import math
import shutil
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from scipy import stats

from lpsel.config import build
from lpsel.data import tokens
from lpsel.data.column_forms import Example, Turn
from lpsel.data.control_tokens import Rendered
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.shared_prefixes import find_prefixes
from lpsel.data.templates import render
from lpsel.data.tokens import tokenize
from lpsel.errors import UnusableRow, UserError
from lpsel.evaluation import held_out, likelihood
from lpsel.evaluation.evaluator import Candidates, EvaluationContext
from lpsel.evaluation.held_out import ReferenceEvaluator, response_bytes
from lpsel.evaluation.likelihood import Loaded, reference_nll
from lpsel.evaluation.row_metrics import METRICS, RowMetrics, compare_rows
from lpsel.evaluation.tables import reference_table
from lpsel.generation.sampling import Generation
from lpsel.judging.reference import exact_match
from lpsel.model.copies import Copies
from lpsel.model.loss import PerSampleLoss
from lpsel.model.spec import ModelSpec
from lpsel.storage import file_names

CPU = torch.device("cpu")
CONF = Path(__file__).resolve().parents[3] / "conf"
ROWS = [
    {"instruction": "Add 1 and 2", "input": "", "output": "3"},
    {"instruction": "Say ü", "input": "", "output": "ü, as in über"},
    {"instruction": "Nothing", "input": "please", "output": ""},
    {"instruction": "Count", "input": "", "output": "one two three four five six"},
]
HELD_OUT = DatasetSpec(name="rows", path="rows.jsonl")
SMALL = ReferenceEvaluator(HELD_OUT, max_new_tokens=8, batch_tokens=200, resamples=200)


def source_of(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(DatasetSpec(name="rows", path=str(file)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, random_models, byte_tokenizer):
    """Architecture -> spec of a saved model; `plain`, so that prompts fit into 64 tokens."""
    specs = {}
    for kind in ("llama", "gpt2"):
        folder = tmp_path_factory.mktemp(kind)
        random_models[kind].save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        specs[kind] = ModelSpec(name=kind, path=str(folder), template="plain", max_length=48)
    return specs


def evaluated(evaluator, specs, rows, folder):
    evaluator = dataclasses.replace(evaluator, dataset=source_of(folder, rows).spec)
    context = EvaluationContext(folder, folder / "cache", "cpu", "32-true")
    return evaluator.evaluate(Candidates(tuple(specs)), context)


@pytest.fixture(scope="module")
def two_models(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluated(SMALL, [saved["llama"], saved["gpt2"]], ROWS, folder), folder


def test_rows_of_which_none_can_be_used_are_an_error(saved, tmp_path):
    source = source_of(tmp_path, [{"instruction": "List", "output": [["a"]]}])
    evaluator = dataclasses.replace(SMALL, dataset=dataclasses.replace(source.spec, bad_rows="skip"))
    context = EvaluationContext(tmp_path, tmp_path / "cache", "cpu", "32-true")
    with pytest.raises(UserError, match="none of 1 rows can be used: a list as text"):
        evaluator.evaluate(Candidates((saved["llama"],)), context)


def test_rows_that_a_model_cannot_use_are_left_out_for_all_models(saved, two_models, tmp_path, monkeypatch):
    """One row is unusable in itself, one is rejected by a model's template: the others give the same results."""

    def picky(example, template, tokenizer):
        if example.instruction() == "Reject":
            raise UnusableRow("chat template", problem="no", kind="template rejects roles")
        return render(example, template, tokenizer)

    monkeypatch.setattr(tokens, "render", picky)
    odd = {"instruction": "List", "output": [["a"]]}
    rows = [odd, ROWS[0], {"instruction": "Reject", "output": "x"}, *ROWS[1:]]
    source = source_of(tmp_path, rows)
    evaluator = dataclasses.replace(SMALL, dataset=dataclasses.replace(source.spec, bad_rows="skip"))
    context = EvaluationContext(tmp_path, tmp_path / "cache", "cpu", "32-true")
    result = evaluator.evaluate(Candidates((saved["llama"], saved["gpt2"])), context)
    usable, folder = two_models
    assert (result["n"], sum(result["rows_unusable"].values())) == (4, 2)
    assert result["rows_unusable"]["template rejects roles"] == 1
    assert usable["rows_unusable"] == {}
    notes = "Unusable rows are left out: a list as text (1), template rejects roles (1)."
    assert notes in reference_table(result).caption
    for with_odd, alone in zip(result["models"], usable["models"], strict=True):
        assert with_odd["metrics"] == alone["metrics"]
        assert with_odd["difference"] == alone["difference"]
        written, expected = (json.loads(f"[{','.join((f / m['generations']).read_text().splitlines())}]")
                             for f, m in ((tmp_path, with_odd), (folder, alone)))  # fmt: skip
        assert [row["id"] for row in written] == [row["id"] for row in expected]
        assert [row["nll"] for row in written] == pytest.approx([row["nll"] for row in expected])


def test_metrics_are_computed_from_the_written_rows(two_models, saved, random_models, byte_tokenizer):
    result, folder = two_models
    assert [model["name"] for model in result["models"]] == ["llama", "gpt2"]
    assert result["n"] == 4
    assert result["baseline"] == "llama"
    for model in result["models"]:
        rows = [json.loads(line) for line in (folder / model["generations"]).read_text().splitlines()]
        assert [row["reference"] for row in rows] == [row["output"] for row in ROWS]
        assert rows[2]["prompt"] == render(Example((Turn("user", "Nothing\n\nplease"),)), "plain", byte_tokenizer).text
        nats, tokens = sum(row["nll"] * row["tokens"] for row in rows), sum(row["tokens"] for row in rows)
        metrics = {name: figure["value"] for name, figure in model["metrics"].items()}
        assert metrics["nll"] == pytest.approx(nats / tokens)
        assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens))
        assert 0 < metrics["bits_per_byte"] < nats / math.log(2) / (1 + 15 + 0 + 27), "without the end of the response"
        assert metrics["exact_match"] == sum(row["exact_match"] for row in rows) / 4
        assert metrics["rouge_l"] == pytest.approx(sum(row["rouge_l"] for row in rows) / 4)
        assert model["supervised_tokens"] == tokens == 1 + 15 + 0 + 27 + 4  # bytes, and an EOS for every row
        assert model["generated_tokens"] == sum(row["output_tokens"] for row in rows)
        assert model["answers_cut"] == sum(not row["stopped"] for row in rows)


def test_the_first_model_is_the_baseline_of_paired_differences(two_models):
    first, second = two_models[0]["models"]
    assert first["difference"] is None
    assert set(second["difference"]) == set(METRICS)
    for metric, difference in second["difference"].items():
        assert difference["value"] == pytest.approx(
            second["metrics"][metric]["value"] - first["metrics"][metric]["value"]
        )
        assert difference["low"] <= difference["high"]


def test_an_evaluation_without_answers_has_the_same_likelihoods_and_no_other_metrics(two_models, saved, tmp_path):
    with_answers, _ = two_models
    evaluator = dataclasses.replace(SMALL, max_new_tokens=0)
    result = evaluated(evaluator, [saved["llama"], saved["gpt2"]], ROWS, tmp_path)
    likelihoods = ["nll", "perplexity", "bits_per_byte"]
    for model, other in zip(result["models"], with_answers["models"], strict=True):
        assert list(model["metrics"]) == likelihoods
        assert model["metrics"] == {name: other["metrics"][name] for name in likelihoods}
    assert list(result["models"][1]["difference"]) == ["nll", "bits_per_byte"]
    written = (tmp_path / result["models"][0]["generations"]).read_text().splitlines()
    assert "output" not in json.loads(written[0])
    columns = [str(column.header) for column in reference_table(result).columns]
    assert "exact match (%)" not in columns
    assert "ROUGE-L (%)" not in columns
    assert "perplexity" in columns


@pytest.mark.parametrize(("window", "least", "most"), [(16, 1, 80), (1024, 190, 210)])
def test_rows_and_answers_in_memory_are_bounded(saved, tmp_path, monkeypatch, window, least, most):
    """Of 200 rows, a few times as many as are answered together; all, where that is more: the count finds them."""
    monkeypatch.setattr("lpsel.generation.generate.WINDOW", window)
    kinds, alive, written = (Example, Rendered, Generation), [], []

    def counted(output, reference):
        written.append(reference)
        if len(written) in (60, 100, 140, 190):
            types = Counter(type(each) for each in gc.get_objects())
            alive.append(max(types[kind] for kind in kinds))
        return exact_match(output, reference)

    monkeypatch.setattr(held_out, "exact_match", counted)
    rows = [{"instruction": f"Say {i}", "output": f"{i}!"} for i in range(200)]
    evaluator = dataclasses.replace(SMALL, max_new_tokens=1, batch_tokens=1000, resamples=1)
    assert evaluated(evaluator, [saved["llama"]], rows, tmp_path)["n"] == len(written) == 200
    assert least <= min(alive) <= max(alive) <= most, alive


def test_evaluations_are_reproducible(two_models, saved, tmp_path):
    again = evaluated(SMALL, [saved["llama"], saved["gpt2"]], ROWS, tmp_path)
    for then, now in zip(two_models[0]["models"], again["models"], strict=True):
        assert then["metrics"] == now["metrics"]
        assert then["difference"] == now["difference"]
        assert (two_models[1] / then["generations"]).read_bytes() == (tmp_path / now["generations"]).read_bytes()


def test_a_model_that_reproduces_the_references_is_at_100_percent(saved, tmp_path):
    # the references are the model's own answers
    evaluated(SMALL, [saved["llama"]], ROWS, tmp_path)
    said = [json.loads(line)["output"] for line in (tmp_path / "generations/llama.jsonl").read_text().splitlines()]
    rows = [{**row, "output": output} for row, output in zip(ROWS, said, strict=True)]
    metrics = evaluated(SMALL, [saved["llama"]], rows, tmp_path)["models"][0]["metrics"]
    assert metrics["rouge_l"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    of_four = stats.binomtest(4, 4).proportion_ci(method="wilson")
    assert metrics["exact_match"] == pytest.approx({"value": 1.0, "low": of_four.low, "high": 1.0})


def test_one_row_has_no_intervals_and_names_are_made_distinct(saved, tmp_path):
    spec = dataclasses.replace(saved["llama"], name="llama, lp_app, 10% [b]")
    twins = [spec, spec]
    result = evaluated(SMALL, twins, ROWS[:1], tmp_path)
    assert [model["name"] for model in result["models"]] == [spec.name, f"{spec.name}-2"]
    nll = result["models"][1]["metrics"]["nll"]
    assert nll["value"] > 0
    assert nll["low"] is None
    assert nll["high"] is None
    assert result["models"][1]["difference"]["nll"]["value"] == 0
    files = ["generations/llama-lp_app-10-b.jsonl", "generations/llama-lp_app-10-b-2.jsonl"]
    assert [model["generations"] for model in result["models"]] == files
    assert all((tmp_path / file).is_file() for file in files)
    assert "[b]" in shown(result)


def test_rows_without_supervised_tokens_only_count_for_answers(saved, tmp_path):
    rows = [*ROWS, {"instruction": "x" * 60, "input": "", "output": "cut off"}]
    (model,) = evaluated(SMALL, [saved["llama"]], rows, tmp_path)["models"]
    assert (model["rows"], model["rows_without_supervised_tokens"], model["rows_truncated"]) == (5, 1, 1)
    assert model["prompts_cut"] == 1  # 61 tokens do not fit before 8 more in a context of 64
    last = json.loads((tmp_path / model["generations"]).read_text().splitlines()[-1])
    assert last["nll"] is None
    assert last["tokens"] == 0


def test_nan_makes_the_nll_undefined_with_a_warning(saved, random_models, byte_tokenizer, tmp_path, caplog):
    broken = copy.deepcopy(random_models["llama"])
    first_byte_of_umlaut = byte_tokenizer("ü", add_special_tokens=False)["input_ids"][0]
    broken.get_input_embeddings().weight.data[first_byte_of_umlaut] = math.nan
    broken.save_pretrained(tmp_path / "broken")
    byte_tokenizer.save_pretrained(tmp_path / "broken")
    spec = ModelSpec(name="broken", path=str(tmp_path / "broken"), template="plain", max_length=48)
    result = evaluated(SMALL, [saved["llama"], spec], ROWS, tmp_path)
    json.dumps(result, allow_nan=False)
    assert result["models"][1]["metrics"]["nll"] == {"value": None, "low": None, "high": None}
    assert result["models"][1]["difference"]["bits_per_byte"]["value"] is None
    assert result["models"][1]["rows_not_finite"] == 1
    assert result["models"][0]["metrics"]["nll"]["value"] > 0
    assert "NLL is not defined because it is NaN or Inf in 1 rows" in caplog.text


def test_errors_are_raised_before_a_model_is_loaded(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("lpsel.evaluation.likelihood.load_model", lambda *_: pytest.fail("loaded a model"))
    with pytest.raises(UserError, match="no rows"):
        evaluated(SMALL, [saved["llama"]], [], tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        evaluated(SMALL, [saved["llama"], ModelSpec(name="x", path=str(tmp_path / "none"))], ROWS, tmp_path)
    with pytest.raises(UserError, match=r"evaluator.max_new_tokens=64: .* 64 tokens of context"):
        evaluated(ReferenceEvaluator(HELD_OUT, max_new_tokens=64), [saved["gpt2"]], ROWS, tmp_path)


def test_a_missing_chat_template_is_an_error_before_a_model_is_loaded(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("lpsel.evaluation.likelihood.load_model", lambda *_: pytest.fail("loaded a model"))
    chat = dataclasses.replace(saved["gpt2"], template="chat")
    with pytest.raises(UserError, match="no chat template"):
        evaluated(SMALL, [saved["llama"], chat], ROWS, tmp_path)


def test_a_model_is_freed_before_the_next_is_loaded(saved, tmp_path, monkeypatch):
    load, loaded = likelihood.load_model, []

    def load_alone(*arguments):
        assert all(model() is None for model in loaded)
        model = load(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(likelihood, "load_model", load_alone)
    evaluated(SMALL, [saved["llama"], saved["gpt2"]], ROWS, tmp_path)
    assert len(loaded) == 2


def test_two_processes_write_the_same_files_as_one(two_models, saved, tmp_path, monkeypatch):
    """One process for each of two devices, here of one CPU."""
    result, folder = two_models
    monkeypatch.setattr(held_out, "devices_for", lambda *_: [CPU, CPU])
    shared = evaluated(SMALL, [saved["llama"], saved["gpt2"]], ROWS, tmp_path)
    for one, other in zip(result["models"], shared["models"], strict=True):
        assert (tmp_path / other["generations"]).read_bytes() == (folder / one["generations"]).read_bytes()
        assert other["seconds"].pop("load") < 0.1, "in the processes"
        assert other | {"seconds": one["seconds"]} == one


def test_nll_is_not_compared_between_tokenizers(saved, byte_tokenizer, tmp_path):
    other = copy.deepcopy(byte_tokenizer)
    other.add_tokens(["one two"])
    shutil.copytree(saved["llama"].path, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    rows = ROWS[:2]  # without the new token, which the model has no weights for
    spec = dataclasses.replace(saved["llama"], name="other", path=str(tmp_path / "other"))
    result = evaluated(SMALL, [saved["llama"], spec], rows, tmp_path)
    difference = result["models"][1]["difference"]
    assert (difference["nll"]["value"], difference["nll"]["rows"], difference["nll"]["p_value"]) == (None, 0, None)
    assert difference["bits_per_byte"]["value"] == 0
    assert shown(result).count("Tokenizers differ: compare bits/byte") == 1
    assert shown(result).count("bits/byte") == 2, "as a column as well"


def test_the_configuration_matches_the_defaults():
    dataset = {"_target_": "lpsel.data.dataset.DatasetSpec", "name": "rows", "path": "rows.jsonl"}
    evaluator = OmegaConf.load(CONF / "evaluator" / "reference.yaml")
    node = OmegaConf.create({"seed": 42, "dataset": dataset, "evaluator": evaluator})
    assert build(node.evaluator) == ReferenceEvaluator(HELD_OUT)


@pytest.mark.parametrize(("name", "least"), [("max_new_tokens", 0), ("batch_tokens", 1), ("resamples", 1)])
def test_settings_that_are_too_low_are_rejected(name, least):
    with pytest.raises(UserError, match=f"evaluator.{name}={least - 1}: must be an integer, at least {least}"):
        ReferenceEvaluator(HELD_OUT, **{name: least - 1})


def test_the_reference_is_the_last_turn_of_the_assistant():
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    assert Example(turns).last_answer() == "d"
    assert Example(turns[:3]).last_answer() == "b"
    assert Example(turns[:1]).last_answer() == ""


def test_file_names_are_safe_and_distinct():
    names = ["a/b", "a b", "A-B", "../..", "", "x" * 300]
    assert file_names(names) == ["a-b", "a-b-2", "A-B-3", "model", "model-2", "x" * 100]


def shown(result):
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(reference_table(result))
    return console.export_text()


def test_the_table_shows_every_value_with_its_interval(two_models):
    text = shown(two_models[0])
    nll = two_models[0]["models"][0]["metrics"]["nll"]
    for expected in ("llama", "gpt2", f"{nll['value']:.3f}", f"[{nll['low']:.3f}, {nll['high']:.3f}]", "perplexity"):
        assert expected in text
    assert "Tokenizers differ" not in text
    assert "bits/byte" not in text


def test_the_table_marks_differences_and_undefined_values(two_models):
    result = copy.deepcopy(two_models[0])
    first, second = result["models"]
    first["metrics"]["nll"] = {"value": None, "low": None, "high": None}
    second["metrics"]["rouge_l"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    second["difference"]["rouge_l"] = {"value": 0.1, "low": 0.01, "high": 0.2, "p_value_holm": 0.02}
    second["difference"]["bits_per_byte"] = {"value": 0.1, "low": 0.01, "high": 0.2, "p_value_holm": 0.09}
    second["metrics"]["exact_match"] = {"value": 0.25, "low": None, "high": None}
    text = shown(result)
    assert "50.0*" in text
    assert text.count("*") == 2, "one value, and its explanation"
    assert "[40.0, 60.0]" in text
    assert "25.0 " in text
    assert " - " in text


def test_metrics_by_hand():
    # 6 nats over 4 tokens, 5 of them over 3 bytes of text; one of two answers right
    measured = RowMetrics(
        nll=np.array([2.0, 4.0]),
        text_nll=np.array([1.5, 3.5]),
        tokens=np.array([1, 3]),
        labels=np.array([1, 2]),
        response_bytes=np.array([1, 2]),
        exact_match=np.array([1.0, 0.0]),
        rouge_l=np.array([1.0, 0.2]),
    )
    (metrics,) = compare_rows([measured], 100, 0)
    assert {name: estimate["value"] for name, estimate in metrics["metrics"].items()} == pytest.approx(
        {
            "nll": 1.5,
            "perplexity": math.exp(1.5),
            "bits_per_byte": 5 / 3 / math.log(2),
            "exact_match": 0.5,
            "rouge_l": 0.6,
        }
    )
    assert metrics["difference"] is None


def test_models_are_compared_on_rows_with_the_same_supervised_tokens():
    # the same weights, but the second model sees half of every other row: its NLL per token is higher
    generator = np.random.default_rng(0)
    token_nll = generator.gamma(2.0, 1.0, (60, 8)) + np.linspace(2, 0, 8)
    cut = np.arange(60) % 2 == 0
    whole, right = token_nll.sum(axis=1), generator.integers(0, 2, 60).astype(float)
    half = np.where(cut, token_nll[:, :4].sum(axis=1), whole)
    long = RowMetrics(whole, whole, np.full(60, 8), np.zeros(60, int), np.full(60, 80), right, right)
    short = long._replace(nll=half, text_nll=half, tokens=np.where(cut, 4, 8), labels=cut * 1,
                          response_bytes=np.where(cut, 40, 80))  # fmt: skip
    first, second = compare_rows([long, short], 1000, 0)
    assert second["metrics"]["nll"]["value"] > first["metrics"]["nll"]["value"] + 0.1
    for metric in ("nll", "bits_per_byte"):
        difference = second["difference"][metric]
        assert (difference["value"], difference["low"], difference["high"], difference["rows"]) == (0, 0, 0, 30)
        assert difference["p_value_holm"] == 1
    assert second["difference"]["exact_match"]["rows"] == 60


def test_differences_are_corrected_for_models_and_metrics():
    # 13 models with 4 metrics each, none of which differs: 2.6 intervals without 0 are expected
    generator = np.random.default_rng(1)
    rows, tokens = 200, np.full(200, 5)
    models = []
    for _ in range(14):
        nll, text, close = generator.gamma(4.0, 1.0, (3, rows))
        right = generator.integers(0, 2, rows).astype(float)
        models.append(RowMetrics(nll, text, tokens, tokens, tokens, right, close))
    found = [each for result in compare_rows(models, 4000, 0)[1:] for each in result["difference"].values()]
    assert len(found) == 52
    by_interval = sum(each["low"] > 0 or each["high"] < 0 for each in found)
    assert 0 < sum(each["p_value"] < 0.05 for each in found) <= by_interval < 8
    assert min(each["p_value_holm"] for each in found) > 0.05
    first = models[0]
    better = compare_rows([first, first._replace(nll=first.nll - 1)], 4000, 0)[1]["difference"]["nll"]
    assert better["p_value_holm"] < 0.01


def test_few_rows_that_differ_are_no_certainty():
    # 5 of 20 answers become right: a bootstrap gives [.1, .45] and p = .003, the sign test of 5 rows p = .0625
    rows, tokens = np.arange(20), np.full(20, 5)
    wrong, right = np.zeros(20), (rows < 5).astype(float)
    models = [RowMetrics(tokens * 1.0, tokens * 1.0, tokens, tokens, tokens, own, own) for own in (wrong, right)]
    first, second = compare_rows(models, 200, 0)
    none = stats.binomtest(0, 20).proportion_ci(method="wilson")
    assert first["metrics"]["exact_match"] == pytest.approx({"value": 0, "low": 0, "high": none.high})
    difference = second["difference"]["exact_match"]
    assert (difference["value"], difference["p_value"]) == pytest.approx((0.25, 2 / 2**5))
    # with half a pair more each way: mean 5/22, variance 6/22 - (5/22)^2
    half = 1.959964 * np.sqrt((6 / 22 - (5 / 22) ** 2) / 22)
    assert (difference["low"], difference["high"]) == pytest.approx((5 / 22 - half, 5 / 22 + half))
    same = second["difference"]["nll"]
    assert (same["low"], same["high"], same["p_value"]) == (0, 0, 1), "equal losses, not equal chances"


def test_the_paired_interval_matches_scipy():
    generator = np.random.default_rng(0)
    one, two = (generator.random(40) for _ in range(2))
    tokens = np.full(40, 5)
    models = [RowMetrics(own, own, tokens, tokens, tokens, own, own) for own in (one, two)]
    ours = compare_rows(models, 20_000, 1)[1]
    theirs = stats.bootstrap(
        (two, one),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    difference = ours["difference"]["rouge_l"]
    assert (difference["low"], difference["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    # per token: a fifth of the difference per row
    assert ours["difference"]["nll"]["value"] == pytest.approx((two.mean() - one.mean()) / 5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3"])
def test_nll_matches_the_loss_of_transformers(random_models, byte_tokenizer, tmp_path, kind):
    model = random_models[kind]
    tokens = tokenize(source_of(tmp_path, ROWS), byte_tokenizer, "plain", 32, tmp_path / "cache")
    loaded = Loaded(PerSampleLoss(model), tokens, find_prefixes(tokens))
    end = byte_tokenizer.eos_token_id
    with Copies(lambda _: loaded, [CPU]) as copies:
        nll, text_nll = reference_nll(copies, tokens, 70, "References", [end])
    loaded.loss.release()
    for i in range(len(ROWS)):
        ids = torch.from_numpy(tokens.input_ids(i).astype(np.int64))
        labels = ids.masked_fill(~torch.from_numpy(tokens.supervised(i).copy()), -100)
        with torch.no_grad():
            mean = model(ids[None], labels=labels[None]).loss
        assert nll[i] / tokens.response_tokens[i] == pytest.approx(float(mean), rel=1e-5)
        labels[labels == end] = -100
        with torch.no_grad():
            text = model(ids[None], labels=labels[None]).loss * (labels[1:] != -100).sum()
        assert text_nll[i] == pytest.approx(float(text.nan_to_num()), rel=1e-5)


def test_response_bytes_exclude_template_and_prompt(byte_tokenizer, tmp_path):
    source = source_of(tmp_path, ROWS)
    examples = [row.example for row in source]
    whole = tokenize(source, byte_tokenizer, "plain", 60, tmp_path / "cache")
    assert [response_bytes(e, whole, i, byte_tokenizer) for i, e in enumerate(examples)] == [1, 15, 0, 27]
    # BOS, "Count", then 14 bytes of the response; a row truncated before its response has none
    cut = tokenize(source, byte_tokenizer, "plain", 20, tmp_path / "cache")
    assert [response_bytes(e, cut, i, byte_tokenizer) for i, e in enumerate(examples)][3] == 14
    short = tokenize(source, byte_tokenizer, "plain", 4, tmp_path / "cache")
    assert short.response_tokens[3] == 0
    assert response_bytes(examples[3], short, 3, byte_tokenizer) == 0


def test_response_bytes_are_those_of_supervised_turns_and_of_the_calls_that_they_write(byte_tokenizer, tmp_path):
    turns = [
        ("user", "a", {}),
        ("assistant", "not trained on", {"weight": 0}),
        ("user", "b", {}),
        ("assistant", "ü", {}),
    ]
    rows = [{"messages": [{"role": role, "content": text, **weight} for role, text, weight in turns]}]
    source = source_of(tmp_path, rows)
    [example] = [row.example for row in source]
    of_rows = tokenize(source, byte_tokenizer, "plain", 100, tmp_path / "cache")
    assert response_bytes(example, of_rows, 0, byte_tokenizer) == 2  # ü
    # The content is empty; the template writes a call, 8 bytes, and the end of the turn.
    call = Turn("assistant", "", fields={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    ids = np.array([*byte_tokenizer("call f()").input_ids, byte_tokenizer.eos_token_id])
    written = SimpleNamespace(
        response_tokens=[len(ids)], truncated=[False], input_ids=lambda _: ids, supervised=lambda _: ids >= 0
    )
    assert response_bytes(Example((Turn("user", "a"), call)), written, 0, byte_tokenizer) == 8
