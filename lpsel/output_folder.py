"""Output folders: no command deletes or overwrites a file that it did not write."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpsel.errors import UserError
from lpsel.run_config import RESULT, RUN_CONFIG, existing_paths
from lpsel.storage import check_writable, folder_atomically, read_dict, write_json

MARKER = ".lpsel.json"  # in an output folder: the command that wrote it and, if it is replaced as a whole, its files
ANOTHER = "name another folder"
KEPT = "wandb"  # W&B runs in an output folder, which may not be synced yet; never deleted
DESKTOP_FILES = (".DS_Store", "Thumbs.db")

SUBSET_FILES = ("subset.jsonl", "subset.parquet", "selection.parquet")
RUN_OUTPUTS = {
    "select": SUBSET_FILES,
    "train": ("model", "adapter", *SUBSET_FILES),
    "evaluate": ("generations", "judgements.parquet", "annotate.html", "key.json", "votes"),
}
RUN_FOLDERS = ("model", "adapter", "generations")
RUN_RECORDS = (RESULT, "metrics.csv", "hparams.yaml")


@contextmanager
def output_folder(
    folder: Path, command: str, inputs: Iterable[str | Path] = (), written_later: Iterable[str] = ()
) -> Iterator[Path]:
    """Context manager that yields an empty folder, which replaces `folder` at the end and is marked as output.

    Args:
        inputs: files and folders that the command reads.
        written_later: names of files that the command adds to the finished folder.
    """
    check_output_folder(folder, command, inputs)
    check_writable("--out", folder)
    with folder_atomically(folder) as temporary:
        yield temporary
        if (folder / KEPT).is_dir():
            shutil.copytree(folder / KEPT, temporary / KEPT, ignore=_links)
        write_json(temporary / MARKER, {"command": command, "files": [*_files(temporary), *written_later]})


def check_output_folder(
    folder: Path, command: str, inputs: Iterable[str | Path] = (), *, replaced: bool = True
) -> None:
    """Reject an --out folder, unless it is empty, does not exist, or is earlier output of the same command.

    Args:
        folder: the resolved path.
        inputs: files and folders that the command reads; the folder must not contain any of them.
        replaced: whether everything in the folder is deleted: it must not be the working directory, and must not
            contain files that were added later.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("--out", folder, "is not a folder", ANOTHER)
    for _, _, path in existing_paths({"inputs": list(map(str, inputs))}):
        for spelling in _spellings(path):
            if spelling.is_relative_to(folder):
                raise UserError("--out", folder, f"contains {spelling}, which this command reads", ANOTHER)
    if replaced and Path.cwd().is_relative_to(folder):
        raise UserError("--out", folder, "contains the working directory", ANOTHER)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    marker = read_dict(folder / MARKER)
    if marker.get("command") != command:
        raise UserError("--out", folder, f"is not empty and was not written by lpsel {command}", ANOTHER)
    if not replaced:
        return
    if added := sorted({*_files(folder)} - {*(marker.get("files") or ())}):
        problem = f"{added[0]} in it was not written by lpsel {command}"
        raise UserError("--out", folder, problem, f"move it, or {ANOTHER}")


def mark_output_folder(folder: Path, command: str) -> None:
    """Mark a folder in which `command` overwrites its own files one by one."""
    write_json(folder / MARKER, {"command": command})


def check_run_folder(command: str, config: DictConfig, run_dir: Path) -> None:
    """Raise a UserError if this run would overwrite one of its inputs, or files that no earlier run wrote."""
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    outputs = [run_dir / name for name in (*RUN_OUTPUTS[command], *RUN_RECORDS, RUN_CONFIG)]
    existing_outputs = [output for output in outputs if os.path.lexists(output)]
    for key, text, path in existing_paths(resolved):
        for output in existing_outputs:
            if any(spelling.is_relative_to(output) for spelling in _spellings(path)):
                problem = f"the output of this run would replace it ({output})"
                raise UserError(key, text, problem, "name another hydra.run.dir")
    if any(read_dict(run_dir / record).get("command") == command for record in (RUN_CONFIG, RESULT)):
        return
    for name in dict.fromkeys((*RUN_FOLDERS, *RUN_OUTPUTS[command], *RUN_RECORDS)):
        if os.path.lexists(run_dir / name):
            problem = f"{name} in it is not from an earlier lpsel {command}"
            raise UserError("hydra.run.dir", run_dir, problem, "move it, or name another hydra.run.dir")


def _files(folder: Path) -> list[str]:
    """Sorted relative paths of the files and links in a folder, except those in KEPT."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.name not in (*DESKTOP_FILES, MARKER))
    return [name for name in names if not name.startswith(f"{KEPT}/")]


def _links(folder: str, names: list[str]) -> list[str]:
    """Names in a folder that are links."""
    return [name for name in names if os.path.islink(os.path.join(folder, name))]


def _spellings(path: Path) -> tuple[Path, Path]:
    """The absolute path, as given and with links resolved."""
    return Path(os.path.abspath(path)), Path(os.path.realpath(path))
