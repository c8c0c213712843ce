"""Fixtures by subject in tests/fixtures, and settings of all tests."""

import gc
import os
import sys
from importlib.util import find_spec
from itertools import count

import pytest
from hypothesis import settings

pytest_plugins = [
    f"fixtures.{name}"
    for name in ("browser", "datasets", "explorer", "models", "processes", "runs", "terminal", "wandb_server")
]

# absl, which rouge-score imports, keeps the standard error of its import, which pytest has replaced when Hydra sets up
# logging again.
if find_spec("absl"):
    import absl.logging

    absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Tests run in parallel: threads of one that wait for a core make the other wait as well.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's library is imported

FINISHED = count(1)  # tests of this process

# An example may take long on a busy machine; half of hypothesis's own number of examples.
settings.register_profile("lpsel", deadline=None, max_examples=50)
settings.load_profile("lpsel")


@pytest.fixture(autouse=True, scope="session")
def compose_once():
    """`lpsel.commands.job.run` composes the same choices once."""
    if find_spec("hydra"):
        from fixtures.configurations import compose

        from lpsel.commands import job

        job.compose = compose


def pytest_collection_finish():
    """Garbage collection passes over the objects of the libraries, which are there to stay."""
    gc.freeze()


def pytest_runtest_logfinish():
    """As over those that tests have imported and cached since: every training collects garbage."""
    if next(FINISHED) % 40 == 0:
        gc.collect()
        gc.freeze()
