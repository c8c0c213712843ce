import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from lpsel.cache import Journal
from lpsel.distributed import Interrupted, signals_interrupt
from lpsel.errors import UserError
from lpsel.generation.answers import answers, check
from lpsel.generation.sampling import Sampling
from lpsel.model.copies import Copies
from lpsel.model.fingerprint import model_fingerprint

SHORT = Sampling(8)
HOW = {"device": torch.device("cpu"), "dtype": torch.float32, "batch_tokens": 400}


def lines_of(cache_dir):
    return [line for file in cache_dir.glob("answers/*/journal.jsonl") for line in file.read_text().splitlines()]


def test_cached_answers_are_not_generated_again(tmp_path, toy_spec, questions):
    first, about = answers(toy_spec, questions(6), SHORT, cache_dir=tmp_path, **HOW)
    assert (about["name"], about["prompts"], about["reused"], about["generated"]) == ("toy", 6, 0, 6)
    assert about["generated_tokens"] == sum(answer.tokens for answer in first)
    assert about["answers_cut"] == sum(not answer.stopped for answer in first)
    again, about = answers(toy_spec, questions(8)[::-1], SHORT, cache_dir=tmp_path, **HOW)
    assert (about["reused"], about["generated"]) == (6, 2)
    assert again[2:][::-1] == first
    alone, _ = answers(toy_spec, questions(8), SHORT, cache_dir=tmp_path / "other", **HOW)
    assert alone == again[::-1]


def test_duplicate_prompts_are_answered_once(tmp_path, toy_spec, questions):
    found, about = answers(toy_spec, questions(2) * 3, SHORT, cache_dir=tmp_path, **HOW)
    assert (about["prompts"], about["generated"]) == (6, 2)
    assert found == found[:2] * 3


@pytest.mark.parametrize("changed", ["settings", "template", "dtype", "weights"])
def test_the_cache_key_holds_settings_template_precision_and_weights(tmp_path, toy_model, toy_spec, questions, changed):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    spec, sampling, how = replace(toy_spec, path=str(folder)), SHORT, dict(HOW)
    before = model_fingerprint(str(folder), None, tmp_path)
    answers(spec, questions(3), sampling, cache_dir=tmp_path, **how)
    if changed == "settings":
        sampling = Sampling(9)
    elif changed == "template":
        spec = replace(spec, template="alpaca")
    elif changed == "dtype":
        how["dtype"] = torch.bfloat16
    else:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][0, 0] += 1.0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert model_fingerprint(str(folder), None, tmp_path) != before
    _, about = answers(spec, questions(3), sampling, cache_dir=tmp_path, **how)
    assert (about["reused"], about["generated"]) == (0, 3)


@pytest.mark.parametrize(("conversation", "template"), [(True, "chat"), (False, "alpaca")])
def test_template_auto_is_chat_for_conversations_and_else_alpaca(
    tmp_path, toy_model, toy_spec, questions, conversation, template
):
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    prompts = [replace(prompt, conversation=conversation) for prompt in questions(2)]
    spec = replace(toy_spec, path=str(folder), template=template)
    answers(spec, prompts, SHORT, cache_dir=tmp_path, **HOW)
    _, about = answers(replace(spec, template="auto"), prompts, SHORT, cache_dir=tmp_path, **HOW)
    assert about["reused"] == 2


def test_the_same_weights_in_another_folder_are_the_same_model(tmp_path, toy_model, toy_spec, questions):
    shutil.copytree(toy_model, tmp_path / "moved")
    answers(toy_spec, questions(3), SHORT, cache_dir=tmp_path, **HOW)
    _, about = answers(
        replace(toy_spec, name="moved", path=str(tmp_path / "moved")), questions(3), SHORT, cache_dir=tmp_path, **HOW
    )
    assert about["reused"] == 3


@pytest.mark.parametrize("batches", [1, 3])
def test_a_run_that_is_killed_after_a_batch_resumes_with_the_next(tmp_path, toy_spec, questions, batches):
    prompts, sampling, appended = questions(9), Sampling(20), []

    def run():
        def append(*arguments):
            whole(*arguments)
            appended.append(None)
            if len(appended) == batches:
                os.kill(os.getpid(), signal.SIGKILL)

        whole = Journal.append
        Journal.append = append
        answers(toy_spec, prompts, sampling, cache_dir=tmp_path, **(HOW | {"batch_tokens": 1}))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    found, about = answers(toy_spec, prompts, sampling, cache_dir=tmp_path, **HOW)
    assert (about["reused"], about["generated"]) == (batches, 9 - batches)
    assert found == answers(toy_spec, prompts, sampling, cache_dir=tmp_path / "undisturbed", **HOW)[0]


