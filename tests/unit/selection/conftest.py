"""Tables of scores small enough to rank by hand, and the released ones."""

from pathlib import Path

import numpy as np
import pytest

from lpsel.scoring.table import ScoreTable
from lpsel.selection import coverage, rules
from lpsel.selection.spec import selection

SHARED_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
EPOCHS = {
    "lp": 3,
    "lp_app": 1,
    "forgetting": 3,
    "learning_speed": 3,
    "perplexity": 0,
    "ifd": 0,
    "superfilter": 0,
    "el2n": 0,
}


@pytest.fixture(scope="session")
def make_table():
    """A table from perplexities (E, N). Row i has the id row-i."""

    def make(ppl, cluster=None, response_tokens=None, **fields):
        ppl_EN = np.atleast_2d(np.asarray(ppl, np.float64))
        n = ppl_EN.shape[1]
        return ScoreTable(
            index=np.arange(n),
            id=fields.pop("id", [f"row-{i}" for i in range(n)]),
            prompt_tokens=np.full(n, 10, np.int32),
            response_tokens=np.ones(n, np.int32) if response_tokens is None else np.asarray(response_tokens, np.int32),
            truncated=np.zeros(n, np.bool_),
            nll=np.log(ppl_EN),
            cluster=None if cluster is None else np.asarray(cluster, np.int32),
            ppl=ppl_EN,
            **fields,
        )

    return make


@pytest.fixture(scope="session")
def make_spec():
    """The spec of a rule by name, with the defaults of conf/selection."""

    def make(name, **fields):
        rule = getattr(rules, name, None) or getattr(coverage, name)
        return selection(**{"name": name, "rule": rule, "epochs": EPOCHS.get(name), **fields})

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
