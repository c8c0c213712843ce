"""Overrides as people type them, and as Hydra gets them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lpsel.config import suggestion
from lpsel.errors import UserError
from lpsel.overrides import hydra_arguments


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(arguments):
    """The overrides as Hydra reads them."""
    read = [OverridesParser.create().parse_override(argument) for argument in arguments]
    return {override.key_or_group: override.value() for override in read}


# --- paths


@pytest.mark.parametrize("group", ["model", "scorer", "dataset"])
@pytest.mark.parametrize("path", ["./x", "../x", "/data/x", "org/name", "a b/c"])
def test_a_path_or_hub_id_in_place_of_a_name_is_the_path(group, path):
    arguments = hydra_arguments("train", [f"{group}={path}"])
    assert {group: "local", f"{group}.path": path}.items() <= values(arguments).items()


@pytest.mark.parametrize("path", ["rows.jsonl", "rows.CSV.gz", "*.json", "part-?.parquet", "rows.json.xz"])
def test_the_name_of_a_data_file_or_a_glob_is_a_path(path):
    assert {"dataset": "local", "dataset.path": path}.items() <= values(
        hydra_arguments("select", [f"dataset={path}"])
    ).items()


def test_an_existing_file_may_look_like_a_function(empty_folder):
    (empty_folder / "rows(1).jsonl").touch()
    assert values(hydra_arguments("select", ["dataset=rows(1).jsonl"]))["dataset.path"] == "rows(1).jsonl"


def test_a_folder_in_the_working_directory_is_a_path_unless_a_choice_has_its_name(empty_folder):
    for name in ("mine", "alpaca"):
        (empty_folder / name).mkdir()
    assert values(hydra_arguments("select", ["dataset=mine", "scorer=tiny"]))["dataset.path"] == "mine"
    assert hydra_arguments("select", ["dataset=alpaca", "scorer=tiny"]) == ["dataset=alpaca", "scorer=tiny"]


def test_a_list_of_files_is_one_dataset():
    arguments = hydra_arguments("select", ["dataset=[a.jsonl,b.csv]", "scorer=tiny"])
    assert arguments == ["dataset=local", "dataset.path=[a.jsonl,b.csv]", "scorer=tiny"]


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("model=facebook/opt-350m", "model=opt-350m"),
        ("scorer=HuggingFaceTB/SmolLM2-135M", "scorer=smollm2-135m"),
        ("dataset=tatsu-lab/alpaca", "dataset=alpaca"),
    ],
)
def test_a_hub_id_that_conf_has_a_name_for_is_that_name(override, name):
    assert name in hydra_arguments("train", [override])


def test_a_folder_named_like_a_hub_id_comes_first(empty_folder):
    (empty_folder / "facebook" / "opt-350m").mkdir(parents=True)
    assert "model.path=facebook/opt-350m" in hydra_arguments("train", ["model=facebook/opt-350m"])


@pytest.mark.parametrize("value", ["opt350m", "OPT-350M", "${model}", "choice(opt-350m,tiny)", "null", ""])
def test_other_values_are_left_to_hydra(value):
    assert f"scorer={value}" in hydra_arguments("train", [f"scorer={value}"])


def test_a_path_alone_implies_local():
    assert hydra_arguments("select", ["scorer.path=x", "dataset.path=y"]) == [
        "scorer=local", "dataset=local", "scorer.path=x", "dataset.path=y",
    ]  # fmt: skip


def test_a_path_with_a_name_keeps_the_name():
    given = ["scorer=smollm2-135m", "scorer.path=x"]
    assert hydra_arguments("select", given) == given


def test_evaluate_takes_run_folders_as_models():
    assert hydra_arguments("evaluate", ["model=[runs/a,runs/b]"]) == ["models=[runs/a,runs/b]"]


# --- sweeps


def test_a_sweep_over_paths_sweeps_over_the_path():
    arguments = hydra_arguments("train", ["-m", "model=runs/a,./b", "dataset=embedded", "scorer=tiny"])
    assert arguments[:3] == ["-m", "model=local", "model.path=runs/a,./b"]


def test_a_sweep_over_names_and_their_hub_ids_sweeps_over_names():
    given = ["-m", "model=opt-1.3b,facebook/opt-350m"]
    assert "model=opt-1.3b,opt-350m" in hydra_arguments("train", given)


def test_a_sweep_that_mixes_names_and_paths_is_rejected():
    with pytest.raises(UserError) as error:
        hydra_arguments("train", ["-m", "model=opt-350m,./mine"])
    assert (error.value.name, error.value.value) == ("model", "opt-350m,./mine")
    assert error.value.problem == "./mine is a path, the others are names"


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_comma_in_quotes_belongs_to_the_name_of_a_file(quote):
    arguments = hydra_arguments("select", [f"dataset={quote}my data, v=2/a,b.jsonl{quote}", "scorer=tiny"])
    assert {"dataset": "local", "dataset.path": "my data, v=2/a,b.jsonl"}.items() <= values(arguments).items()


# --- values that Hydra's grammar does not have


@pytest.mark.parametrize("name", ["rows (1).jsonl", "größe.jsonl", "a=b.jsonl", "data/[ab].jsonl", "it's.jsonl"])
@pytest.mark.parametrize("key", ["dataset", "dataset.path"])
def test_any_file_name_can_be_typed_without_quotes_for_hydra(key, name):
    assert values(hydra_arguments("select", [f"{key}={name}", "scorer=tiny"]))["dataset.path"] == name


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    arguments = hydra_arguments("select", ["dataset=~/rows.jsonl", "scorer=~/model", "hydra.run.dir=~/run"])
    given = values(arguments)
    paths = ("dataset.path", "scorer.path", "hydra.run.dir")
    assert [given[key] for key in paths] == ["/home/me/rows.jsonl", "/home/me/model", "/home/me/run"]
    assert hydra_arguments("select", arguments) == arguments, "other ranks get these arguments again"


@pytest.mark.parametrize(
    ("given", "plain"),
    [("pct=10%", "pct=10"), ("pct=1%,5 %", "pct=1,5"), ("selection.pct=2.5%", "selection.pct=2.5"), ("pct=%", "pct=%")],
)
def test_a_percent_sign_after_a_percentage_is_left_out(given, plain):
    assert hydra_arguments("select", [given]) == [plain]


# --- what an option implies


def test_a_real_model_implies_the_papers_dataset_and_scorer():
    given = ["model=opt-13b", "selection=lp_app", "pct=10"]
    assert hydra_arguments("train", given) == ["dataset=alpaca", "scorer=opt-350m", *given]
    assert hydra_arguments("train", ["model.path=x", "dataset=dolly"]) == [
        "model=local", "scorer=opt-350m", "model.path=x", "dataset=dolly",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "select"])
@pytest.mark.parametrize("data", ["dataset.path=x.jsonl", "dataset=x.jsonl", "dataset=dolly", "dataset=embedded,dolly"])
def test_real_rows_imply_a_real_scorer(command, data):
    assert "scorer=smollm2-135m" in hydra_arguments(command, [data])


@pytest.mark.parametrize("chosen", ["scorer=tiny", "scorer=./mine", "scorer.path=mine", "scores=scores.csv"])
def test_a_scorer_or_scores_of_the_users_own_come_first(chosen):
    assert "scorer=smollm2-135m" not in hydra_arguments("select", ["dataset.path=x.jsonl", chosen])


@pytest.mark.parametrize(
    "given",
    [[], ["pct=5"], ["model=tiny-target"], ["-m", "model=tiny,tiny-target"], ["dataset=embedded"],
     ["dataset=embedded-uniform"], ["dataset.synthetic.rows=60"], ["experiment=figure1-tiny"]],
)  # fmt: skip
def test_embedded_data_and_models_imply_nothing(given):
    assert hydra_arguments("train", given) == given


@pytest.mark.parametrize("flags", [["--multirun"], ["--cfg", "job"]])
def test_what_is_implied_stands_beside_the_users_hydra_arguments(flags):
    assert hydra_arguments("select", [*flags, "scorer.path=x"]) == [*flags, "scorer=local", "scorer.path=x"]
    assert hydra_arguments("select", ["scorer.path=x", *flags]) == ["scorer=local", "scorer.path=x", *flags]


@pytest.mark.parametrize(
    ("name", "near"),
    [("OPT-350M", "opt-350m"), ("opt350m", "opt-350m"), ("opt_1.3B", "opt-1.3b"), ("tinny", "tiny")],
)
def test_similar_names_are_suggested(name, near):
    assert suggestion(name, ["opt-1.3b", "opt-350m", "tiny"]) == f"did you mean {near}? "
    assert suggestion("llama", ["opt-350m", "tiny"]) == ""
