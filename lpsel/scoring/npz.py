"""NumPy archives with one array per scorer, as the paper's perplexities were released, or of clusters."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.data.size_limits import check_archive
from lpsel.errors import UserError, printable_line

SUFFIX = ".npz"
# What NumPy and zipfile raise of a damaged archive; RuntimeError of an encrypted one.
UNREADABLE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)


def split_npz(name: str) -> tuple[Path, str | None] | None:
    """`FILE.npz:NAME` as file and scorer, `FILE.npz` as file and None; None for anything else."""
    if name.endswith(SUFFIX):
        return Path(name).expanduser(), None
    file, colon, scorer = name.rpartition(f"{SUFFIX}:")
    return (Path(file + SUFFIX).expanduser(), scorer) if colon else None


def names_in_npz(path: Path) -> list[str]:
    """The arrays of an archive, clusters aside.

    Raises:
        UserError: no such file, or no archive.
    """
    with _open(path) as archive:
        return [name for name in archive.files if name != "cluster"]


def read_array(path: Path, name: str) -> Any:
    """One array of an archive.

    Raises:
        UserError: no such file or array, or one that cannot be read without pickle.
    """
    with _open(path) as archive:
        if name not in archive.files:
            raise UserError(f"scores={path}:{name}: no such array; give one of {', '.join(archive.files)}.")
        try:
            return archive[name]
        except UNREADABLE as error:
            raise UserError(f"scores={path}:{name}: cannot be read ({printable_line(error)}). Give numbers.") from error


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"scores={path}: no such file. Name a .npz archive of perplexities, as FILE.npz:SCORER.")
    try:
        check_archive(path, f"scores={path}")
        return np.load(path, allow_pickle=False)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"scores={path}: cannot be read ({printable_line(error)}). Give a whole .npz, as numpy.savez writes it."
        ) from error
