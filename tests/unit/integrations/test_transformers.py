"""Scores folders written by a callback of the transformers Trainer and of TRL's SFTTrainer."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from lpsel.commands.job import run
from lpsel.errors import UnusableRow, UserError
from lpsel.scoring.store import MANIFEST, SCORES

ROWS = [{"prompt": f"Count to {n}.", "completion": " " + " ".join(map(str, range(1, n + 1)))} for n in range(1, 10)]
QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}


@pytest.fixture
def model_and_tokenizer(toy_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(toy_model), tokenizer


def own_nll(model, input_ids, labels):
    """The loss of transformers, one row at a time."""
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([input_ids]), labels=torch.tensor([labels])).loss)


def tokenized(tokenizer):
    """Rows with their prompts masked; the last has no label."""
    rows = []
    for i, row in enumerate(ROWS):
        prompt, answer = (tokenizer(row[side])["input_ids"] for side in ("prompt", "completion"))
        masked = len(prompt) + (len(answer) if i == len(ROWS) - 1 else 0)
        rows.append({"input_ids": prompt + answer, "labels": [-100] * masked + (prompt + answer)[masked:]})
    return rows


def trainer_of(model, tokenizer, folder, callback, rows=None, **arguments):
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2, **QUIET | arguments
    )
    return Trainer(
        model,
        arguments,
        train_dataset=rows or tokenized(tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[callback],
    )


def test_a_trainer_writes_the_scores_folder_of_the_contract(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = tokenized(tokenizer)
    before = [own_nll(model, **row) for row in rows[:-1]]
    trainer_of(model, tokenizer, tmp_path, ScoresCallback(tmp_path / "scores", ROWS, batch_tokens=64)).train()
    after = [own_nll(model.eval(), **row) for row in rows[:-1]]

    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert table["nll_0"].to_pylist()[:-1] == pytest.approx(before, rel=1e-5)
    assert table["nll_2"].to_pylist()[:-1] == pytest.approx(after, rel=1e-5)
    assert sum(after) < sum(before)
    assert [table[f"nll_{epoch}"].to_pylist()[-1] for epoch in range(3)] == [None] * 3
    fed = [len(row["input_ids"]) for row in rows]
    tokens = zip(table["prompt_tokens"].to_pylist(), table["response_tokens"].to_pylist(), strict=True)
    assert [prompt + response for prompt, response in tokens] == fed
    manifest = json.loads((tmp_path / "scores" / MANIFEST).read_text())
    assert manifest["tokens"] == 5 * sum(fed)  # three passes and two epochs
    assert not (tmp_path / "scores.parts").exists()


def test_its_scores_select_rows_of_the_same_file(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    trainer_of(model, tokenizer, tmp_path, ScoresCallback(tmp_path / "scores", ROWS)).train()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"scores={tmp_path}/scores", "tracker=none"]
    result = run("select", [*given, "cluster=none", "pct=34"], tmp_path / "run")
    assert (result["n_selected"], result["n_eligible"]) == (3, 8)


def test_rows_that_lpsel_cannot_use_have_no_record_and_are_not_selected(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = [{"prompt": ["x"], "completion": "y"}, *ROWS[1:4], {**ROWS[4], "image": "x.png"}, *ROWS[5:]]
    kinds = ["no turns", *[None] * 3, "images", *[None] * 4]
    with pytest.raises(UnusableRow) as caught:
        trainer_of(model, tokenizer, tmp_path, ScoresCallback(tmp_path / "stopped", rows)).train()
    assert (caught.value.location, caught.value.kind) == ("row 0", "no turns")
    before = [own_nll(model, **row) for row in tokenized(tokenizer)[:-1]]
    trainer_of(model, tokenizer, tmp_path, ScoresCallback(tmp_path / "scores", rows, bad_rows="skip")).train()
    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert table["unusable"].to_pylist() == kinds
    expected = [None if kinds[i] or i == 8 else pytest.approx(before[i], rel=1e-5) for i in range(9)]
    assert table["nll_0"].to_pylist() == expected
    unusable = {"images": 1, "no turns": 1}
    assert json.loads((tmp_path / "scores" / MANIFEST).read_text())["rows_unusable"] == unusable

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"scores={tmp_path}/scores", "tracker=none"]
    result = run("select", [*given, "cluster=none", "pct=34", "dataset.bad_rows=skip"], tmp_path / "run")
    assert (result["n_selected"], result["n_eligible"], result["rows_unusable"]) == (3, 6, unusable)


def test_dropout_is_off_while_recording_and_on_again_after(toy_model, model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    rows = tokenized(tokenizer)
    before = [own_nll(model.eval(), **row) for row in rows[:-1]]
    trainer_of(model.train(), tokenizer, tmp_path, ScoresCallback(tmp_path / "scores", ROWS)).train()
    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert table["nll_0"].to_pylist()[:-1] == pytest.approx(before, rel=1e-5)
    assert model.training


def test_an_epoch_that_max_steps_cuts_is_not_recorded(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    trainer_of(model, tokenizer, tmp_path, ScoresCallback(tmp_path / "scores", ROWS), max_steps=5).train()
    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert [name for name in table.column_names if name.startswith("nll_")] == ["nll_0", "nll_1"]


def test_a_resumed_training_keeps_the_records_from_before_it(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = tokenized(tokenizer)
    before = [own_nll(model, **row) for row in rows[:-1]]
    saving = {"save_strategy": "epoch"}
    quiet = QUIET | saving

    class Killed(ScoresCallback):
        def on_train_end(self, *arguments, **kwargs):
            raise InterruptedError

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise InterruptedError

    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def trainer(callback):
        arguments = TrainingArguments(
            str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2, **quiet
        )
        collator = DataCollatorForSeq2Seq(tokenizer)
        return Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[callback])

    with pytest.raises(InterruptedError):
        trainer(Killed(tmp_path / "scores", ROWS)).train()
    trainer(ScoresCallback(tmp_path / "scores", ROWS)).train(resume_from_checkpoint=True)
    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert table["nll_0"].to_pylist()[:-1] == pytest.approx(before, rel=1e-5)
    after = [own_nll(model.eval(), **row) for row in rows[:-1]]
    assert table["nll_2"].to_pylist()[:-1] == pytest.approx(after, rel=1e-5)
    resumed = str(tmp_path / "out" / "checkpoint-3")
    with pytest.raises(
        UserError, match=r"other\.parts: has no or incomplete records from before training, .* at step 3\."
    ):
        trainer(ScoresCallback(tmp_path / "other", ROWS)).train(resume_from_checkpoint=resumed)


@pytest.mark.parametrize("killed_in_epoch", [1, 2])
def test_a_training_killed_while_recording_an_epoch_resumes_and_records_it(
    model_and_tokenizer, tmp_path, killed_in_epoch
):
    """The trainer saves the last step of training, and here every third, before an epoch is recorded."""
    from lpsel.integrations.transformers import ScoresCallback

    class Killed(ScoresCallback):
        def _record(self, epoch, args, model):
            super()._record(epoch, args, model)
            if epoch == killed_in_epoch:
                max(self.parts.folder.glob(f"epoch00{epoch}-*")).unlink()
                raise InterruptedError

    model, tokenizer = model_and_tokenizer
    saving = {"save_strategy": "steps", "save_steps": 3}

    def trainer(callback, folder):
        return trainer_of(model, tokenizer, tmp_path / folder, callback, **saving)

    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer(ScoresCallback(tmp_path / "whole", ROWS, batch_tokens=64), "whole").train()
    model.load_state_dict(weights)
    with pytest.raises(InterruptedError):
        trainer(Killed(tmp_path / "scores", ROWS, batch_tokens=64), "killed").train()
    later = tmp_path / "scores.parts" / f"epoch00{killed_in_epoch + 1}-of-an-abandoned-process.parquet"
    later.write_bytes(b"")
    trainer(ScoresCallback(tmp_path / "scores", ROWS), "killed").train(resume_from_checkpoint=True)
    whole, resumed = (pq.read_table(tmp_path / name / SCORES).to_pandas() for name in ("whole", "scores"))
    assert list(resumed.columns) == list(whole.columns)
    for epoch in range(3):
        assert resumed[f"nll_{epoch}"].tolist() == pytest.approx(whole[f"nll_{epoch}"].tolist(), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("same_order", [True, False])
def test_rows_in_another_order_than_the_trainers_are_reported(model_and_tokenizer, tmp_path, caplog, same_order):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    texts = [{"prompt": "Count.", "completion": " 1" * (7 * i % 31)} for i in range(31)]
    rows = [tokenizer(row["prompt"] + row["completion"]) for row in texts]
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    callback = ScoresCallback(tmp_path / "scores", texts if same_order else [*texts[2:], *texts[:2]])
    trainer_of(model, tokenizer, tmp_path, callback, rows, max_steps=1).train()
    assert ("losses are recorded for other rows" in caplog.text) is not same_order


def test_rows_that_are_not_the_trainers_are_rejected(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    callback = ScoresCallback(tmp_path / "scores", ROWS[1:])
    with pytest.raises(UserError, match=r"ScoresCallback: got 8 rows, but the trainer has 9\."):
        trainer_of(*model_and_tokenizer, tmp_path, callback).train()


def test_trl_writes_the_same_folder(toy_model, model_and_tokenizer, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = Dataset.from_list(ROWS)
    config = SFTConfig(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=3, max_length=None, bf16=False, **QUIET
    )
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[ScoresCallback(tmp_path / "scores", rows)],
    )
    before = []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        before.append(own_nll(model, whole, [-100] * len(prompt) + whole[len(prompt) :]))
    trainer.train()
    table = pq.read_table(tmp_path / "scores" / SCORES)
    assert table["nll_0"].to_pylist() == pytest.approx(before, rel=1e-5)
    assert table["response_tokens"].to_pylist()[0] == len(" 1") + 1


def test_a_trl_run_that_packs_rows_is_rejected(model_and_tokenizer, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = Dataset.from_list(ROWS)
    config = SFTConfig(str(tmp_path), packing=True, max_length=64, bf16=False, **QUIET)
    callback = ScoresCallback(tmp_path / "scores", rows)
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    with pytest.raises(UserError, match=r"got 9 rows, .* without packing"):
        trainer.train()


@pytest.mark.parametrize("name", ["scores", "scores.parts"])
def test_a_folder_with_files_of_the_user_is_rejected(model_and_tokenizer, tmp_path, name):
    from lpsel.integrations.transformers import ScoresCallback

    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    model, tokenizer = model_and_tokenizer
    trainer = trainer_of(model, tokenizer, tmp_path / "trained", ScoresCallback(tmp_path / "scores", ROWS))
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert (caught.value.name, caught.value.value) == ("ScoresCallback", tmp_path / name)
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_its_own_folder_is_written_again(model_and_tokenizer, tmp_path):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    for _ in range(2):
        trainer_of(model, tokenizer, tmp_path / "trained", ScoresCallback(tmp_path / "scores", ROWS)).train()
    assert (tmp_path / "scores" / SCORES).is_file()
    assert not (tmp_path / "scores.parts").exists()


@pytest.mark.parametrize(
    ("problem", "rows"),
    [
        ("the trainer's batches have no labels of tokens", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 9),
        ("not a known form", [{"question": "a", "answer": "b"}] * 9),
    ],
)
def test_rows_that_have_no_loss_or_no_known_columns_are_rejected(model_and_tokenizer, tmp_path, problem, rows):
    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    callback = ScoresCallback(tmp_path / "scores", rows)
    trainer = trainer_of(model, tokenizer, tmp_path, callback)
    if "chosen" in rows[0]:  # as the collators of trainers for preferences
        trainer.data_collator = lambda features: {
            "input_ids": torch.tensor([row["input_ids"][:2] for row in features]),
            "completion_mask": torch.ones(len(features), 2),
        }
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert caught.value.problem == problem
    assert "bad_rows" not in caught.value.hint, "all rows would be left out"


def test_streamed_rows_are_rejected(model_and_tokenizer, tmp_path):
    from datasets import Dataset

    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = Dataset.from_list(tokenized(tokenizer)).to_iterable_dataset()
    callback = ScoresCallback(tmp_path / "scores", ROWS)
    with pytest.raises(UserError, match="ScoresCallback: cannot number the rows of a streamed dataset"):
        trainer_of(model, tokenizer, tmp_path, callback, rows, max_steps=3).train()


def test_an_encoder_decoder_model_is_rejected(model_and_tokenizer, tmp_path):
    """Its labels are not shifted, so that other losses would be recorded."""
    from transformers import T5Config, T5ForConditionalGeneration

    from lpsel.integrations.transformers import ScoresCallback

    _, tokenizer = model_and_tokenizer
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.eos_token_id, **shape)
    )
    callback = ScoresCallback(tmp_path / "scores", ROWS)
    with pytest.raises(UserError, match="does not support encoder-decoder models"):
        trainer_of(model, tokenizer, tmp_path, callback).train()


def test_a_trl_run_that_shuffles_its_rows_beforehand_is_rejected(model_and_tokenizer, tmp_path):
    """Its rows have another order, so that every loss would be recorded for another row."""
    pytest.importorskip("trl", reason="trl is not installed: pip install 'lpsel[dev]'")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from lpsel.integrations.transformers import ScoresCallback

    model, tokenizer = model_and_tokenizer
    rows = Dataset.from_list(ROWS)
    config = SFTConfig(str(tmp_path), shuffle_dataset=True, max_length=None, bf16=False, **QUIET)
    callback = ScoresCallback(tmp_path / "scores", rows)
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    with pytest.raises(UserError, match="does not know the order of the rows with shuffle_dataset=True"):
        trainer.train()
