"""What conf/selection and conf/cluster offer, as the command line changes it."""

import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

from lpsel.config import choices, config_dir
from lpsel.selection.select import select


def node(group, *overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(overrides=[f"+{group}={overrides[0]}", *overrides[1:]])[group]


@pytest.mark.parametrize(
    ("name", "epochs"), [("full", None), ("random", None), ("lp", 3), ("lp_app", 1), ("buckets", 3)]
)
def test_every_rule_is_a_file(make_table, name, epochs):
    spec = instantiate(node("selection", name))
    assert (spec.name, spec.epochs, spec.budget) == (name, epochs, "exact")
    ppl = np.array([[9.0, 8, 7, 6, 5, 4], [5, 6, 5, 3, 4, 1], [3, 3, 3, 2, 3, 1], [2, 2, 2, 2, 2, 1]])
    assert select(make_table(ppl), spec, 33, 42).n_selected == (6 if name == "full" else 2)


def test_no_rule_file_is_without_its_line_in_the_documentation():
    docs = config_dir().parent / "docs"
    written = (docs / "reference" / "rules.md").read_text()
    not_for = written.split("## When not to use a rule")[1].split("\n## ")[0]
    for rule in choices("selection"):
        assert f"\n| `{rule}` |" in written
        assert f"`{rule}`" in not_for, "it says when not to use a rule"
        file = config_dir() / "selection" / f"{rule}.yaml"
        assert file.read_text().startswith("# "), "a file says in its first line what it is"


def test_options_are_set_from_the_command_line():
    lp = instantiate(node("selection", "lp", "selection.basis=nll", "selection.length=matched"))
    assert (lp.options, lp.length) == ({"basis": "nll"}, "matched")
    assert instantiate(node("selection", "buckets", "selection.allocation=equal")).allocation == "equal"
    column = instantiate(node("selection", "score_column", "selection.column=reward"))
    assert (list(column.columns), column.options) == (["reward"], {"column": "reward", "descending": False})
    deita = instantiate(node("selection", "deita", "selection.complexity=c", "selection.quality=q"))
    assert (list(deita.columns), deita.needs_vectors) == (["c", "q"], False)
    near = instantiate(
        node("selection", "deita", *(f"selection.{x}" for x in ("complexity=c", "quality=q", "threshold=1")))
    )
    assert near.needs_vectors
    assert near.embedder == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_name_of_a_column_may_look_like_a_number(make_table):
    spec = instantiate(node("selection", "score_column", "selection.column=5"))
    assert (spec.columns, spec.options["column"]) == (["5"], "5")
    table = make_table([[2.0] * 4], columns={"5": np.array([3.0, 1, 4, 2])})
    assert np.flatnonzero(select(table, spec, 50, 0).selected).tolist() == [1, 3]
    assert instantiate(node("selection", "grape", "selection.group=7")).group == "7"


def test_rules_that_look_at_embeddings_take_the_embedder_of_the_clusters():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("select", overrides=["selection=k_center", "cluster.embedder=here"])
        assert config.selection.embedder == "here"
        config = compose("select", overrides=["selection=k_center", "cluster=none"])
        assert config.selection.embedder == "sentence-transformers/all-MiniLM-L6-v2"


def test_budget_and_bucket_are_set_from_the_command_line():
    spec = instantiate(node("selection", "buckets", "selection.budget=paper", "selection.bucket=high"))
    assert (spec.budget, spec.bucket) == ("paper", "high")
    assert instantiate(node("selection", "lp_app", "selection.bucket=mid")).bucket == "mid"
    with pytest.raises(ConfigCompositionException, match="bugdet"):
        node("selection", "lp", "selection.bugdet=paper")


def test_every_way_to_cluster_is_a_file():
    names = {name: type(instantiate(node("cluster", name))).__name__ for name in ("auto", "kmeans", "column", "none")}
    assert names == {"auto": "Auto", "kmeans": "KMeans", "column": "Column", "none": "NoClusters"}
    assert instantiate(node("cluster", "auto", "cluster.embedder=here")).embedder == "here"


def test_selecting_imports_neither_torch_nor_transformers():
    modules = (
        "agreement budget combine coverage diagnosis length_matching nearest rules select spec summary trajectories"
    )
    code = (
        f"import importlib, sys; [importlib.import_module('lpsel.selection.' + m) for m in '{modules}'.split()]; "
        "print({'torch', 'transformers', 'sklearn', 'sentence_transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
