"""The paper's released perplexities: NumPy archives with one array (E, N) per scorer.

E recorded columns (0 = before training, then one after each epoch), N rows
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lpsel.errors import UserError
from lpsel.selection.table import ScoreTable

SUFFIX = ".npz"


def split_npz(name: str) -> tuple[Path, str | None] | None:
    """`FILE.npz:NAME` as file and scorer, `FILE.npz` as file and None; None for anything else."""
    if name.endswith(SUFFIX):
        return Path(name).expanduser(), None
    file, colon, scorer = name.rpartition(f"{SUFFIX}:")
    return (Path(file + SUFFIX).expanduser(), scorer) if colon else None


def names_in_npz(path: Path) -> list[str]:
    """The arrays of an archive.

    Raises:
        UserError: no such file, or no archive.
    """
    with _open(path) as archive:
        return list(archive.files)


def read_npz(path: Path, name: str) -> ScoreTable:
    """One scorer's perplexities as a table of scores; rows count from 0.

    A row whose perplexity is 1 in every record has no supervised token: so do the released tables show it. NaN is taken
    for the same.

    Raises:
        UserError: no such file or array, or an array that is not of perplexities by record and row.
    """
    ppl_EN = read_array(path, name)
    if ppl_EN.ndim != 2 or not ppl_EN.size or not np.issubdtype(ppl_EN.dtype, np.number):
        raise UserError(
            f"scores={path}:{name}: is {ppl_EN.dtype} of shape {ppl_EN.shape}, must be numbers, (records, rows)."
        )
    ppl_EN = ppl_EN.astype(np.float64)
    if (ppl_EN <= 0).any():
        epoch, row = np.argwhere(ppl_EN <= 0)[0]
        raise UserError(
            f"scores={path}:{name}: perplexity {epoch} of row {row} is {ppl_EN[epoch, row]}, perplexities are above 0."
        )
    nll_EN = np.log(ppl_EN)
    n = nll_EN.shape[1]
    supervised_N = ~np.isnan(nll_EN[0]) & (nll_EN != 0).any(axis=0)
    return ScoreTable(
        index=np.arange(n),
        id=None,
        prompt_tokens=np.zeros(n, np.int32),
        response_tokens=supervised_N.astype(np.int32),
        truncated=np.zeros(n, np.bool_),
        nll=nll_EN,
        ppl=ppl_EN,
        tokens_known=False,
    )


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
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"scores={path}:{name}: cannot be read ({str(error).rstrip('.')}). Give numbers."
            ) from error


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"scores={path}: no such file. Name a .npz archive of perplexities, as FILE.npz:SCORER.")
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"scores={path}: cannot be read ({str(error).rstrip('.')}). Give a whole .npz file.") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"scores={path}: is one array, not an archive of named ones. Save it with numpy.savez.")
    return archive
