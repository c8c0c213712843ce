"""NumPy archives with one array of perplexities per scorer, as the paper released them, and perhaps `cluster`."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.data.size_limits import check_expansion
from lpsel.errors import UserError, printable_line

SUFFIX = ".npz"
# What NumPy and zipfile raise for a damaged archive; RuntimeError for an encrypted one.
UNREADABLE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)


def split_npz(name: str) -> tuple[Path, str | None] | None:
    """`FILE.npz:NAME` as file and scorer, `FILE.npz` as file and None; None for anything else."""
    if name.endswith(SUFFIX):
        return Path(name).expanduser(), None
    file, colon, scorer = name.rpartition(f"{SUFFIX}:")
    return (Path(file + SUFFIX).expanduser(), scorer) if colon else None


def names_in_npz(path: Path) -> list[str]:
    """The names of the arrays except `cluster`.

    Raises:
        UserError: no such file, or not an archive.
    """
    with open_npz(path) as archive:
        return [name for name in archive.files if name != "cluster"]


def read_array(path: Path, name: str) -> Any:
    """One array.

    Raises:
        UserError: no such file or array, or one that cannot be read without pickle.
    """
    with open_npz(path) as archive:
        if name not in archive.files:
            raise UserError("scores", f"{path}:{name}", "no such array", f"use one of {', '.join(archive.files)}")
        return archive[name]


@contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """An archive of arrays that are readable without pickle; whatever fails while it is open is reported as such."""
    if not path.is_file():
        hint = "use a .npz archive of perplexities, with scores_key=SCORER (agreement: FILE.npz:SCORER)"
        raise UserError("scores", path, "no such file", hint)
    try:
        with zipfile.ZipFile(path) as members:
            check_expansion(path, sum(member.file_size for member in members.infolist()), f"scores={path}")
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except UserError:
        raise
    except UNREADABLE as error:
        hint = "use a complete .npz without pickles, as numpy.savez writes it"
        raise UserError("scores", path, f"cannot be read ({printable_line(error)})", hint) from error
