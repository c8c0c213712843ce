"""rds and task_lp with SmolLM2-135M on rows of Dolly, against transformers and a padded training loop."""

import json
import lzma

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lpsel.commands.job import run

pytestmark = pytest.mark.real

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ROWS, EXAMPLES, EPOCHS, RATE = 8, 3, 1, 2e-5


@pytest.fixture(scope="module")
def dolly(shared_data):
    """Short rows without an input: the dataset, and examples of a task, the first of which are also in the dataset."""
    with lzma.open(shared_data / "dolly.jsonl.xz", "rt") as lines:
        rows = (json.loads(line) for line, _ in zip(lines, range(400), strict=False))
        short = [row for row in rows if not row["input"] and 20 < len(row["output"]) < 160][: ROWS + EXAMPLES - 2]
    return short[:ROWS], short[ROWS - 2 :]


@pytest.fixture(scope="module")
def model(real_models):
    return real_models / "smollm2-135m"


@pytest.fixture
def select(tmp_path, dolly, model):
    """Runs `select` and returns its result, and the rows that it selected."""
    for name, rows in zip(("rows", "query"), dolly, strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(*overrides):
        result = run(
            "select",
            ["dataset=local", f"dataset.path={tmp_path}/rows.jsonl", f"query.path={tmp_path}/query.jsonl", "pct=50",
             "scorer=local", f"scorer.path={model}",
             "trainer=cpu", "trainer.precision=32-true", "tracker=none", "cluster=none",
             f"cache_dir={tmp_path}/cache", *overrides],
            tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}",
        )  # fmt: skip
        return result, np.flatnonzero(pq.read_table(result["selection"])["selected"]).tolist()

    return start


def weighted_means(model, rows):
    """Position-weighted means of last hidden states, one row at a time; unit length."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    means = []
    for row in rows:
        text = f"Instruction: {row['instruction'].strip()}  Response: {row['output'].strip()}"
        with torch.no_grad():
            states = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        weights = torch.arange(1, len(states) + 1)
        mean = (weights[:, None] * states).sum(0) / weights.sum()
        means.append((mean / mean.norm()).numpy())
    return np.array(means)


def test_rds_selects_by_the_hidden_states_of_transformers(select, dolly, model):
    rows, query = (weighted_means(model, part) for part in dolly)
    result, selected = select("selection=rds")
    similarity = query @ rows.T
    scores = pq.read_table(result["selection"])["score"].to_numpy()
    np.testing.assert_allclose(scores, similarity.max(axis=0), atol=1e-5)
    picked = []
    for turn in range(4):
        order = np.argsort(-similarity[turn % EXAMPLES]).tolist()
        picked.append(next(row for row in order if row not in picked))
    assert selected == sorted(picked)
    assert result["query"]["rows_in_data"] == 2
    assert scores[-2:] == pytest.approx([1, 1], abs=1e-5), "these rows are among the examples"


def losses(network, tokenizer, rows):
    """The mean NLL of every answer, from rows padded to the longest, and the mean over all tokens."""
    prompts = [tokenizer(PROMPT.format(**row))["input_ids"] for row in rows]
    answers = [[*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    logits = network(input_ids=ids).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    used = (labels[:, 1:] != -100).sum(1)
    return nll.sum(1) / used, nll.sum() / used.sum()


def padded_loop(model, rows, query):
    """The NLL of the rows before and after training on all examples at once, once for every epoch."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0)
    recorded = []
    for epoch in range(EPOCHS + 1):
        with torch.no_grad():
            recorded.append(losses(network, tokenizer, rows)[0].numpy())
        if epoch < EPOCHS:
            losses(network, tokenizer, query)[1].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return np.array(recorded, np.float64)


@pytest.mark.timeout(1200)
def test_task_lp_selects_by_the_losses_of_a_padded_training_loop(select, dolly, model):
    nll = padded_loop(model, *dolly)
    settings = ["selection=task_lp", f"selection.epochs={EPOCHS}", f"scorer.recipe.learning_rate={RATE}",
                "scorer.recipe.schedule=constant", "scorer.recipe.warmup=0"]  # fmt: skip
    result, selected = select(*settings)
    records = pq.read_table(result["scores"])
    recorded = np.array([records[f"nll_{epoch}"] for epoch in range(EPOCHS + 1)])
    np.testing.assert_allclose(recorded[0], nll[0], rtol=1e-4)
    np.testing.assert_allclose(recorded - recorded[0], nll - nll[0], atol=2e-3)
    drop = (nll[0] - nll[-1]) / nll[0]
    assert selected == sorted(np.argsort(-drop)[:4].tolist())
    assert drop[-2:].min() > np.median(drop), "rows that are among the examples are learned"
    matched, _ = select(*settings, "selection.length=matched", "selection.clusters=none")
    assert (matched["scores_reused"], matched["n_selected"]) == (True, 4)
