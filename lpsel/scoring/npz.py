"""Read NumPy archives in the format released with the paper: perplexities per scorer, and optionally `cluster`."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lpsel.data.size_limits import check_expansion
from lpsel.errors import UserError, printable_line

SUFFIX = ".npz"
# Raised by NumPy and zipfile for a damaged archive; RuntimeError for an encrypted one.
UNREADABLE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)


def split_npz(name: str) -> tuple[Path, str | None] | None:
    """Split `FILE.npz:NAME` into file and scorer, and `FILE.npz` into file and None; None for anything else."""
    if name.endswith(SUFFIX):
        return Path(name).expanduser(), None
    file, colon, scorer = name.rpartition(f"{SUFFIX}:")
    return (Path(file + SUFFIX).expanduser(), scorer) if colon else None


def names_in_npz(path: Path) -> list[str]:
    """List the names of the arrays except `cluster`.

    Raises:
        UserError: the file does not exist or is not an archive.
    """
    with open_npz(path) as archive:
        return _scorers(archive)


def read_array(path: Path, name: str) -> Any:
    """Read one array.

    Raises:
        UserError: the file or array does not exist, or cannot be read without pickle.
    """
    with open_npz(path) as archive:
        if name not in archive.files:
            raise UserError("scores", f"{path}:{name}", "no such array", f"use one of {', '.join(archive.files)}")
        return archive[name]


def read_npz(file: Path, key: str | None) -> pa.Table:
    """Read one scorer's perplexities, and `cluster` if the archive has it, as a table.

    Args:
        key: name of the array of perplexities; required if the archive has several.

    Raises:
        UserError: the file or array does not exist, or the array has the wrong type or shape.
    """
    with open_npz(file) as archive:
        names = _scorers(archive)
        listed = ", ".join(names) or "none"
        if key is None and len(names) != 1:
            raise UserError("scores", file, f"has the arrays {listed}", "set scores_key=NAME to choose one")
        if key is not None and key not in names:
            raise UserError("scores_key", key, f"no such array in {file.name}, which has {listed}", "use one of them")
        key = names[0] if key is None else key
        ppl_EN = archive[key]
        cluster = archive["cluster"] if "cluster" in archive.files else None
    if ppl_EN.ndim != 2 or ppl_EN.dtype.kind not in "fiu":
        problem = f"array {key} is {ppl_EN.dtype} of shape {ppl_EN.shape}, must be perplexities (epochs + 1, rows)"
        raise UserError("scores", file, problem, "store those before training first, then those after each epoch")
    columns = {f"ppl_{epoch}": ppl_N.astype(np.float64) for epoch, ppl_N in enumerate(ppl_EN)}
    if cluster is not None:
        if cluster.shape != ppl_EN.shape[1:]:
            raise UserError("scores", file, f"cluster has shape {cluster.shape}, must be ({ppl_EN.shape[1]},)")
        columns["cluster"] = cluster
    return pa.table(columns)


def _scorers(archive: Any) -> list[str]:
    return [name for name in archive.files if name != "cluster"]


@contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """Open an archive without allowing pickles; errors while it is open are raised as UserError."""
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
