"""The main job on real rows with real models, a short form of examples/dolly.sh."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lpsel.commands.job import run
from lpsel.data.dataset import DatasetSpec, Source
from lpsel.data.packing import collate
from lpsel.data.tokens import tokenize
from lpsel.model.load import load_model, load_tokenizer
from lpsel.model.loss import PerSampleLoss, check_head, per_sample_nll
from lpsel.model.spec import ModelSpec

pytestmark = pytest.mark.real

ROWS, CHOSEN = 18, 4  # 20% of 18 rows, rounded half up


@pytest.fixture(scope="module")
def given(real_models, shared_data, tmp_path_factory):
    """Overrides of every command."""
    return [
        "dataset=local", f"dataset.path={shared_data}/dolly.jsonl.xz", "trainer=cpu", "tracker=none",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def select(given, real_models):
    return [
        *given, f"dataset.limit={ROWS}", "pct=20", "scorer=smollm2-135m", f"scorer.path={real_models}/smollm2-135m",
        "scorer.max_length=160", "scorer.recipe.global_batch=8", f"cluster.embedder={real_models}/all-minilm-l6-v2",
        "cluster.n_clusters=3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def smollm2(select, real_models, tmp_path_factory):
    target = ["model=smollm2-135m", f"model.path={real_models}/smollm2-135m", "model.recipe.epochs=1"]
    folder = tmp_path_factory.mktemp("runs") / "smollm2"
    return run("train", [*select, *target, "model.max_length=160", "selection=lp_app"], folder)


def test_a_real_scorer_selects_the_exact_percentage_from_all_clusters(smollm2):
    table = pq.read_table(smollm2["selection"]).to_pandas()
    assert table["selected"].sum() == smollm2["n_selected"] == CHOSEN
    assert table["cluster"].nunique() == 3
    scores = pq.read_table(smollm2["scores"]).to_pandas()
    assert (scores.loc[table["selected"], "response_tokens"] > 0).all()
    assert len(Path(smollm2["subset"]).read_text().splitlines()) == CHOSEN


def test_a_real_scorer_learns(smollm2):
    scores = pq.read_table(smollm2["scores"]).to_pandas()
    assert scores["nll_1"].mean() < scores["nll_0"].mean()


@pytest.mark.parametrize("rule", ["k_center", "facility_location"])
def test_real_embeddings_cover_the_dataset(rule, select, tmp_path):
    result = run("select", [*select, f"selection={rule}"], tmp_path / rule)
    table = pq.read_table(result["selection"]).to_pandas()
    assert table["selected"].sum() == CHOSEN
    assert sorted(table.loc[table["selected"], "score"]) == list(range(CHOSEN)), "turns in which rows were picked"


@pytest.mark.slow
def test_ifd_of_a_real_scorer_is_around_1(select, tmp_path):
    result = run("select", [*select, "selection=ifd", "pct=10"], tmp_path / "ifd")
    scores = pq.read_table(result["scores"]).to_pandas()
    assert list(scores.columns[-2:]) == ["nll_0", "nll_0_noprompt"]
    ratio = scores["nll_0"] / scores["nll_0_noprompt"]
    assert 0.3 < ratio.median() < 1, "prompts help with their responses"
    assert result["score"]["selected"]["highest"] < 1


@pytest.mark.slow
def test_a_target_with_another_tokenizer_trains_on_the_same_rows_and_is_evaluated(
    smollm2, select, given, real_models, tmp_path
):
    gemma = f"{real_models}/gemma3-270m"
    target = ["model=gemma3-270m", f"model.path={gemma}", "model.max_length=160", "model.recipe.epochs=1"]
    trained = run("train", [*select, *target, "selection=lp_app"], tmp_path / "gemma")
    assert trained["scores_reused"]
    assert Path(trained["subset"]).read_text() == Path(smollm2["subset"]).read_text()

    held_out = ["dataset.skip=400", "dataset.limit=4", "evaluator.max_new_tokens=8", "max_length=160"]
    runs = f"models=[{Path(trained['model']).parent}]"
    result = run("evaluate", [*given, *held_out, f"baseline={gemma}", runs], tmp_path / "evaluation")
    assert [m["name"] for m in result["models"]] == ["gemma3-270m", "gemma3-270m, lp_app by smollm2-135m, 20%"]
    assert all(0 < m["metrics"]["bits_per_byte"]["value"] < 4 for m in result["models"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_per_sample_nll_is_transformers_own_loss_with_real_weights(name, real_models, shared_data, tmp_path):
    spec = ModelSpec(name, path=str(real_models / name), max_length=96)
    tokenizer, model = load_tokenizer(spec, spec.path), load_model(spec, spec.path, torch.float32)
    source = Source(DatasetSpec("dolly", path=str(shared_data / "dolly.jsonl.xz"), skip=1, limit=4))
    tokens = tokenize(source, tokenizer, spec.template, spec.max_length, tmp_path)
    loss = PerSampleLoss(model)
    check_head(loss)
    batch = collate(tokens, np.flatnonzero(tokens.response_tokens > 0))
    with torch.no_grad():
        ours = per_sample_nll(loss(batch), batch.row_N, batch.supervised_B)
        loss.release()
        for b, i in enumerate(batch.index_B.tolist()):
            ids = torch.tensor(tokens.input_ids(i).tolist())
            labels = torch.where(torch.tensor(tokens.supervised(i)), ids, -100)
            own = model(input_ids=ids[None], labels=labels[None]).loss
            torch.testing.assert_close(ours[b], own, rtol=1e-4, atol=0)
