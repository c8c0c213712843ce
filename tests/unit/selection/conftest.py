"""Rules by name, and the released perplexities."""

from pathlib import Path

import numpy as np
import pytest

from lpsel.selection import coverage, nearest, rules, trajectories
from lpsel.selection.spec import selection

SHARED_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
EPOCHS = {
    "lp": 3,
    "lp_app": 1,
    "lp_nll": 3,
    "lp_app_nll": 1,
    "forgetting": 3,
    "learning_speed": 3,
    "s2l": 3,
    "task_lp": 1,
    "perplexity": 0,
    "grape": 0,
    "ifd": 0,
    "superfilter": 0,
    "el2n": 0,
}


@pytest.fixture(scope="session")
def make_spec():
    """The spec of a rule by name, with the defaults of conf/selection."""

    def make(name, **fields):
        rule = next(vars(module)[name] for module in (rules, coverage, nearest, trajectories) if name in vars(module))
        defaults = {"epochs": EPOCHS.get(name), "group": "prompt" if name == "grape" else None}
        return selection(**{"name": name, "rule": rule, **defaults, **fields})

    return make


@pytest.fixture(scope="session")
def shared_data():
    """Opens an array file of the released artifacts."""

    def load(name):
        file = SHARED_DATA / name
        if not file.is_file():
            pytest.skip(f"needs {name} in ../shared/data")
        return np.load(file, allow_pickle=False)

    load.folder = SHARED_DATA
    return load
