"""Training that ends when the ranking has settled, and training on a part of the rows."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures.configurations import compose
from hydra import initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lpsel.commands.job import Job, run
from lpsel.config import build, config_dir
from lpsel.data.dataset import Source
from lpsel.data.random_order import PART, SAMPLE, epoch_order, random_rows
from lpsel.errors import UserError
from lpsel.scoring.early_stopping import check_steps, expected_agreement, rank_correlation
from lpsel.scoring.scorer import scores_for
from lpsel.tracking.tracker import Tracker

RECIPE = ["scorer.recipe.learning_rate=1e-3", "scorer.recipe.global_batch=8", "scorer.max_length=256"]
STABLE = ["scorer.stop=stable", "scorer.stop_rows=30"]


def composed(model, data, *overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        given = [f"scorer.path={model}", f"dataset.path={data}", *RECIPE, *overrides]
        return compose("select", overrides=["scorer=local", "dataset=local", "trainer=cpu", *given])


def score(tmp_path, model, data, *overrides, epochs=1, cache="cache"):
    config = composed(model, data, *overrides)
    job = Job("select", config, tmp_path / "run", tmp_path / cache, Tracker())
    return scores_for(job.training_setup(), build(config.scorer), Source(build(config.dataset)), epochs)


def nll(scores):
    table = pq.read_table(scores.table)
    return np.array([table[name].to_numpy() for name in table.column_names if name.startswith("nll_")])


def lengths(scores):
    table = pq.read_table(scores.table)
    return table["prompt_tokens"].to_numpy() + table["response_tokens"].to_numpy()


def lp_app(scores, epoch=1):
    ppl = np.exp(nll(scores))
    return (ppl[epoch - 1] - ppl[epoch]) / ppl[0]


def cut(steps):
    """Lightning's own way to leave an epoch."""
    return f"+trainer.limit_train_batches={steps}"


def followed(scores, rows=30, seed=42):
    ids = pq.read_table(scores.table)["id"].to_pylist()
    return random_rows(np.ones(len(ids), bool), ids, seed, SAMPLE, rows)


def test_training_ends_at_the_first_check_that_agrees_with_the_one_before(
    tmp_path, toy_model, instructions, monkeypatch
):
    monkeypatch.setattr("lpsel.training.setup.IN_RECIPE", set())
    data = instructions(rows=128)  # 16 steps: checks after 1, 2, 4 and 8
    scores = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_bound=.5")
    ended = {steps: score(tmp_path, toy_model, data, cut(steps), cache=f"cut{steps}") for steps in (2, 4)}
    at = {steps: lp_app(run)[followed(run)] for steps, run in ended.items()}

    (epoch,) = scores.manifest()["checked_epochs"]
    assert (epoch["checked"], epoch["stopped"], epoch["steps"]) == ([1, 2, 4], 4, 16)
    # The rate of the first step is 0: nothing has been learnt of any row, and there is no ranking yet.
    assert epoch["correlation"] == [None, None, pytest.approx(spearmanr(at[2], at[4]).statistic, abs=1e-9)]
    np.testing.assert_array_equal(nll(scores), nll(ended[4]))


def test_a_stopped_run_counts_what_it_did(tmp_path, toy_model, instructions):
    scores = score(tmp_path, toy_model, instructions(rows=128), *STABLE, "scorer.stop_bound=.5")
    manifest, length_N = scores.manifest(), lengths(scores)
    (epoch,) = manifest["checked_epochs"]
    ids = pq.read_table(scores.table)["id"].to_pylist()
    fed = epoch_order(ids, 42, 0)[: 4 * 8]
    checks = 3 * length_N[followed(scores)].sum()
    assert manifest["rows_trained"] == 32
    assert manifest["tokens"] == 2 * length_N.sum() + length_N[fed].sum() + checks
    assert epoch["checks"]["tokens"] == checks
    assert epoch["saved"]["tokens"] == length_N.sum() - length_N[fed].sum()
    assert epoch["training"]["tokens"] == length_N.sum()
    assert 0.7 < epoch["saved"]["flops"] / epoch["training"]["flops"] < 0.8


