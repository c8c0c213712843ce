"""NumPy archives with one array of perplexities per scorer, as the paper released them, and perhaps `cluster`."""

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


def read_npz(file: Path, key: str | None) -> pa.Table:
    """The perplexities of one scorer, and `cluster` if the archive has it, as a table.

    Args:
        key: the name of the array of perplexities, if the archive has several.

    Raises:
        UserError: no such file or array, or one of another type or shape.
    """
    with open_npz(file) as archive:
        names = [name for name in archive.files if name != "cluster"]
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
