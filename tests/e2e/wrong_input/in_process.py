"""A command in this process, as `lpsel ARGUMENTS` runs it."""

import ctypes
import logging
import os
import shlex
import sys
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple


class Ended(NamedTuple):
    status: int | None
    out: str
    err: str


def run(line, capsys):
    """How the command line ends and what it prints. An exception other than the end of the process is the caller's."""
    from hydra.core.global_hydra import GlobalHydra

    from lpsel.cli import console

    words = shlex.split(line)
    set_before = dict(takewhile(lambda pair: pair[0].isupper(), (word.split("=", 1) for word in words)))
    before, argv, environment = logging.getLogger().handlers[:], sys.argv, dict(os.environ)
    sys.argv = ["lpsel", *words[len(set_before) :]]
    os.environ |= set_before
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
        os.environ.clear()
        os.environ |= environment
    return Ended(status, *capsys.readouterr())


class _Capabilities:
    """The rights of this thread beside those of its user, as capget(2) and capset(2) have them."""

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
    """For root too, a file's permissions are what may be done with it."""
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
