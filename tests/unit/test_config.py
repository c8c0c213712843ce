"""Every configuration file composes and instantiates."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import fixtures.configurations
import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lpsel.sweep  # noqa: F401  names the folders of sweeps in conf/base.yaml
from lpsel.config import build, choices, config_dir, configured
from lpsel.model.spec import ScorerSpec

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = sorted({"scorer", *(folder.name for folder in CONF.iterdir() if folder.is_dir())})
CHOICES = [(group, choice) for group in GROUPS for choice in choices(group)]
COMMANDS = {
    "evaluator": "evaluate",
    "model": "train",
    "adapter": "train",
    "experiment": "train",
    "judge": "evaluate",
    "prompt_set": "evaluate",
}
ON_THEIR_OWN = {"prompt_set"}  # in no command's defaults
# What a user has to give for the choices that cannot do without.
NEEDED = {
    ("dataset", "local"): ["dataset.path=rows.jsonl"],
    ("model", "local"): ["model.path=folder"],
    ("scorer", "local"): ["scorer.path=folder"],
    ("cluster", "column"): ["cluster.column=topic"],
    ("judge", "hf"): ["judge.model.path=folder"],
    ("selection", "score_column"): ["selection.column=reward"],
    ("selection", "combine"): ["selection.combine={lp_app_nll: 1, quality: -.5}"],
    ("selection", "deita"): ["selection.complexity=complexity", "selection.quality=quality"],
}


@pytest.fixture(autouse=True, scope="module")
def hydra():
    with configured("train"):
        yield


@cache
def composed(group, choice):
    """The configuration of a command with this choice, which tests only read."""
    command = COMMANDS.get(group, "select")
    override = f"recipe@scorer.recipe={choice}" if group == "recipe" else f"{group}={choice}"
    override = f"+{override}" if group in ON_THEIR_OWN else override
    given = ["models=x"] if command == "evaluate" else []
    return compose(command, overrides=[override, *given, *NEEDED.get((group, choice), [])])


def test_the_checkouts_own_files_are_tested():
    assert config_dir() == CONF
    assert {
        "model",
        "scorer",
        "dataset",
        "selection",
        "evaluator",
        "trainer",
        "optimizer",
        "adapter",
        "tracker",
    } <= set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda part: part)
def test_every_file_composes_and_instantiates(group, choice):
    config = composed(group, choice)
    node = config.scorer.recipe if group == "recipe" else config[group]
    built = build(node)
    if group in ("model", "scorer", "dataset", "prompt_set") and choice not in ("local", "embedded-held-out"):
        assert built.name == choice


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", ["model=opt-1.3b", "adapter=lora", "model.recipe.epochs=1", "+trainer.max_steps=2", "seed=7"]),
        ("select", ["dataset=local", "dataset.path=a.jsonl", "selection=combine", "selection.combine={lp: 1}"]),
        ("select", ["recipe@scorer.recipe=paper", "~query", "selection.length=matched", "scorer=opt-350m"]),
        ("evaluate", ["models=[a,b]", "evaluator=pairwise", "+prompt_set=koala", "judge=openai"]),
        ("train", ["experiment=figure4-tiny", "pct=3"]),
    ],
)
def test_what_tests_compose_is_what_hydra_composes(command, overrides):
    assert fixtures.configurations.compose(command, overrides) == compose(command, overrides=overrides)


def test_any_model_can_score():
    names = {group: {choice for g, choice in CHOICES if g == group} for group in ("model", "scorer")}
    assert names["model"] == names["scorer"]


@pytest.mark.parametrize("name", [choice for group, choice in CHOICES if group == "model" and choice != "local"])
def test_a_scorer_is_its_model(name):
    model = build(composed("model", name).model)
    assert build(composed("scorer", name).scorer) == ScorerSpec(**vars(model))


def test_the_papers_recipe():
    recipe = build(composed("scorer", "opt-350m").scorer).recipe
    assert (recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.schedule) == (3, 2e-5, 0.03, "cosine")
    assert (recipe.global_batch, recipe.reduction, recipe.dropout) == (32, "token", False), "not what it leaves open"


def test_a_scorers_recipe_can_differ_from_the_targets():
    config = compose("train", overrides=["scorer=opt-350m", "model=opt-1.3b", "scorer.recipe.epochs=1", "seed=7"])
    assert build(config.scorer).recipe.epochs == 1
    assert build(config.model).recipe.epochs == 3
    assert build(config.model).recipe.seed == 7


def test_the_slurm_launcher_asks_for_what_the_trainer_uses():
    given = ["hydra/launcher=slurm", "trainer=fsdp", "trainer.num_nodes=4", "trainer.devices=8", "model=opt-13b"]
    config = compose("train", overrides=given, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # as every command does
    launcher = config.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (4, 8, 8)
    assert type(instantiate(launcher)).__name__ == "SlurmLauncher"


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        (["model=opt-1.3b"], 2e-5),
        (["model=opt-1.3b", "adapter=lora"], 2e-4),
        (["adapter=qlora", "model=opt-1.3b"], 2e-4),
        (["model.recipe.learning_rate=1e-4", "model=opt-1.3b", "adapter=qlora"], 1e-4),
    ],
)
def test_an_adapter_brings_its_learning_rate_unless_the_user_gives_one(overrides, rate):
    config = compose("train", overrides=overrides)
    assert build(config.model).recipe.learning_rate == rate
    assert build(config.scorer).recipe.learning_rate == 2e-3, "the scorer trains whole"


def test_qlora_is_lora_in_four_bits():
    lora, qlora = (build(compose("train", overrides=[f"adapter={name}"]).adapter) for name in ("lora", "qlora"))
    assert (lora.quantization, qlora.quantization) == (None, "nf4")
    assert replace(qlora, quantization=None) == lora


@pytest.mark.parametrize(
    "name", [choice for group, choice in CHOICES if group == "experiment" and not choice.startswith("_")]
)
def test_an_experiment_sweeps_over_what_there_is(name):
    config = compose("train", overrides=[f"experiment={name}"], return_hydra_config=True)
    assert config.experiment.name == name
    assert str(config.hydra.mode) == "RunMode.MULTIRUN"
    for key, values in config.hydra.sweeper.params.items():
        for value in str(values).replace(" ", "").split(","):
            known = (key, value) in CHOICES or (key == "selection.pct_of" and value in ("rows", "tokens"))
            number = key in ("pct", "seed") or OmegaConf.select(config, key) is not None
            assert known or (number and float(value) >= 0), f"{key}={value}"
    tiny = name.endswith("-tiny")
    assert config.dataset.name in (("embedded-uniform", "embedded") if tiny else ("alpaca", "dolly"))
    if not name.startswith(("real-small", "redundancy")):
        assert {("experiment", name.removesuffix("-tiny") + ending) for ending in ("", "-tiny")} <= set(CHOICES)
