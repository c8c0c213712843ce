"""Runs a command in this process: as `lpsel ARGUMENTS` does, or only the job below Hydra's command line."""

import ctypes
import logging
import os
import shlex
import sys
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from fixtures.configurations import compose


class Ended(NamedTuple):
    status: int | None
    out: str
    err: str


def console(words):
    """The console script."""
    from lpsel import cli

    sys.argv = ["lpsel", *words]
    cli.console()


def job(words):
    """What Hydra calls with the configuration that `lpsel WORD...` describes; the last word is the run folder."""
    from lpsel import cli
    from lpsel.config import configured
    from lpsel.overrides import hydra_arguments

    command, *overrides, folder = words
    with cli._errors_end_command(command), configured(command):
        config = compose(command, hydra_arguments(command, overrides))
        Path(folder := folder.removeprefix("hydra.run.dir=")).mkdir()
        cli._run_job(command, config, Path(folder))


def run(line, capsys, start=console):
    """The exit status and output of a command line. Exceptions other than SystemExit are raised."""
    from hydra.core.global_hydra import GlobalHydra

    words = shlex.split(line)
    environment_set = dict(takewhile(lambda pair: pair[0].isupper(), (word.split("=", 1) for word in words)))
    before, argv, environment = logging.getLogger().handlers[:], sys.argv, dict(os.environ)
    os.environ |= environment_set
    capsys.readouterr()
    status = None
    try:
        start(words[len(environment_set) :])
    except SystemExit as end:
        status = end.code
    finally:
        GlobalHydra.instance().clear()
        logging.getLogger().handlers[:] = before
        sys.argv = argv
        os.environ.clear()
        os.environ |= environment
    return Ended(status, *capsys.readouterr())


class _Capabilities:
    """The capabilities of this thread, as in capget(2) and capset(2)."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version with 64 bits, this thread
        self.sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
        self._call(self.libc.capget)

    def allow(self, effective):
        self.sets[0] = effective
        self._call(self.libc.capset)

    def _call(self, function):
        if function(self.header, self.sets):
            raise OSError(ctypes.get_errno(), "capabilities")


@contextmanager
def permissions_count():
    """Enforce file permissions for root as well."""
    if os.geteuid() != 0:
        yield
        return
    own = _Capabilities()
    before = own.sets[0]
    own.allow(before & ~0b110)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    try:
        yield
    finally:
        own.allow(before)


@contextmanager
def watched_loading(loaded):
    """Record every model whose weights are loaded."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def record(cls, path, *args, **more):
        loaded.append(str(path))
        return original.__func__(cls, path, *args, **more)

    PreTrainedModel.from_pretrained = classmethod(record)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original