def test_a_ranking_that_does_not_settle_is_trained_on_to_the_end(tmp_path, toy_model, instructions, caplog):
    caplog.set_level("INFO")
    data = instructions(rows=128)
    full = score(tmp_path, toy_model, data)
    scores = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_bound=.9999999")
    np.testing.assert_array_equal(nll(scores), nll(full))
    manifest = scores.manifest()
    (epoch,) = manifest["checked_epochs"]
    assert (epoch["stopped"], epoch["expected"], epoch["saved"]) == (None, None, {"tokens": 0, "flops": 0})
    assert manifest["flops"] == pytest.approx(full.manifest()["flops"] + epoch["checks"]["flops"])
    assert manifest["rows_trained"] == 128
    assert "none reaches scorer.stop_bound=1, so the whole epoch was trained" in caplog.text


def test_an_epoch_that_was_stopped_does_not_stop_the_next(tmp_path, toy_model, instructions):
    data = instructions(rows=128)
    two = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_bound=.5", epochs=2)
    first, second = two.manifest()["checked_epochs"]
    assert (first["epoch"], first["stopped"], second["epoch"]) == (1, 4, 2)
    one = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_bound=.5", cache="other")
    np.testing.assert_array_equal(nll(two)[:2], nll(one))
    assert first == one.manifest()["checked_epochs"][0]
    # In the second epoch, what it has taught is ranked: (P_1 - P_t) / P_0.
    assert second["stopped"] is not None
    assert nll(two)[2].mean() < nll(two)[1].mean()


def test_what_a_stop_says(tmp_path, toy_model, instructions, caplog):
    caplog.set_level("INFO")
    scores = score(tmp_path, toy_model, instructions(rows=128), *STABLE, "scorer.stop_bound=.5")
    (epoch,) = scores.manifest()["checked_epochs"]
    seen = f"correlations of successive rankings of 30 rows: {epoch['correlation'][2]:.2f}; "
    saved = "stopped after step 4 of 16, which saves 75% of its training"
    assert f"Scorer toy-llama: epoch 1: {seen}{saved}" in caplog.text
    assert f"expected agreement with the whole epoch: Spearman {epoch['expected']['spearman']:.2f} (" in caplog.text


def test_a_part_trains_as_a_data_set_of_its_own_and_all_rows_are_scored(tmp_path, toy_model, instructions):
    data = instructions(rows=90)
    long = {"instruction": "x" * 300, "input": "", "output": "never seen"}  # cut off: nothing supervised
    lines = [*data.read_text().splitlines(), json.dumps(long)]
    data.write_text("\n".join(lines) + "\n")
    quarter = score(tmp_path, toy_model, data, "scorer.train_fraction=.25")
    table = pq.read_table(quarter.table)
    assert table["nll_1"].null_count == 1
    assert quarter.manifest()["rows_trained"] == 23  # 22.5, rounded half up

    some_N = table["response_tokens"].to_numpy() > 0
    part = random_rows(some_N, table["id"].to_pylist(), 42, PART, 23)
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(lines[i] + "\n" for i in part))
    np.testing.assert_allclose(nll(quarter)[:, part], nll(score(tmp_path, toy_model, alone)), rtol=1e-5)
    length_N = lengths(quarter)
    assert quarter.manifest()["tokens"] == 2 * length_N[some_N].sum() + length_N[part].sum()


def test_a_larger_part_holds_a_smaller_one(tmp_path):
    ids = [f"{i * 2654435761 % 2**64:016x}" for i in range(64)]
    some_N = np.arange(64) % 5 > 0
    small, large = (random_rows(some_N, ids, 42, PART, count) for count in (8, 40))
    assert set(small) < set(large) <= set(np.flatnonzero(some_N))
    order = np.random.default_rng(0).permutation(64)
    moved = random_rows(some_N[order], [ids[i] for i in order], 42, PART, 8)
    assert set(order[moved]) == set(small)
    assert set(small) != set(random_rows(some_N, ids, 42, SAMPLE, 8)) != set(random_rows(some_N, ids, 43, SAMPLE, 8))


def test_a_part_can_be_stopped_too(tmp_path, toy_model, instructions):
    data = instructions(rows=128)
    half = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_bound=.5", "scorer.train_fraction=.5")
    manifest = half.manifest()
    (epoch,) = manifest["checked_epochs"]
    assert (epoch["steps"], epoch["stopped"]) == (8, 4)
    assert manifest["rows_trained"] == 32


