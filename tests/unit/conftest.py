"""Tables of scores small enough to rank by hand."""

import numpy as np
import pytest

from lpsel.scoring.table import ScoreTable


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