def test_a_signal_while_a_batch_is_generated_loses_no_answer(tmp_path, toy_spec, questions, monkeypatch):
    def interrupted(self, function, batches):
        def call(model, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return function(model, batch)

        return whole(self, call, batches)

    whole = Copies.map
    monkeypatch.setattr(Copies, "map", interrupted)
    with pytest.raises(Interrupted) as caught, signals_interrupt():
        answers(toy_spec, questions(9), SHORT, cache_dir=tmp_path, **(HOW | {"batch_tokens": 1}))
    assert caught.value.status == 128 + signal.SIGTERM
    assert len(lines_of(tmp_path)) == 1 + 1, "the key, and the answer of the batch"


def test_of_two_processes_one_generates_and_the_other_reads(tmp_path, toy_spec, questions):
    def run(index):
        _, about = answers(toy_spec, questions(20), SHORT, cache_dir=tmp_path, **HOW)
        (tmp_path / f"about{index}.json").write_text(json.dumps(about))

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(i,)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    generated = [json.loads((tmp_path / f"about{i}.json").read_text())["generated"] for i in range(2)]
    assert sorted(generated) == [0, 20]
    assert len(lines_of(tmp_path)) == 21


def test_a_damaged_line_is_generated_again(tmp_path, toy_spec, questions, caplog):
    first, _ = answers(toy_spec, questions(3), SHORT, cache_dir=tmp_path, **HOW)
    (journal,) = tmp_path.glob("answers/*/journal.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])  # as after a crash
    again, about = answers(toy_spec, questions(3), SHORT, cache_dir=tmp_path, **HOW)
    assert (again, about["generated"]) == (first, 1)
    journal.write_bytes(whole.replace(b'"stopped": false', b'"stopped": true', 1))
    again, about = answers(toy_spec, questions(3), SHORT, cache_dir=tmp_path, **HOW)
    assert (again, about["generated"]) == (first, 1)
    assert f"{journal}: skipped 1 damaged lines" in caplog.text


def test_errors_are_raised_before_a_model_is_loaded(tmp_path, toy_model, toy_spec, questions, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lpsel.generation.answers.load_model", never)
    broken = tmp_path / "no-weights"
    shutil.copytree(toy_model, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    cases = [
        (replace(toy_spec, path=str(tmp_path / "none")), SHORT, "none: no such folder"),
        (replace(toy_spec, path=str(broken)), SHORT, "has no weights"),
        (toy_spec, Sampling(512), "evaluator.max_new_tokens=512: leaves no room for a prompt in the 512 tokens"),
        (replace(toy_spec, template="chat"), SHORT, "has no chat template"),
    ]
    for spec, sampling, complaint in cases:
        with pytest.raises(UserError, match=complaint):
            check(spec, questions(2), sampling, cache_dir=tmp_path, dtype=torch.float32)
    check(toy_spec, questions(2), SHORT, cache_dir=tmp_path, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.real
def test_a_real_model_answers_real_prompts(tmp_path, real_models, shared_data):
    from lpsel.generation.prompts import load_prompts
    from lpsel.model.spec import ModelSpec

    prompts, _ = load_prompts(["vicuna", "self_instruct"], 2, cache_dir=tmp_path, folder=shared_data / "eval")
    spec = ModelSpec("smollm2", str(real_models / "smollm2-135m"))
    for sampling in (Sampling(12), Sampling(12, 0.8, 0.9, seed=1)):
        together, about = answers(spec, prompts, sampling, cache_dir=tmp_path, **(HOW | {"batch_tokens": 4000}))
        assert about["generated"] == 4
        assert about["answers_empty"] < 4
        alone, _ = answers(spec, prompts[:2], sampling, cache_dir=tmp_path / "alone", **(HOW | {"batch_tokens": 1}))
        assert alone == together[:2]