@pytest.mark.parametrize(
    "other", [STABLE, [*STABLE, "scorer.stop_bound=.8"], ["scorer.stop=stable"], ["scorer.train_fraction=.5"]]
)
def test_scores_of_less_training_are_not_taken_for_others(tmp_path, toy_model, instructions, other):
    data = instructions()
    for asked in ([], [*STABLE, "scorer.stop_bound=.7"], ["scorer.train_fraction=.25"]):
        assert not score(tmp_path, toy_model, data, *asked).reused
    assert not score(tmp_path, toy_model, data, *other).reused
    assert score(tmp_path, toy_model, data, *other).reused


def test_scores_of_all_training_are_described_as_before(tmp_path, toy_model, instructions):
    manifest = score(tmp_path, toy_model, instructions(), "scorer.stop=null", "scorer.train_fraction=1").manifest()
    assert not {"stop", "train_fraction", "checked_epochs"} & manifest.keys()


def test_a_rule_that_trains_nothing_has_nothing_to_stop(tmp_path, toy_model, instructions, caplog):
    caplog.set_level("INFO")
    data = instructions()
    plain = score(tmp_path, toy_model, data, epochs=0)
    both = score(tmp_path, toy_model, data, *STABLE, "scorer.train_fraction=.5", epochs=0)
    assert both.folder == plain.folder
    assert both.manifest()["rows_trained"] == 0
    line = "nothing is trained; ignoring scorer.train_fraction and scorer.stop"
    assert f"Scorer toy-llama: {line}" in caplog.text


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_ranks_stop_together(tmp_path, toy_model, instructions, as_ranks, strategy):
    """125 rows: neither all nor the 29 followed ones are as many on both ranks."""
    data = instructions(rows=125)
    one = score(tmp_path, toy_model, data, *STABLE, "scorer.stop_rows=29", "scorer.stop_bound=.5")
    overrides = [
        "scorer=local", "dataset=local", f"scorer.path={toy_model}", f"dataset.path={data}", *RECIPE, *STABLE,
        "scorer.stop_rows=29", "scorer.stop_bound=.5", f"trainer={strategy}", "trainer.accelerator=cpu",
        "trainer.devices=2", "pct=20", "score_tokens=200", "cluster=none", "tracker=none",
        f"cache_dir={tmp_path}/{strategy}",
    ]  # fmt: skip
    as_ranks(2, run, "select", overrides, tmp_path / "run")
    folder = Path(json.loads((tmp_path / "run" / "result.json").read_text())["scores"]).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    (epoch,) = manifest["checked_epochs"]
    (alone,) = one.manifest()["checked_epochs"]
    assert manifest["world_size"] == 2
    assert (epoch["checked"], epoch["stopped"]) == (alone["checked"], alone["stopped"]) == ([1, 2, 4], 4)
    assert epoch["correlation"][2] == pytest.approx(alone["correlation"][2], abs=0.01)
    several = pq.read_table(folder / "scores.parquet")["nll_1"].to_numpy()
    np.testing.assert_allclose(several, nll(one)[1], rtol=1e-5)


@pytest.mark.parametrize(
    "setting",
    ["train_fraction=0", "train_fraction=1.5", "train_fraction=half", "stop=foo", "stop_bound=1", "stop_rows=5"],
)
def test_an_invalid_setting_is_named_with_its_value(toy_model, instructions, setting):
    with pytest.raises(UserError) as caught:
        build(composed(toy_model, instructions(), f"scorer.{setting}").scorer)
    assert f"{caught.value.name}={caught.value.value}" == f"scorer.{setting}"


def test_a_part_without_a_row_is_refused(tmp_path, toy_model, instructions):
    with pytest.raises(UserError) as mistake:
        score(tmp_path, toy_model, instructions(), "scorer.train_fraction=.02")
    assert (mistake.value.name, mistake.value.value) == ("scorer.train_fraction", 0.02)
    assert mistake.value.problem == "leaves none of 24 rows with a supervised token to train on"


def test_too_few_rows_to_rank_are_refused(tmp_path, toy_model, instructions):
    with pytest.raises(UserError) as mistake:
        score(tmp_path, toy_model, instructions(rows=19), *STABLE)
    assert (mistake.value.name, mistake.value.value) == ("scorer.stop", "stable")
    assert mistake.value.problem == "19 rows with a supervised token are too few to rank"


