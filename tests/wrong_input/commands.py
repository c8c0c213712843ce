"""A command in this process, as `lpsel ARGUMENTS` runs it."""

import logging
import shlex
import sys
from contextlib import contextmanager
from typing import NamedTuple


class Ended(NamedTuple):
    status: int | None
    out: str
    err: str


def run(line, capsys):
    """How the command line ends and what it prints. An exception other than the end of the process is the caller's."""
    from hydra.core.global_hydra import GlobalHydra

    from lpsel.cli import console

    before, argv = logging.getLogger().handlers[:], sys.argv
    sys.argv = ["lpsel", *shlex.split(line)]
    capsys.readouterr()
    status = None
    try:
        console()
    except SystemExit as end:
        status = end.code
    finally:
        GlobalHydra.instance().clear()
        logging.getLogger().handlers[:] = before
        sys.argv = argv
    return Ended(status, *capsys.readouterr())


@contextmanager
def watched_loading(loaded):
    """Notes every model whose weights are read."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def noted(cls, path, *args, **more):
        loaded.append(str(path))
        return original.__func__(cls, path, *args, **more)

    PreTrainedModel.from_pretrained = classmethod(noted)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original