@pytest.mark.parametrize("command", ["select", "train"])
@pytest.mark.parametrize("scorer", ["tiny", "opt-350m", "smollm2-135m"])
def test_any_scorer_takes_the_options(command, scorer):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        given = [f"scorer={scorer}", "scorer.stop=stable", "scorer.train_fraction=.25"]
        spec = build(compose(command, overrides=given).scorer)
    assert (spec.name, spec.stop, spec.train_fraction) == (scorer, "stable", 0.25)


@given(st.integers(1, 5000))
def test_checks_are_at_different_steps_before_the_last(steps):
    checks = check_steps(steps)
    assert checks == sorted(set(checks))
    assert all(0 < check < steps for check in checks)


def test_checks_double():
    assert check_steps(1625) == [102, 203, 406, 812]  # Alpaca
    assert check_steps(3) == [1, 2]
    assert check_steps(1) == []


def test_expected_agreement_by_hand():
    assert expected_agreement(0.9, 256, before=8, now=16, steps=32)["spearman"] == pytest.approx(0.9)
    assert expected_agreement(0.9, 256, before=4, now=8, steps=32)["spearman"] == pytest.approx(0.81)
    # Brownian motion: its values at t and T correlate by sqrt(t / T).
    assert expected_agreement(math.sqrt(1 / 2), 256, before=8, now=16, steps=128)["spearman"] == pytest.approx(
        math.sqrt(1 / 8)
    )
    # z = atanh(.9) = 1.4722; its standard error sqrt((1 + .405) / 253) = .07452; times 2.4977, that of 98.75%, = .18613
    interval = expected_agreement(0.9, 256, before=8, now=16, steps=32)
    assert (interval["low"], interval["high"]) == (
        pytest.approx(math.tanh(1.4722 - 0.18613), abs=1e-4),
        pytest.approx(math.tanh(1.4722 + 0.18613), abs=1e-4),
    )


@pytest.mark.parametrize("true", [(0.6, 0.75, 0.89), (0.8, 0.86, 0.89), (0.88, 0.89, 0.9), (0.86, 0.92, 0.95)])
def test_the_interval_covers_where_training_stops_at_the_first_high_correlation(true):
    draws, rows, generator = 1000, 256, np.random.default_rng(0)
    stopped, covered = np.zeros(draws, bool), []
    for spearman in true:
        pearson = 2 * math.sin(math.pi / 6 * spearman)  # of normal values
        a, b = generator.standard_normal((2, draws, rows))
        b = pearson * a + math.sqrt(1 - pearson**2) * b
        rank_a, rank_b = (x.argsort(axis=1).argsort(axis=1) - (rows - 1) / 2 for x in (a, b))
        found = (rank_a * rank_b).sum(axis=1) / (rank_a**2).sum(axis=1)
        for correlation in found[(found >= 0.9) & ~stopped]:
            at = expected_agreement(correlation, rows, before=8, now=16, steps=32)
            covered.append(at["low"] <= spearman <= at["high"])
        stopped |= found >= 0.9
    assert len(covered) > 150
    assert np.mean(covered) > 0.95


def test_rows_without_a_number_do_not_rank():
    a, b = np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 3.0, 2.0, 9.0])
    assert rank_correlation(a, b) == pytest.approx(0.5)
    assert math.isnan(rank_correlation(np.zeros(4), b))
    assert math.isnan(rank_correlation(np.full(4, np.nan), b))


@pytest.mark.slow
@pytest.mark.real
def test_a_real_scorer_stops(tmp_path, shared_data, real_models):
    given = ["scorer=smollm2-135m", f"scorer.path={real_models}/smollm2-135m", "scorer.max_length=64", "trainer=cpu",
             "dataset=local", f"dataset.path={shared_data}/dolly.jsonl.xz", "dataset.limit=48", "cluster=none",
             "scorer.recipe.global_batch=4", "scorer.recipe.epochs=1", "scorer.stop=stable", "scorer.stop_rows=24",
             "scorer.stop_bound=.2", "pct=25", "tracker=none", f"cache_dir={tmp_path}/cache"]  # fmt: skip
    result = run("select", given, tmp_path / "run")
    manifest = json.loads((Path(result["scores"]).parent / "manifest.json").read_text())
    (epoch,) = manifest["checked_epochs"]
    assert epoch["stopped"] == epoch["checked"][-1] < epoch["steps"]
    assert manifest["rows_trained"] == 4 * epoch["stopped"]
    assert epoch["expected"]["low"] < epoch["expected"]["spearman"] < epoch["expected"]["high"]
    assert result["n_selected"] == 12
